package prefect_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// start starts a stand-in and returns a client of it, with a deployment.
func start(t *testing.T, o prefecttest.Options, change ...func(*prefect.Config)) (*prefect.Client, prefect.Deployment) {
	t.Helper()
	s := prefecttest.New(o)
	t.Cleanup(s.Close)
	cfg := prefect.Config{
		APIURL: s.URL(), APIKey: o.APIKey, AuthString: o.AuthString, RequestsPerMinute: 60_000,
		HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	for _, c := range change {
		c(&cfg)
	}
	c, err := prefect.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreateWorkPool(t.Context(), "etl", "cloud-run-v2", nil); err != nil {
		t.Fatal(err)
	}
	f, err := c.CreateFlow(t.Context(), "flow")
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.CreateDeployment(t.Context(), prefect.NewDeployment{FlowID: f.ID, Name: "prod", WorkPool: "etl"})
	if err != nil {
		t.Fatal(err)
	}
	return c, d
}

// TestCredentials holds that each kind of server lets in whoever has its credential, and no other.
func TestCredentials(t *testing.T) {
	for name, o := range map[string]prefecttest.Options{
		"auth string": {AuthString: "admin:pa:ss"}, "API key": {APIKey: "pnu_1"}, "CSRF": {CSRF: true}, "CSRF and auth string": {CSRF: true, AuthString: "a:b"},
	} {
		t.Run(name, func(t *testing.T) {
			c, d := start(t, o)
			if _, err := c.DeploymentByName(t.Context(), "flow/prod"); err != nil {
				t.Error(err)
			}
			if _, _, err := c.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{}); err != nil {
				t.Error(err)
			}
		})
	}
	s := prefecttest.New(prefecttest.Options{AuthString: "admin:right"})
	defer s.Close()
	c, err := prefect.New(prefect.Config{APIURL: s.URL(), AuthString: "admin:wrong", HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.WorkPool(t.Context(), "etl"); flowrun.FaultOf(err) != flowrun.Refused {
		t.Errorf("a wrong auth string: %v", err)
	}
}

// TestCSRFTokenIsSharedAndRenewed holds that calls refused together for an expired token fetch one new token, which serves them all.
func TestCSRFTokenIsSharedAndRenewed(t *testing.T) {
	const together = 10
	var fetched, expired atomic.Int32
	var arrived sync.WaitGroup
	c, d := start(t, prefecttest.Options{CSRF: true, Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/csrf-token") {
			fetched.Add(1)
		} else if expired.Add(-1) >= 0 {
			r.Header.Set("Prefect-Csrf-Token", "expired")
			arrived.Done()
			arrived.Wait() // so that all were sent with the same token
		}
		next.ServeHTTP(w, r)
	}})
	if got := fetched.Load(); got != 1 {
		t.Errorf("%d tokens fetched for the first changes, want 1", got)
	}
	arrived.Add(together)
	expired.Store(together)
	var g errgroup.Group
	for range together {
		g.Go(func() error { _, _, err := c.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{}); return err })
	}
	if err := g.Wait(); err != nil || fetched.Load() != 2 {
		t.Errorf("error %v, %d tokens fetched, want 2", err, fetched.Load())
	}
}

// TestLostAnswer holds that a proposal whose answer is lost is Unclear, and recognised when proposed again.
func TestLostAnswer(t *testing.T) {
	var lose atomic.Bool
	c, d := start(t, prefecttest.Options{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, "/set_state") || !lose.CompareAndSwap(true, false) {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}})
	f, _, err := c.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{})
	if err != nil {
		t.Fatal(err)
	}
	claim := prefect.Proposal{Type: flowrun.StatePending, TransitionID: id}
	lose.Store(true)
	if _, err := c.SetState(t.Context(), f.ID, claim); err == nil || flowrun.FaultOf(err) != flowrun.Unclear {
		t.Fatalf("a lost answer: %v, want one that is unclear", err)
	}
	a, err := c.SetState(t.Context(), f.ID, claim)
	if err != nil || a.Status != prefect.StatusReject || a.State.Details.TransitionID != id {
		t.Errorf("proposed again: %+v and %v, want REJECT with the claim's own state", a, err)
	}
}

// TestMissingSlash holds that a redirect within the server keeps method and body.
func TestMissingSlash(t *testing.T) {
	c, _ := start(t, prefecttest.Options{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/api/flows/" && r.URL.RawQuery == "" {
			w.Header().Set("Location", "/api/flows/?again")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return
		}
		next.ServeHTTP(w, r)
	}})
	if f, err := c.CreateFlow(t.Context(), "other"); err != nil || f.Name != "other" {
		t.Errorf("flow %+v, error %v", f, err)
	}
}

// TestOnCall holds that every attempt is told.
func TestOnCall(t *testing.T) {
	type told struct {
		method, path string
		status       int
	}
	var calls []told
	_, d := start(t, prefecttest.Options{}, func(c *prefect.Config) {
		c.OnCall = func(method, path string, status int, _ time.Duration) {
			calls = append(calls, told{method, path, status})
		}
	})
	if want := (told{http.MethodPost, "/deployments/", http.StatusCreated}); len(calls) != 3 || calls[2] != want {
		t.Errorf("told %v for deployment %s, want %v last", calls, d.ID, want)
	}
}

// TestNoAutomations holds that a server without them is told from one that has not got this one.
func TestNoAutomations(t *testing.T) {
	c, _ := start(t, prefecttest.Options{Version: "2", NoEvents: true})
	err := c.EnsureWebhook(t.Context(), prefect.WebhookSetup{BlockName: "b", AutomationName: "a", URL: "http://127.0.0.1:1", WorkPools: []string{"etl"}})
	if err == nil || flowrun.FaultOf(err) != flowrun.Permanent || !strings.Contains(err.Error(), "PREFECT_EXPERIMENTAL_EVENTS=true") {
		t.Errorf("got %v, want one that says how to switch automations on", err)
	}
}

// TestWebhookSetupIsChecked holds that a setup that would match the wrong flow runs is refused.
func TestWebhookSetupIsChecked(t *testing.T) {
	c, _ := start(t, prefecttest.Options{})
	for name, pools := range map[string][]string{"no pool": nil, "all but one": {"!etl"}, "a pattern": {"etl*"}} {
		t.Run(name, func(t *testing.T) {
			err := c.EnsureWebhook(t.Context(), prefect.WebhookSetup{BlockName: "b", AutomationName: "a", URL: "http://127.0.0.1:1", WorkPools: pools})
			if err == nil || flowrun.FaultOf(err) != flowrun.Permanent {
				t.Errorf("got %v, want one that is permanent", err)
			}
		})
	}
}
