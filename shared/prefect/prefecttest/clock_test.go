package prefecttest_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// clock is a server's clock that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// offset is a clock that goes on by itself, and that a test moves forward.
type offset struct {
	mu sync.Mutex
	by time.Duration
}

func (o *offset) Now() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Now().Add(o.by)
}

func (o *offset) forward(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.by += d
}

// atClock starts a stand-in whose time and background services the test moves.
func atClock(t *testing.T) (*prefectServer, *prefecttest.Server, *clock) {
	c := &clock{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	s := prefecttest.New(prefecttest.Options{Now: c.Now})
	t.Cleanup(s.Close)
	p := &prefectServer{url: s.URL(), http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	var err error
	if p.Client, err = prefect.New(p.config()); err != nil {
		t.Fatal(err)
	}
	return p, s, c
}

func (p *prefectServer) wantState(t *testing.T, rule, flowRunID, name string) {
	t.Helper()
	f, err := p.FlowRun(t.Context(), flowRunID)
	if err != nil {
		t.Fatal(err)
	}
	if f.StateName != name {
		t.Errorf("%s: state %s, want %s", rule, f.StateName, name)
	}
}

// TestLate holds that only what is named Scheduled becomes Late, 15 s after its time.
func TestLate(t *testing.T) {
	p, s, c := atClock(t)
	d := p.deploy(t, prefect.NewDeployment{})
	plain, back := p.create(t, d.ID, prefect.NewFlowRun{}).ID, p.create(t, d.ID, prefect.NewFlowRun{}).ID
	p.set(t, back, prefect.Proposal{Type: pending})
	p.set(t, back, prefect.Proposal{Type: scheduled, Name: "AwaitingCapacity"})
	c.forward(14 * time.Second)
	s.Tick()
	p.wantState(t, "14 s after its time", plain, "Scheduled")
	c.forward(2 * time.Second)
	s.Tick()
	p.wantState(t, "16 s after its time", plain, "Late")
	p.wantState(t, "put back", back, "AwaitingCapacity")
}

// TestCancellationTimesOut holds that a server ends by itself what stays CANCELLING for 5 minutes.
func TestCancellationTimesOut(t *testing.T) {
	p, s, c := atClock(t)
	f := p.create(t, p.deploy(t, prefect.NewDeployment{}).ID, prefect.NewFlowRun{}).ID
	p.set(t, f, prefect.Proposal{Type: pending})
	p.set(t, f, prefect.Proposal{Type: cancelling})
	c.forward(5 * time.Minute)
	s.Tick()
	p.wantState(t, "for 5 minutes", f, "Cancelling")
	c.forward(time.Second)
	s.Tick()
	p.wantState(t, "for longer", f, "Cancelled")
}

// TestLease holds that a slot is lost to another flow run 5 minutes after the claim, unless it is renewed.
func TestLease(t *testing.T) {
	one := 1
	for name, tt := range map[string]struct {
		renew bool
		taken bool // by another flow run
		want  outcome
	}{
		"renewed":          {renew: true, taken: false, want: outcome{"ACCEPT", running, "Running"}},
		"lost, and free":   {want: outcome{"ACCEPT", running, "Running"}},
		"lost to another":  {taken: true, want: outcome{"REJECT", cancelled, "Cancelled"}},
		"renewed in vain?": {renew: true, taken: true, want: outcome{"ACCEPT", running, "Running"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, _, c := atClock(t)
			d := p.deploy(t, prefect.NewDeployment{ConcurrencyLimit: &one})
			first, second := p.create(t, d.ID, prefect.NewFlowRun{}).ID, p.create(t, d.ID, prefect.NewFlowRun{}).ID
			a := p.set(t, first, prefect.Proposal{Type: pending})
			renewal := "/v2/concurrency_limits/leases/" + a.State.Details.DeploymentConcurrencyLeaseID + "/renew"
			c.forward(4 * time.Minute)
			if tt.renew && p.admin(t, http.MethodPost, renewal, map[string]any{"lease_duration": 600}, nil) != http.StatusNoContent {
				t.Error("the lease is not renewed")
			}
			c.forward(2 * time.Minute)
			if tt.taken {
				if a := p.set(t, second, prefect.Proposal{Type: pending}); (a.Status == prefect.StatusAccept) == tt.renew {
					t.Errorf("the second claim: %s", a.Status)
				}
			}
			if !tt.renew && p.admin(t, http.MethodPost, renewal, map[string]any{"lease_duration": 600}, nil) != http.StatusGone {
				t.Error("a lease that is over is renewed")
			}
			a = p.set(t, first, prefect.Proposal{Type: running})
			if diff := cmp.Diff(tt.want, outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
				t.Errorf("RUNNING (-want +got):\n%s", diff)
			}
		})
	}
}

// TestALeaseRenewedLateIsKept holds that a flow run that is RUNNING keeps its slot after a renewal that was
// sent while it was PENDING.
func TestALeaseRenewedLateIsKept(t *testing.T) {
	one := 1
	p, _, c := atClock(t)
	d := p.deploy(t, prefect.NewDeployment{ConcurrencyLimit: &one})
	first, second := p.create(t, d.ID, prefect.NewFlowRun{}).ID, p.create(t, d.ID, prefect.NewFlowRun{}).ID
	a := p.set(t, first, prefect.Proposal{Type: pending})
	p.set(t, first, prefect.Proposal{Type: running})
	if err := p.RenewLease(t.Context(), a.State.Details.DeploymentConcurrencyLeaseID, 5*time.Minute); err != nil {
		t.Error(err)
	}
	c.forward(time.Hour)
	if a := p.set(t, second, prefect.Proposal{Type: pending}); a.Status != prefect.StatusReject {
		t.Errorf("the second claim: %s", a.Status)
	}
}

// TestEventsOfSchedules holds that a flow run of a schedule is first told of when it is late, and a
// quarter of an hour after that if it was created less than 5 minutes before.
func TestEventsOfSchedules(t *testing.T) {
	told := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		told <- string(body)
	}))
	defer receiver.Close()
	p, s, c := atClock(t)
	d := p.deploy(t, prefect.NewDeployment{Schedules: []prefect.Schedule{{Interval: 4 * time.Minute}}})
	if err := p.EnsureWebhook(t.Context(), prefect.WebhookSetup{BlockName: "b", AutomationName: "a", URL: receiver.URL, Secret: "s", WorkPools: []string{d.WorkPoolName}}); err != nil {
		t.Fatal(err)
	}
	s.Tick()
	ahead, err := p.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{d.ID}})
	if err != nil || len(ahead) < 15 {
		t.Fatalf("%d flow runs laid ahead, error %v, want those of an hour", len(ahead), err)
	}
	next := func(rule string, of prefect.FlowRun) {
		t.Helper()
		select {
		case got := <-told:
			if !strings.Contains(got, "prefect.flow-run."+of.ID) || !strings.Contains(got, `"state_name":"Late"`) {
				t.Errorf("%s: told %s, want Late of %s", rule, got, of.ID)
			}
		case <-time.After(10 * time.Second):
			t.Fatal(rule + ": not told")
		}
	}
	c.forward(4*time.Minute + 16*time.Second)
	s.Tick() // the first is late; its event follows one that there never was
	c.forward(4 * time.Minute)
	s.Tick()
	next("created more than 5 minutes before", ahead[1])
	c.forward(11*time.Minute + time.Second)
	s.Tick() // the next two are late, and the first is let go
	got := map[string]bool{}
	for range 3 {
		select {
		case body := <-told:
			for i, f := range ahead[:5] {
				if strings.Contains(body, f.ID) {
					got[ahead[i].ID] = true
				}
			}
		case <-time.After(10 * time.Second):
			t.Fatal("not told")
		}
	}
	if !got[ahead[0].ID] {
		t.Errorf("told of %v, the first flow run %s not among them", got, ahead[0].ID)
	}
}
