package local

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"
)

// liveWeather is the public API that the flow asks by default.
const liveWeather = "https://api.open-meteo.com/v1/forecast"

// temperature is what the canned server says of every place, in degrees Celsius.
const temperature = 21.4

// weatherURL returns where the flow fetches the weather. The canned server answers like the
// public API, as far as the flow reads it.
func (s *Stack) weatherURL(ctx context.Context) (string, error) {
	if s.LiveWeather {
		return liveWeather, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen for the canned weather: %w", err)
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"current": map[string]any{"temperature_2m": temperature}})
	})}
	go func() { _ = server.Serve(listener) }()
	s.later(func() { _ = server.Close() })
	return "http://" + listener.Addr().String(), nil
}
