package prefecttest_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// limited holds that Limited is what makes it needed to ask which flow runs may start.
func limited(t *testing.T, p *prefectServer) {
	for name, tt := range map[string]struct {
		pool, queue map[string]any
		want        bool
	}{
		"a plain pool":       {want: false},
		"a pool's limit":     {pool: map[string]any{"concurrency_limit": 5}, want: true},
		"a paused pool":      {pool: map[string]any{"is_paused": true}, want: true},
		"a queue's limit":    {queue: map[string]any{"concurrency_limit": 5}, want: true},
		"a paused queue":     {queue: map[string]any{"is_paused": true}, want: true},
		"a queue's priority": {queue: map[string]any{"priority": 1}, want: false},
	} {
		p.rule(t, "Limited of "+name+" tells: "+strconv.FormatBool(tt.want), func(t *testing.T) {
			pool := p.newPool(t)
			path := "/work_pools/" + url.PathEscape(pool)
			if tt.pool != nil {
				p.admin(t, http.MethodPatch, path, tt.pool, nil)
			}
			if tt.queue != nil {
				tt.queue["name"] = "another"
				p.admin(t, http.MethodPost, path+"/queues", tt.queue, nil)
			}
			if got, err := p.Limited(t.Context(), pool); got != tt.want || err != nil {
				t.Errorf("got %t and %v, want %t", got, err, tt.want)
			}
		})
	}
}

// step is an act, after which a work pool's flow runs of these names may start.
type step struct {
	rule string
	act  func(*testing.T)
	want []string
}

// steps takes one step after the other, of which each is a rule.
func (p *prefectServer) steps(t *testing.T, pool string, steps []step) {
	for _, s := range steps {
		p.rule(t, s.rule, func(t *testing.T) {
			if s.act != nil {
				s.act(t)
			}
			if diff := cmp.Diff(s.want, p.startable(t, pool)); diff != "" {
				t.Errorf("startable (-want +got):\n%s", diff)
			}
		})
	}
}

// changed returns an act that changes fields of the object at path.
func (p *prefectServer) changed(path string, fields map[string]any) func(*testing.T) {
	return func(t *testing.T) { p.done(t, http.MethodPatch, path, fields) }
}

// poolLimit holds that the scheduled query, and only it, keeps a pool's limit and pause.
func poolLimit(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	path := "/work_pools/" + url.PathEscape(d.WorkPoolName)
	base := time.Now().Add(-time.Hour)
	ids := map[string]string{}
	for i := range 3 {
		at := base.Add(time.Duration(i) * time.Minute)
		name := fmt.Sprint(i)
		ids[name] = p.create(t, d.ID, prefect.NewFlowRun{Name: name, ScheduledTime: &at}).ID
	}
	later := time.Now().Add(time.Hour)
	p.create(t, d.ID, prefect.NewFlowRun{Name: "not due", ScheduledTime: &later})
	p.steps(t, d.WorkPoolName, []step{
		{"without a limit all that are due may start, oldest first", nil, []string{"0", "1", "2"}},
		{"a pool's limit of 0 holds all back", p.changed(path, map[string]any{"concurrency_limit": 0}), []string{}},
		{"a pool's limit of 1 lets one go", p.changed(path, map[string]any{"concurrency_limit": 1}), []string{"0"}},
		{"to tell what may start does not claim it", nil, []string{"0"}},
		{"a flow run that is PENDING takes the pool's limit", func(t *testing.T) { p.set(t, ids["0"], prefect.Proposal{Type: pending}) }, []string{}},
		{"a pool's limit does not keep from claiming", func(t *testing.T) {
			if a := p.set(t, ids["1"], prefect.Proposal{Type: pending}); a.Status != prefect.StatusAccept {
				t.Errorf("PENDING beyond the limit: %s", a.Status)
			}
			p.set(t, ids["1"], prefect.Proposal{Type: completed})
		}, []string{}},
		{"a flow run that is CANCELLING does not take the pool's limit", func(t *testing.T) { p.set(t, ids["0"], prefect.Proposal{Type: cancelling}) }, []string{"2"}},
		{"a paused pool starts nothing", p.changed(path, map[string]any{"is_paused": true}), []string{}},
		{"a pool that goes on starts what waited", p.changed(path, map[string]any{"is_paused": false, "concurrency_limit": nil}), []string{"2"}},
	})
}

// queues holds a queue's priority, limit and pause.
func queues(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	path := "/work_pools/" + url.PathEscape(d.WorkPoolName) + "/queues"
	p.done(t, http.MethodPost, path, map[string]any{"name": "high", "priority": 1})
	at := time.Now().Add(-time.Hour)
	for _, n := range []prefect.NewFlowRun{{Name: "low", WorkQueue: "low"}, {Name: "default"}, {Name: "high", WorkQueue: "high"}, {Name: "low, first", WorkQueue: "low", ScheduledTime: &at}} {
		p.create(t, d.ID, n)
	}
	p.steps(t, d.WorkPoolName, []step{
		{"a queue's priority goes before time", nil, []string{"high", "default", "low, first", "low"}},
		{"a queue's limit of 1 lets one of it go", p.changed(path+"/low", map[string]any{"concurrency_limit": 1}), []string{"high", "default", "low, first"}},
		{"a queue's limit of 0 holds all of it back", p.changed(path+"/low", map[string]any{"concurrency_limit": 0}), []string{"high", "default"}},
		{"a paused queue starts nothing, and the others do", p.changed(path+"/high", map[string]any{"is_paused": true}), []string{"default"}},
	})
	p.rule(t, "queues are listed with priority, limit and pause; one that a flow run names is made", func(t *testing.T) {
		all, err := p.WorkQueues(t.Context(), d.WorkPoolName)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]any{}
		for _, q := range all {
			got[q.Name] = []any{q.Priority, q.IsPaused, q.ConcurrencyLimit != nil}
		}
		want := map[string][]any{"high": {1, true, false}, "default": {2, false, false}, "low": {3, false, true}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("queues: priority, paused, limited (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "to ask what may start counts as a poll of the queues", func(t *testing.T) {
		// A server notes that after it has answered, and not where another writer keeps it from it.
		eventually(t, "it does not", func() bool {
			p.startable(t, d.WorkPoolName)
			var now []prefect.WorkQueue
			p.admin(t, http.MethodPost, path+"/filter", map[string]any{}, &now)
			return len(now) == 3 && !slices.ContainsFunc(now, func(q prefect.WorkQueue) bool { return q.LastPolled == nil })
		})
	})
}

// freeSlots holds how many slots a pool and its queues have left, as the server tells, or as its flow runs show.
func freeSlots(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	path := "/work_pools/" + url.PathEscape(d.WorkPoolName)
	p.done(t, http.MethodPost, path+"/queues", map[string]any{"name": "narrow", "concurrency_limit": 1})
	var wide, narrow []prefect.FlowRun
	for range 3 {
		wide = append(wide, p.create(t, d.ID, prefect.NewFlowRun{}))
		narrow = append(narrow, p.create(t, d.ID, prefect.NewFlowRun{WorkQueue: "narrow"}))
	}
	for _, taken := range []struct {
		rule         string
		take         prefect.FlowRun
		limit        int
		wide, narrow int
	}{
		{"a flow run that is PENDING takes a slot that the pool has left", wide[0], 2, 1, 1},
		{"a flow run that is PENDING takes a slot that its queue has left, too", narrow[0], 4, 2, 0},
	} {
		p.rule(t, taken.rule, func(t *testing.T) {
			p.done(t, http.MethodPatch, path, map[string]any{"concurrency_limit": taken.limit})
			p.set(t, taken.take.ID, prefect.Proposal{Type: pending})
			slots, err := p.FreeSlots(t.Context(), d.WorkPoolName)
			if err != nil {
				t.Fatal(err)
			}
			if w, n := len(slots.Take(wide[1:])), len(slots.Take(narrow[1:])); w != taken.wide || n != taken.narrow {
				t.Errorf("there are slots for %d and for %d in the narrow queue, want %d and %d", w, n, taken.wide, taken.narrow)
			}
		})
	}
}

// deploymentLimit holds what a deployment's limit does, where servers have one.
func deploymentLimit(t *testing.T, p *prefectServer) {
	if !expected[bool](p, limitHolds) {
		return
	}
	deploymentSlots(t, p)
	p.rule(t, "PENDING with a time of its own starts at once", func(t *testing.T) { slotSooner(t, p) })
	line(t, p)
	p.rule(t, slotIsLeased, func(t *testing.T) {
		one := 1
		f := p.create(t, p.deploy(t, prefect.NewDeployment{ConcurrencyLimit: &one}).ID, prefect.NewFlowRun{})
		leased := p.set(t, f.ID, prefect.Proposal{Type: pending}).State.Details.DeploymentConcurrencyLeaseID != ""
		if want := expected[bool](p, slotIsLeased); leased != want {
			t.Errorf("leased %t, want %t", leased, want)
		}
	})
}

// deploymentSlots holds that a claim takes a slot of the deployment's limit, and what gives it back.
func deploymentSlots(t *testing.T, p *prefectServer) {
	one := 1
	d := p.deploy(t, prefect.NewDeployment{ConcurrencyLimit: &one})
	if !d.Limited() {
		t.Error("the deployment is not limited")
	}
	first, second, third := p.create(t, d.ID, prefect.NewFlowRun{}).ID, p.create(t, d.ID, prefect.NewFlowRun{}).ID, p.create(t, d.ID, prefect.NewFlowRun{}).ID
	later := time.Now().Add(time.Hour)
	accepts := func(typ flowrun.StateType, name string) outcome { return outcome{"ACCEPT", typ, name} }
	waits := outcome{"REJECT", scheduled, prefect.AwaitingSlot}
	for _, step := range []struct {
		rule     string
		flowRun  string
		proposal prefect.Proposal
		want     outcome
		taken    int // slots, afterwards
	}{
		{"PENDING takes a slot of the deployment's limit", first, prefect.Proposal{Type: pending}, accepts(pending, "Pending"), 1},
		{limitHolds, second, prefect.Proposal{Type: pending}, waits, 1},
		{"PENDING may be proposed again while the flow run waits for a slot", second, prefect.Proposal{Type: pending}, waits, 1},
		{"putting back gives the slot back", first, prefect.Proposal{Type: scheduled, Name: "AwaitingCapacity", ScheduledTime: &later}, accepts(scheduled, "AwaitingCapacity"), 0},
		{"whoever asks first takes the free slot", third, prefect.Proposal{Type: pending}, accepts(pending, "Pending"), 1},
		{"RUNNING keeps the slot", third, prefect.Proposal{Type: running}, accepts(running, "Running"), 1},
		{"a flow run that waits is refused while another is RUNNING", second, prefect.Proposal{Type: pending}, waits, 1},
		{"CANCELLING keeps the slot", third, prefect.Proposal{Type: cancelling}, accepts(cancelling, "Cancelling"), 1},
		{"a flow run that waits is refused while another is CANCELLING", second, prefect.Proposal{Type: pending}, waits, 1},
		{"the end gives the slot back", third, prefect.Proposal{Type: cancelled}, accepts(cancelled, "Cancelled"), 0},
		{"a flow run that waited takes the slot that came free", second, prefect.Proposal{Type: pending}, accepts(pending, "Pending"), 1},
	} {
		p.rule(t, step.rule, func(t *testing.T) {
			a := p.set(t, step.flowRun, step.proposal)
			if diff := cmp.Diff(step.want, outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
				t.Fatal(diff)
			}
			read, err := p.Deployment(t.Context(), d.ID)
			if err != nil {
				t.Fatal(err)
			}
			if g := read.GlobalConcurrencyLimit; g == nil || g.Limit != 1 || g.ActiveSlots != step.taken {
				t.Errorf("the deployment shows %+v, want %d of 1 taken", g, step.taken)
			}
			if step.want != waits {
				return
			}
			if wait := a.State.Details.ScheduledTime.Sub(a.State.Timestamp); wait < 29*time.Second || wait > 31*time.Second {
				t.Errorf("told to wait %s, want about 30 s", wait)
			}
		})
	}
}

// slotSooner holds that a flow run that was told to wait for a slot need not wait for its time once
// it has one: PENDING that carries a time of its own keeps it.
func slotSooner(t *testing.T, p *prefectServer) {
	one := 1
	d := p.deploy(t, prefect.NewDeployment{ConcurrencyLimit: &one})
	first, second := p.create(t, d.ID, prefect.NewFlowRun{}).ID, p.create(t, d.ID, prefect.NewFlowRun{}).ID
	for _, id := range []string{first, second} {
		p.set(t, id, prefect.Proposal{Type: pending})
	}
	p.set(t, first, prefect.Proposal{Type: completed})
	at := time.Now().Add(-time.Second)
	p.set(t, second, prefect.Proposal{Type: pending, ScheduledTime: &at})
	if a := p.set(t, second, prefect.Proposal{Type: running}); a.Status != prefect.StatusAccept {
		t.Errorf("RUNNING is answered with %s, %s", a.Status, a.Delay)
	}
}

// line holds what waking a deployment's line builds on.
func line(t *testing.T, p *prefectServer) {
	one := 1
	d := p.deploy(t, prefect.NewDeployment{ConcurrencyLimit: &one})
	var ids []string
	for range 3 {
		ids = append(ids, p.create(t, d.ID, prefect.NewFlowRun{}).ID)
	}
	claimed := time.Now()
	for _, n := range []int{0, 2, 1} {
		p.set(t, ids[n], prefect.Proposal{Type: pending})
	}
	waiting, err := p.FlowRuns(t.Context(), prefect.Filter{
		WorkPools: []string{d.WorkPoolName}, DeploymentIDs: []string{d.ID}, StateTypes: []prefect.StateType{scheduled},
		ScheduledBefore: time.Now().Add(35 * time.Second), Sort: prefect.OldestFirst,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.rule(t, "those that wait for a slot are listed with their state, the oldest first whatever the order of their claims", func(t *testing.T) {
		var got []string
		for _, fr := range waiting {
			got = append(got, fr.ID)
			if fr.StateName != prefect.AwaitingSlot || fr.State == nil || fr.State.ID != fr.StateID || fr.WorkQueueID == "" {
				t.Errorf("flow run %s is listed as %s, with state %+v, of queue %q", fr.ID, fr.StateName, fr.State, fr.WorkQueueID)
			}
		}
		if diff := cmp.Diff(ids[1:], got); diff != "" {
			t.Errorf("the line (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "those that wait for a slot are not among those that may start", func(t *testing.T) {
		if may, err := p.ScheduledFlowRuns(t.Context(), d.WorkPoolName, claimed, 10); err != nil || len(may) > 0 {
			t.Errorf("%d flow runs may start (%v)", len(may), err)
		}
	})
}

// pool holds what makes a pool READY: a worker's heartbeat, and not a query.
func pool(t *testing.T, p *prefectServer) {
	name := p.newPool(t)
	is := func(want string) func(*testing.T) {
		return func(t *testing.T) {
			var got struct{ Status string }
			if p.admin(t, http.MethodGet, "/work_pools/"+url.PathEscape(name), nil, &got); got.Status != want {
				t.Errorf("status %s, want %s", got.Status, want)
			}
		}
	}
	p.startable(t, name)
	p.rule(t, "to ask what may start leaves a pool NOT_READY", is("NOT_READY"))
	if err := p.Heartbeat(t.Context(), name, "pushpool", 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	p.rule(t, "a worker's heartbeat makes a pool READY", is("READY"))
	p.rule(t, "a pool's name that Prefect keeps for itself is refused", func(t *testing.T) {
		wantFault(t, p.CreateWorkPool(t.Context(), "Prefect pool", "process", nil), flowrun.Refused)
	})
}
