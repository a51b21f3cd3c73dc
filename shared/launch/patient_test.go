package launch_test

import (
	"net/http"
	"time"
)

// patient repeats what a server on SQLite is too busy to take.
type patient struct{}

// RoundTrip implements http.RoundTripper.
func (patient) RoundTrip(req *http.Request) (*http.Response, error) {
	for {
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			return resp, err
		}
		_ = resp.Body.Close()
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		select {
		case <-req.Context().Done():
			return nil, req.Context().Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
