"""The guide's flow: a city's weather, fetched over HTTP and saved as a report."""

import os
import time

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact

# The public API; scripts/demo sets WEATHER_URL to a server of its own with one
# fixed answer, so that it needs no network.
WEATHER_URL = os.environ.get("WEATHER_URL", "https://api.open-meteo.com/v1/forecast")

COORDINATES = {
    "Berlin": (52.52, 13.41),
    "London": (51.51, -0.13),
    "Madrid": (40.42, -3.70),
    "Paris": (48.85, 2.35),
    "Tokyo": (35.69, 139.69),
}


@task(retries=2, retry_delay_seconds=1)
def fetch_weather(city: str) -> dict:
    if city not in COORDINATES:
        raise ValueError(f"no coordinates for {city!r}, choose one of {sorted(COORDINATES)}")
    latitude, longitude = COORDINATES[city]
    query = {"latitude": latitude, "longitude": longitude, "current": "temperature_2m"}
    response = httpx.get(WEATHER_URL, params=query, timeout=10)
    response.raise_for_status()
    return response.json()


@task
def read_temperature(weather: dict) -> float:
    return float(weather["current"]["temperature_2m"])


@task
def save_report(city: str, temperature: float) -> None:
    create_markdown_artifact(
        key="weather-report",
        markdown=f"# Weather in {city}\n\nIt is **{temperature:.1f} °C**.\n",
        description=f"Weather in {city}",
    )


@flow(name="weather")
def weather(city: str = "Berlin", pause_seconds: float = 0) -> float:
    """Report a city's temperature; pause_seconds leaves time to watch or cancel it."""
    temperature = read_temperature(fetch_weather(city))
    time.sleep(pause_seconds)
    save_report(city, temperature)
    get_run_logger().info("%s: %.1f °C", city, temperature)
    return temperature


if __name__ == "__main__":
    weather()
