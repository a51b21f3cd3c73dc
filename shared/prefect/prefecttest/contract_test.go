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

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a server may take for anything: real ones run on SQLite and on busy
// machines, and a rule is not broken by slowness.
const patience = 5 * time.Minute

// TestContract holds the stand-in to what servers of 2.20 and 3.x do.
func TestContract(t *testing.T) {
	rules := map[string]int{}
	for name, o := range map[string]prefecttest.Options{
		"2.20": {Version: "2"}, "2.20 without events": {Version: "2", NoEvents: true}, "3.x": {Version: "3"},
		"3.x with auth string and CSRF": {Version: "3", AuthString: "admin:pass", CSRF: true},
	} {
		t.Run(name, func(t *testing.T) {
			var c offset
			o.Scheduler, o.Now = true, c.Now
			s := prefecttest.New(o)
			t.Cleanup(s.Close)
			p := &prefectServer{url: s.URL(), authString: o.AuthString, noEvents: o.NoEvents, forward: c.forward, rules: map[string]int{}}
			contract(t, p)
			for rule, n := range p.rules {
				if n > 1 {
					t.Errorf("there are %d rules %q", n, rule)
				}
				if o.AuthString == "" { // as the servers of the page
					rules[rule] = n
				}
			}
		})
	}
	t.Run("docs/compatibility.md lists these rules", func(t *testing.T) {
		if diff := cmp.Diff(rules, listed(t)); diff != "" {
			t.Errorf("run scripts/prefect-compat --page (-the suite's rules +listed):\n%s", diff)
		}
	})
}

// listed returns the rules that docs/compatibility.md lists, as FEATURE: RULE.
func listed(t *testing.T) map[string]int {
	t.Helper()
	page, err := os.ReadFile("../../../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	found, feature := map[string]int{}, ""
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if heading, ok := strings.CutPrefix(line, "### "); ok {
			feature = heading
		}
		if rule, ok := strings.CutPrefix(line, "- "); ok && feature != "" {
			rule, _, _ = strings.Cut(rule, " **") // not kept by
			found[feature+": "+rule]++
		}
	}
	return found
}

// TestContractOfRealServer shows that the contract is Prefect's and not our own. The server under
// test is named by PUSHPOOL_TEST_PREFECT; PUSHPOOL_TEST_PREFECT_AUTH is its auth string, and
// PUSHPOOL_TEST_PREFECT_NO_EVENTS=true says that it was started without events.
func TestContractOfRealServer(t *testing.T) {
	url := os.Getenv("PUSHPOOL_TEST_PREFECT")
	if url == "" {
		t.Skip("set PUSHPOOL_TEST_PREFECT to the URL of a Prefect server's API, ending in /api, to hold that server to the contract")
	}
	contract(t, &prefectServer{
		url: url, authString: os.Getenv("PUSHPOOL_TEST_PREFECT_AUTH"), noEvents: os.Getenv("PUSHPOOL_TEST_PREFECT_NO_EVENTS") == "true",
		results: os.Getenv("PUSHPOOL_TEST_RESULTS"),
	})
}

func contract(t *testing.T, p *prefectServer) {
	p.http = &http.Client{Transport: &patient{&http.Transport{DisableKeepAlives: true}}, Timeout: patience}
	p.csrfClient = uuid.NewString()
	var err error
	if p.Client, err = prefect.New(p.config()); err != nil {
		t.Fatal(err)
	}
	p.admin(t, http.MethodGet, "/admin/version", nil, &p.version)
	late := lateness(t, p) // takes a while, so it is looked at last
	p.feature(t, "access", access)
	p.feature(t, "claims and reports", proposals)
	p.feature(t, "races", races)
	p.feature(t, "suspended flow runs", suspended)
	p.feature(t, "retries", retries)
	p.feature(t, "history", history)
	p.feature(t, "creation", creation)
	p.feature(t, "job variables", jobVariables)
	p.feature(t, "what is missing", missingObjects)
	p.feature(t, "deleted deployments", deletedDeployment)
	p.feature(t, "lists of flow runs", filter)
	p.feature(t, "what may start", limited)
	p.feature(t, "limits of work pools", poolLimit)
	p.feature(t, "limits of work queues", queues)
	p.feature(t, "free slots", freeSlots)
	p.feature(t, "limits of deployments", deploymentLimit)
	p.feature(t, "work pools", pool)
	p.feature(t, "schedules", schedules)
	p.feature(t, "events", events)
	p.feature(t, "records", records)
	p.feature(t, "lateness", late)
}

// prefectServer is the server under test.
type prefectServer struct {
	*prefect.Client
	url        string
	authString string
	noEvents   bool
	// forward moves the server's clock; nil for a real server, where time has to pass.
	forward func(time.Duration)
	results string         // a file
	rules   map[string]int // FEATURE: RULE, counted, where it is asked for
	version string
	under   string // the feature
	http    *http.Client

	csrfClient, csrfToken string
}

func (p *prefectServer) config() prefect.Config {
	return prefect.Config{APIURL: p.url, AuthString: p.authString, RequestsPerMinute: 60_000, Timeout: patience, HTTPClient: p.http}
}

// patient repeats what a server on SQLite refused because somebody else was writing.
type patient struct{ http.RoundTripper }

func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	for {
		resp, err := p.RoundTripper.RoundTrip(r)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable || r.GetBody == nil {
			return resp, err
		}
		_ = resp.Body.Close()
		r = r.Clone(r.Context())
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
}

// admin makes a call that pushpool itself never makes. It returns the status, and the answer where
// it is asked for.
func (p *prefectServer) admin(t *testing.T, method, path string, body, answer any) int {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if body == nil {
		data = nil
	}
	req, err := http.NewRequestWithContext(t.Context(), method, p.url+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if user, password, ok := strings.Cut(p.authString, ":"); ok {
		req.SetBasicAuth(user, password)
	}
	if p.csrfToken != "" && method != http.MethodGet {
		req.Header.Set("Prefect-Csrf-Client", p.csrfClient)
		req.Header.Set("Prefect-Csrf-Token", p.csrfToken)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusForbidden && p.csrfToken == "" && strings.Contains(string(got), "CSRF") {
		var token struct{ Token string }
		p.admin(t, http.MethodGet, "/csrf-token?client="+p.csrfClient, nil, &token)
		p.csrfToken = token.Token
		return p.admin(t, method, path, body, answer)
	}
	if answer != nil {
		if err := json.Unmarshal(got, answer); err != nil {
			t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, got)
		}
	}
	return resp.StatusCode
}

// done is admin for calls that only prepare something.
func (p *prefectServer) done(t *testing.T, method, path string, body any) {
	t.Helper()
	if status := p.admin(t, method, path, body, nil); status/100 != 2 {
		t.Fatalf("%s %s: status %d", method, path, status)
	}
}

// propose proposes a state with what prefect.Proposal has no field for.
func (p *prefectServer) propose(t *testing.T, flowRunID string, state map[string]any) prefect.Answer {
	t.Helper()
	var a prefect.Answer
	if status := p.admin(t, http.MethodPost, "/flow_runs/"+flowRunID+"/set_state", map[string]any{"state": state}, &a); status/100 != 2 {
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

// started creates a flow run and takes it to a state by way of those before.
func (p *prefectServer) started(t *testing.T, deploymentID string, by ...flowrun.StateType) prefect.FlowRun {
	t.Helper()
	f := p.create(t, deploymentID, prefect.NewFlowRun{})
	for _, typ := range by {
		if a := p.set(t, f.ID, prefect.Proposal{Type: typ}); a.Status != prefect.StatusAccept {
			t.Fatalf("%s before: %+v", typ, a)
		}
	}
	return f
}

func (p *prefectServer) set(t *testing.T, flowRunID string, proposal prefect.Proposal) prefect.Answer {
	t.Helper()
	a, err := p.SetState(t.Context(), flowRunID, proposal)
	if err != nil {
		t.Fatal(err)
	}
	if a.State == nil {
		t.Fatalf("the answer %+v has no state", a)
	}
	return a
}

func (p *prefectServer) read(t *testing.T, flowRunID string) prefect.FlowRun {
	t.Helper()
	f, err := p.FlowRun(t.Context(), flowRunID)
	if err != nil {
		t.Fatal(err)
	}
	return f
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
	deadline := time.After(patience)
	for !done() {
		select {
		case <-deadline:
			t.Fatal(what)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
