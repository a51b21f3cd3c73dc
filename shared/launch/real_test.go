package launch_test

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/ledger"
)

// newRealRig is a rig with the server that PUSHPOOL_TEST_PREFECT names; without one the test is skipped.
func newRealRig(t *testing.T) *rig {
	t.Helper()
	url := os.Getenv("PUSHPOOL_TEST_PREFECT")
	if url == "" {
		t.Skip("set PUSHPOOL_TEST_PREFECT to the URL of a Prefect server's API, ending in /api")
	}
	r := &rig{t: t, ledger: &fallibleLedger{Memory: ledger.NewMemory()}, messages: &outbox{}}
	return r.start(url, cloudruntest.Options{})
}

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

// authorize signs a call to a server that has an auth string and protects against forged calls.
func (r *rig) authorize(req *http.Request, auth string) {
	user, password, _ := strings.Cut(auth, ":")
	req.SetBasicAuth(user, password)
	client := r.holder()
	ask, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.apiURL+"/csrf-token?client="+client, nil)
	r.must(err)
	ask.SetBasicAuth(user, password)
	resp, err := patient{}.RoundTrip(ask)
	r.must(err)
	defer func() { _ = resp.Body.Close() }()
	var answer struct{ Token string }
	r.must(json.NewDecoder(resp.Body).Decode(&answer))
	req.Header.Set("Prefect-Csrf-Client", client)
	req.Header.Set("Prefect-Csrf-Token", answer.Token)
}
