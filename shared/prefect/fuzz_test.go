package prefect_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// FuzzAnswer holds that whatever answers in Prefect's place, each call ends, and with an error
// of ours where it is none of Prefect's answers.
func FuzzAnswer(f *testing.F) {
	const id = "ef614d27-5bc3-45f1-8f0e-ec2b77b8415f"
	for status, body := range map[int]string{
		200: `{"status":"ACCEPT","state":{"id":"` + id + `","type":"PENDING","name":"Pending","state_details":{"transition_id":null}},"details":{}}`,
		201: `{"id":"` + id + `","state_type":"SCHEDULED","empirical_policy":{"retry_type":"in_process"},"job_variables":{"cpu":1.0}}`,
		422: `{"exception_message":"Invalid request received.","exception_detail":[{"loc":["body","state"],"msg":"Field required"}]}`,
		404: `{"detail":"Flow run not found"}`,
		409: `[]`,
	} {
		f.Add(status, body)
	}
	type answer struct {
		status int
		body   string
	}
	var next atomic.Pointer[answer]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		a := next.Load()
		w.WriteHeader(a.status)
		_, _ = w.Write([]byte(a.body))
	}))
	f.Cleanup(server.Close)
	transport := &http.Transport{}
	f.Cleanup(transport.CloseIdleConnections)
	client, err := prefect.New(prefect.Config{APIURL: server.URL + "/api", RequestsPerMinute: 1 << 30, HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		// Those outside are repeated, or no status that a server of Go's can send as an answer.
		if status < 200 || status > 499 || status == http.StatusRequestTimeout || status == http.StatusTooManyRequests {
			return
		}
		next.Store(&answer{status, body})
		ours := func(err error) {
			var e *flowrun.Error
			if err != nil && !errors.As(err, &e) {
				t.Errorf("status %d, %q: %v is not an error of ours", status, body, err)
			}
		}
		fr, err := client.FlowRun(t.Context(), id)
		ours(err)
		_ = fr.RetryType()
		_, err = client.SetState(t.Context(), id, prefect.Proposal{Type: flowrun.StatePending})
		ours(err)
		_, err = client.FlowRunStates(t.Context(), id)
		ours(err)
		_, err = client.ScheduledFlowRuns(t.Context(), "p", fr.Created, 1)
		ours(err)
	})
}
