package prefecttest_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestContract holds the stand-in to what servers of 2.20 and 3.x do.
func TestContract(t *testing.T) {
	for name, version := range map[string]string{"2.20": "2", "3.x": "3"} {
		t.Run(name, func(t *testing.T) {
			s := prefecttest.New(prefecttest.Options{Version: version, Scheduler: true})
			t.Cleanup(s.Close)
			contract(t, s.URL())
		})
	}
}

// TestContractOfRealServer shows that the contract is Prefect's and not our own.
func TestContractOfRealServer(t *testing.T) {
	url := os.Getenv("PUSHPOOL_TEST_PREFECT")
	switch {
	case url == "" && os.Getenv("CI") == "true":
		t.Fatal("PUSHPOOL_TEST_PREFECT is not set; start a Prefect server and set it to the URL of its API, ending in /api")
	case url == "":
		t.Skip("set PUSHPOOL_TEST_PREFECT to the URL of a Prefect server's API, ending in /api, to hold that server to the contract")
	}
	contract(t, url)
}

func contract(t *testing.T, url string) {
	client, err := prefect.New(prefect.Config{
		APIURL: url, RequestsPerMinute: 60_000, Timeout: time.Minute, // a busy SQLite server can take long
		HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &prefectServer{Client: client, url: url}
	var version string
	p.admin(t, http.MethodGet, "/admin/version", nil, &version)
	p.v2 = strings.HasPrefix(version, "2.")
	for name, test := range map[string]func(*testing.T, *prefectServer){
		"transitions": transitions, "in-process retry": inProcessRetry, "history": history,
		"creation": creation, "job variables": jobVariables, "missing objects": missingObjects, "filter": filter,
		"limited": limited, "pool limit": poolLimit, "queues": queues, "deployment limit": deploymentLimit,
		"pool": pool, "schedules": schedules, "webhook": webhook, "records": records,
	} {
		t.Run(name, func(t *testing.T) { test(t, p) })
	}
}

// prefectServer is the server under test.
type prefectServer struct {
	*prefect.Client
	url string
	v2  bool
}

// admin makes a call that pushpool itself never makes. It returns the status; any but a refusal's fails the test.
func (p *prefectServer) admin(t *testing.T, method, path string, body, answer any) int {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if body == nil {
		data = nil
	}
	for {
		req, err := http.NewRequestWithContext(t.Context(), method, p.url+path, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		switch {
		case err != nil:
			t.Fatal(err)
		case resp.StatusCode == http.StatusServiceUnavailable: // SQLite has one writer at a time
			<-time.After(100 * time.Millisecond)
			continue
		case answer != nil:
			if err := json.Unmarshal(got, answer); err != nil {
				t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, got)
			}
		}
		return resp.StatusCode
	}
}

// propose proposes a state with what prefect.Proposal has no field for.
func (p *prefectServer) propose(t *testing.T, flowRunID string, body map[string]any) prefect.Answer {
	t.Helper()
	var a prefect.Answer
	if status := p.admin(t, http.MethodPost, "/flow_runs/"+flowRunID+"/set_state", body, &a); status/100 != 2 {
		t.Fatalf("set_state: status %d", status)
	}
	return a
}

// deploy creates a deployment in a work pool of its own.
func (p *prefectServer) deploy(t *testing.T, n prefect.NewDeployment) prefect.Deployment {
	t.Helper()
	if n.WorkPool == "" {
		n.WorkPool = p.newPool(t)
	}
	f, err := p.CreateFlow(t.Context(), "flow "+uuid.NewString())
	if err != nil {
		t.Fatal(err)
	}
	n.FlowID, n.Name = f.ID, "prod"
	d, err := p.CreateDeployment(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (p *prefectServer) newPool(t *testing.T) string {
	t.Helper()
	name := "pool " + uuid.NewString()
	if err := p.CreateWorkPool(t.Context(), name, "cloud-run-v2", nil); err != nil {
		t.Fatal(err)
	}
	return name
}

func (p *prefectServer) create(t *testing.T, deploymentID string, n prefect.NewFlowRun) prefect.FlowRun {
	t.Helper()
	f, _, err := p.CreateFlowRun(t.Context(), deploymentID, n)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (p *prefectServer) set(t *testing.T, flowRunID string, proposal prefect.Proposal) prefect.Answer {
	t.Helper()
	a, err := p.SetState(t.Context(), flowRunID, proposal)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// startable returns the names of the flow runs that the pool may start now.
func (p *prefectServer) startable(t *testing.T, pool string) []string {
	t.Helper()
	flowRuns, err := p.ScheduledFlowRuns(t.Context(), pool, time.Now().Add(time.Minute), 10)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, f := range flowRuns {
		if f.State != nil || f.WorkPoolName != pool {
			t.Errorf("flow run %s: State %v and work pool %q, want none and %q", f.Name, f.State, f.WorkPoolName, pool)
		}
		names = append(names, f.Name)
	}
	return names
}

func wantFault(t *testing.T, err error, want flowrun.Fault) {
	t.Helper()
	if err == nil || flowrun.FaultOf(err) != want {
		t.Errorf("got error %v, want one that is %s", err, want)
	}
}

// eventually asks until the server's background services have done it.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !done() {
		select {
		case <-deadline:
			t.Fatal(what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
