package prefect_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
		202: `[{"id":"` + id + `","name":"default","priority":1,"is_paused":false,"concurrency_limit":2,"active_slots":1,"state_type":"SCHEDULED"}]`,
		203: `{"id":"` + id + `","name":"p","concurrency_limit":1,"base_job_template":{"variables":{}},"job_variables":{},"global_concurrency_limit":{"limit":1,"active_slots":2}}`,
		206: `{"id":"` + id + `","name":"v","value":{"a":[1.0,null]},"data":{"value":"********","l":[1]},"block_type":{"slug":"secret"}}`,
		207: `[{"id":"` + id + `","fields":{"properties":{"url":{}}},"enabled":false,"trigger":{"match":{"a":["b"]}},"actions":[{"payload":"p"}]}]`,
		208: `{"prefect-gcp":{"cloud-run-v2":{"default_base_job_configuration":{"job_configuration":{}}}}}`,
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
	cfg := prefect.Config{APIURL: server.URL + "/api", RequestsPerMinute: 1 << 30, HTTPClient: &http.Client{Transport: transport}}
	f.Fuzz(func(t *testing.T, status int, body string) {
		// Those outside are repeated, or no status that a server of Go's can send as an answer.
		if status < 200 || status > 499 || status == http.StatusRequestTimeout || status == http.StatusTooManyRequests {
			return
		}
		next.Store(&answer{status, body})
		client, err := prefect.New(cfg) // whose caches are empty
		if err != nil {
			t.Fatal(err)
		}
		for act, call := range map[string]func(context.Context) error{
			"flow run": func(ctx context.Context) error {
				fr, err := client.FlowRun(ctx, id)
				_, _, _ = fr.RetryType(), fr.Due(), prefect.MayStartEarly(fr)
				return err
			},
			"set state": func(ctx context.Context) error {
				_, err := client.SetState(ctx, id, prefect.Proposal{Type: flowrun.StatePending})
				return err
			},
			"states": func(ctx context.Context) error { _, err := client.FlowRunStates(ctx, id); return err },
			"scheduled": func(ctx context.Context) error {
				_, err := client.ScheduledFlowRuns(ctx, "p", time.Time{}, 1)
				return err
			},
			"flow runs": func(ctx context.Context) error { _, err := client.FlowRuns(ctx, prefect.Filter{}); return err },
			"create flow run": func(ctx context.Context) error {
				_, _, err := client.CreateFlowRun(ctx, id, prefect.NewFlowRun{IdempotencyKey: "k"})
				return err
			},
			"flow": func(ctx context.Context) error { _, err := client.Flow(ctx, id); return err },
			"deployment": func(ctx context.Context) error {
				d, err := client.Deployment(ctx, id)
				_, _ = d.Limited(), d.CancelsNew()
				return err
			},
			"deployment by name": func(ctx context.Context) error { _, err := client.FindDeployment(ctx, "f/d"); return err },
			"deployments":        func(ctx context.Context) error { _, err := client.Deployments(ctx, "p"); return err },
			"limited":            func(ctx context.Context) error { _, err := client.Limited(ctx, "p"); return err },
			"free slots": func(ctx context.Context) error {
				slots, err := client.FreeSlots(ctx, "p")
				slots.Take([]prefect.FlowRun{{WorkQueueID: id}, {}})
				return err
			},
			"worker metadata": func(ctx context.Context) error {
				_, err := client.WorkerMetadataTemplate(ctx, "cloud-run-v2")
				return err
			},
			"block":       func(ctx context.Context) error { _, err := client.BlockDocument(ctx, "secret", "b"); return err },
			"block by id": func(ctx context.Context) error { _, err := client.BlockDocumentByID(ctx, id); return err },
			"variable":    func(ctx context.Context) error { _, _, err := client.Variable(ctx, "v"); return err },
			"webhook": func(ctx context.Context) error {
				return client.EnsureWebhook(ctx, prefect.WebhookSetup{BlockName: "b", AutomationName: "a", URL: "http://u/", WorkPools: []string{"p"}})
			},
			"automation": func(ctx context.Context) error { return client.SetAutomationEnabled(ctx, "a", true) },
			"logs":       func(ctx context.Context) error { _, err := client.Logs(ctx, id); return err },
			"artifacts":  func(ctx context.Context) error { _, err := client.Artifacts(ctx, id); return err },
			"version":    func(ctx context.Context) error { _, _, err := client.Version(ctx); return err },
		} {
			var e *flowrun.Error
			if err := call(t.Context()); err != nil && !errors.As(err, &e) {
				t.Errorf("%s: status %d, %q: %v is not an error of ours", act, status, body, err)
			}
		}
	})
}

// TestAListWithoutEndIsGivenUp holds that a server which ignores the offset is not asked for ever.
func TestAListWithoutEndIsGivenUp(t *testing.T) {
	page := "[" + strings.Repeat("{},", prefect.MaxPage-1) + "{}]"
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		_, _ = w.Write([]byte(page))
	}))
	t.Cleanup(server.Close)
	client, err := prefect.New(prefect.Config{
		APIURL: server.URL, RequestsPerMinute: 1 << 30, HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if all, err := client.Deployments(t.Context(), "p"); flowrun.FaultOf(err) != flowrun.Permanent || calls.Load() > 100 {
		t.Errorf("%d deployments after %d calls, error %v", len(all), calls.Load(), err)
	}
}
