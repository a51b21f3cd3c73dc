package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// StandIn is the demo's flow without Python: it does over Prefect's API what
// `prefect flow-run execute` does for scripts/demo-flow/weather.py, its cancellation included;
// or, where the arguments are `-m prefect.engine`, what that does, which listens for none.
func StandIn(ctx context.Context, environ, args []string) error {
	listens := !slices.Contains(args, "prefect.engine")
	vars := env.ToMap(environ)
	id := vars["PREFECT__FLOW_RUN_ID"]
	client, err := prefect.New(prefect.Config{
		APIURL: vars["PREFECT_API_URL"], APIKey: vars["PREFECT_API_KEY"], AuthString: vars["PREFECT_API_AUTH_STRING"],
		Timeout: time.Minute, // PREFECT_API_REQUEST_TIMEOUT's default
	})
	if err != nil {
		return err
	}
	fr, err := client.FlowRun(ctx, id)
	if err != nil {
		return err
	}
	answer, err := SetState(ctx, client, id, prefect.Proposal{Type: flowrun.StateRunning})
	for err == nil && answer.Status == prefect.StatusWait { // it was launched before it is due
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(answer.Delay):
		}
		answer, err = SetState(ctx, client, id, prefect.Proposal{Type: flowrun.StateRunning})
	}
	if err != nil || answer.Status != prefect.StatusAccept {
		return err // somebody else has it, or it is not to run any more: as Prefect, end with 0
	}
	city, _ := fr.Parameters["city"].(string)
	city = cmp.Or(city, "Berlin")
	if !slices.Contains(cities, city) {
		_, err := SetState(ctx, client, id, prefect.Proposal{Type: flowrun.StateFailed, Message: fmt.Sprintf("no coordinates for '%s'", city)})
		return err
	}
	celsius, err := fetch(ctx, vars["WEATHER_URL"])
	if err != nil {
		_, err := SetState(ctx, client, id, prefect.Proposal{Type: flowrun.StateFailed, Message: err.Error()})
		return err
	}
	pause := 0.0
	if n, ok := fr.Parameters["pause_seconds"].(json.Number); ok {
		pause, _ = n.Float64()
	}
	for end := time.Now().Add(time.Duration(pause * float64(time.Second))); time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err() // ended by a signal, without a word to Prefect
		case <-time.After(500 * time.Millisecond):
		}
		if !listens {
			continue
		}
		if fr, err = client.FlowRun(ctx, id); err == nil && fr.StateType == flowrun.StateCancelling {
			_, err := SetState(ctx, client, id, prefect.Proposal{Type: flowrun.StateCancelled})
			return err
		}
	}
	report := fmt.Sprintf("# Weather in %s\n\nIt is **%.1f °C**.\n", city, celsius)
	if err := client.CreateArtifact(ctx, id, prefect.Artifact{Key: "weather-report", Type: "markdown", Data: report}); err != nil {
		return err
	}
	_, err = SetState(ctx, client, id, prefect.Proposal{Type: flowrun.StateCompleted})
	return err
}

// SetState proposes a state again, ten times in all, where the server is too busy to take it (Refused), as Prefect's client does.
func SetState(ctx context.Context, client *prefect.Client, id string, p prefect.Proposal) (answer prefect.Answer, err error) {
	for range 10 {
		if answer, err = client.SetState(ctx, id, p); err == nil || flowrun.FaultOf(err) != flowrun.Refused {
			break
		}
	}
	return answer, err
}

// cities are those that the flow knows.
var cities = []string{"Berlin", "London", "Madrid", "Paris", "Tokyo"}

func fetch(ctx context.Context, url string) (celsius float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, bytes.NewReader(nil))
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Current struct {
			Temperature float64 `json:"temperature_2m"`
		} `json:"current"`
	}
	err = json.NewDecoder(resp.Body).Decode(&answer)
	return answer.Current.Temperature, err
}
