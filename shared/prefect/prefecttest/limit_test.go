package prefecttest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// limited holds that Limited is what makes it needed to ask which flow runs may start.
func limited(t *testing.T, p *prefectServer) {
	for name, tt := range map[string]struct {
		pool, queue map[string]any
		want        bool
	}{
		"nothing":            {want: false},
		"a pool's limit":     {pool: map[string]any{"concurrency_limit": 5}, want: true},
		"a paused pool":      {pool: map[string]any{"is_paused": true}, want: true},
		"a queue's limit":    {queue: map[string]any{"concurrency_limit": 5}, want: true},
		"a paused queue":     {queue: map[string]any{"is_paused": true}, want: true},
		"a queue's priority": {queue: map[string]any{"priority": 1}, want: false},
	} {
		t.Run(name, func(t *testing.T) {
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
	pool := func(fields map[string]any) func() {
		return func() { p.admin(t, http.MethodPatch, path, fields, nil) }
	}
	for _, step := range []struct {
		rule string
		act  func()
		want []string
	}{
		{"without a limit all that are due, oldest first", func() {}, []string{"0", "1", "2"}},
		{"a limit of 0 holds all back", pool(map[string]any{"concurrency_limit": 0}), []string{}},
		{"a limit of 1 lets one go", pool(map[string]any{"concurrency_limit": 1}), []string{"0"}},
		{"telling does not claim", func() {}, []string{"0"}},
		{"one that is PENDING takes the limit", func() { p.set(t, ids["0"], prefect.Proposal{Type: pending}) }, []string{}},
		{"the limit does not keep from claiming", func() {
			if a := p.set(t, ids["1"], prefect.Proposal{Type: pending}); a.Status != prefect.StatusAccept {
				t.Errorf("PENDING beyond the limit: %s", a.Status)
			}
			p.set(t, ids["1"], prefect.Proposal{Type: completed})
		}, []string{}},
		{"one that is CANCELLING does not take it", func() { p.set(t, ids["0"], prefect.Proposal{Type: cancelling}) }, []string{"2"}},
		{"a paused pool starts nothing", pool(map[string]any{"is_paused": true}), []string{}},
		{"one that goes on does", pool(map[string]any{"is_paused": false, "concurrency_limit": nil}), []string{"2"}},
	} {
		step.act()
		if diff := cmp.Diff(step.want, p.startable(t, d.WorkPoolName)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.rule, diff)
		}
	}
}

// queues holds a queue's priority, limit and pause.
func queues(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	path := "/work_pools/" + url.PathEscape(d.WorkPoolName) + "/queues"
	p.admin(t, http.MethodPost, path, map[string]any{"name": "high", "priority": 1}, nil)
	at := time.Now().Add(-time.Hour)
	for _, n := range []prefect.NewFlowRun{{Name: "low", WorkQueue: "low"}, {Name: "default"}, {Name: "high", WorkQueue: "high"}, {Name: "low, first", WorkQueue: "low", ScheduledTime: &at}} {
		p.create(t, d.ID, n)
	}
	queue := func(name string, fields map[string]any) func() {
		return func() { p.admin(t, http.MethodPatch, path+"/"+name, fields, nil) }
	}
	for _, step := range []struct {
		rule string
		act  func()
		want []string
	}{
		{"priority goes before time", func() {}, []string{"high", "default", "low, first", "low"}},
		{"a queue's limit", queue("low", map[string]any{"concurrency_limit": 1}), []string{"high", "default", "low, first"}},
		{"a queue's limit of 0", queue("low", map[string]any{"concurrency_limit": 0}), []string{"high", "default"}},
		{"a paused queue", queue("high", map[string]any{"is_paused": true}), []string{"default"}},
	} {
		step.act()
		if diff := cmp.Diff(step.want, p.startable(t, d.WorkPoolName)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.rule, diff)
		}
	}
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
	// A server notes that after it has answered, and not where another writer keeps it from it.
	eventually(t, "a query does not count as a poll of the queues", func() bool {
		p.startable(t, d.WorkPoolName)
		var now []prefect.WorkQueue
		p.admin(t, http.MethodPost, path+"/filter", map[string]any{}, &now)
		return len(now) == 3 && !slices.ContainsFunc(now, func(q prefect.WorkQueue) bool { return q.LastPolled == nil })
	})
}

// deploymentLimit holds what a deployment's limit does, where servers have one.
func deploymentLimit(t *testing.T, p *prefectServer) {
	if !expected[bool](p, limitHolds) {
		return
	}
	p.rule(t, limitHolds, func(t *testing.T) { deploymentSlots(t, p); slotSooner(t, p); line(t, p) })
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
	for _, step := range []struct {
		rule     string
		flowRun  string
		proposal prefect.Proposal
		want     outcome
	}{
		{"the first takes the slot", first, prefect.Proposal{Type: pending}, outcome{"ACCEPT", pending, "Pending"}},
		{"the second waits", second, prefect.Proposal{Type: pending}, outcome{"REJECT", scheduled, "AwaitingConcurrencySlot"}},
		{"and waits", second, prefect.Proposal{Type: pending}, outcome{"REJECT", scheduled, "AwaitingConcurrencySlot"}},
		{"put back", first, prefect.Proposal{Type: scheduled, Name: "AwaitingCapacity", ScheduledTime: &later}, outcome{"ACCEPT", scheduled, "AwaitingCapacity"}},
		{"the slot is free", third, prefect.Proposal{Type: pending}, outcome{"ACCEPT", pending, "Pending"}},
		{"kept while it runs", third, prefect.Proposal{Type: running}, outcome{"ACCEPT", running, "Running"}},
		{"so the second waits", second, prefect.Proposal{Type: pending}, outcome{"REJECT", scheduled, "AwaitingConcurrencySlot"}},
		{"kept while it is cancelled", third, prefect.Proposal{Type: cancelling}, outcome{"ACCEPT", cancelling, "Cancelling"}},
		{"so the second waits on", second, prefect.Proposal{Type: pending}, outcome{"REJECT", scheduled, "AwaitingConcurrencySlot"}},
		{"given back at the end", third, prefect.Proposal{Type: cancelled}, outcome{"ACCEPT", cancelled, "Cancelled"}},
		{"for the next", second, prefect.Proposal{Type: pending}, outcome{"ACCEPT", pending, "Pending"}},
	} {
		a := p.set(t, step.flowRun, step.proposal)
		if diff := cmp.Diff(step.want, outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", step.rule, diff)
		}
		read, err := p.Deployment(t.Context(), d.ID)
		if err != nil {
			t.Fatal(err)
		}
		taken := btoi(step.rule != "put back" && step.rule != "given back at the end")
		if g := read.GlobalConcurrencyLimit; g == nil || g.Limit != 1 || g.ActiveSlots != taken {
			t.Errorf("%s: the deployment shows %+v, want %d of 1 taken", step.rule, g, taken)
		}
		if a.State.Name == "AwaitingConcurrencySlot" {
			if wait := time.Until(*a.State.Details.ScheduledTime); wait < 20*time.Second || wait > 31*time.Second {
				t.Errorf("%s: told to wait %s, want about 30 s", step.rule, wait)
			}
		}
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

// line holds what waking a deployment's line builds on: those that were told to wait are listed
// with their state, the oldest first whatever the order of their claims, and not among those that
// may start; and the work pool tells how many slots it has left.
func line(t *testing.T, p *prefectServer) {
	one := 1
	d := p.deploy(t, prefect.NewDeployment{ConcurrencyLimit: &one})
	p.admin(t, http.MethodPatch, "/work_pools/"+url.PathEscape(d.WorkPoolName), map[string]any{"concurrency_limit": 2}, nil)
	var ids []string
	for range 3 {
		ids = append(ids, p.create(t, d.ID, prefect.NewFlowRun{}).ID)
	}
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
	if may, err := p.ScheduledFlowRuns(t.Context(), d.WorkPoolName, time.Now(), 10); err != nil || len(may) > 0 {
		t.Errorf("%d flow runs may start (%v)", len(may), err)
	}
	slots, err := p.FreeSlots(t.Context(), d.WorkPoolName)
	if err != nil {
		t.Fatal(err)
	}
	if take := slots.Take(waiting); len(take) != 1 || take[0].ID != ids[1] {
		t.Errorf("the pool of 2, with one taken, has slots for %d of those that wait", len(take))
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// pool holds what makes a pool READY: a worker's heartbeat, and not a query.
func pool(t *testing.T, p *prefectServer) {
	name := p.newPool(t)
	p.startable(t, name)
	var got struct{ Status string }
	path := "/work_pools/" + url.PathEscape(name)
	if p.admin(t, http.MethodGet, path, nil, &got); got.Status != "NOT_READY" {
		t.Errorf("status %s after a query, want NOT_READY", got.Status)
	}
	if err := p.Heartbeat(t.Context(), name, "pushpool", 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	if p.admin(t, http.MethodGet, path, nil, &got); got.Status != "READY" {
		t.Errorf("status %s after a heartbeat, want READY", got.Status)
	}
	wantFault(t, p.CreateWorkPool(t.Context(), "Prefect pool", "process", nil), flowrun.Refused)
}

// schedules holds that schedules lay flow runs ahead, and that pausing takes them away.
func schedules(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{
		Paused:    true,
		Schedules: []prefect.Schedule{{Interval: 30 * time.Minute}, {Cron: "0 3 * * *", Timezone: "Europe/Berlin"}, {Cron: "0 4 * * *", Inactive: true}},
	})
	ahead := func() []prefect.FlowRun {
		f, err := p.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{d.ID}, StateTypes: []flowrun.StateType{scheduled}})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if got := ahead(); len(got) != 0 {
		t.Errorf("%d flow runs of a paused deployment", len(got))
	}
	if err := p.SetDeploymentPaused(t.Context(), d.ID, false); err != nil {
		t.Fatal(err)
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the schedules make no flow runs", func() bool {
		atThree, others := map[time.Time]bool{}, map[time.Time]bool{}
		for _, f := range ahead() {
			if !f.AutoScheduled {
				t.Fatal("a flow run of a schedule is not marked so")
			}
			if at := f.NextScheduledStartTime.In(berlin); at.Hour() == 3 && at.Minute() == 0 && at.Second() == 0 && at.Nanosecond() == 0 {
				atThree[at] = true
			} else {
				others[at] = true
			}
		}
		return len(atThree) >= 3 && len(others) >= 3
	})
	if err := p.SetDeploymentPaused(t.Context(), d.ID, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pausing leaves flow runs", func() bool { return len(ahead()) == 0 })
	moved(t, p)
}

// moved holds what `pushpool migrate` builds on: a deployment that is moved to another work pool
// leaves what was asked for in the old one, what its schedule lays ahead is made anew in the new
// one under the same idempotency keys, and one that somebody else made under its key stays the only one.
func moved(t *testing.T, p *prefectServer) {
	from, to := p.newPool(t), p.newPool(t)
	d := p.deploy(t, prefect.NewDeployment{WorkPool: from, Schedules: []prefect.Schedule{{Interval: 20 * time.Minute}}})
	ahead := func(pool string) map[string]prefect.FlowRun {
		found, err := p.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{d.ID}, WorkPools: []string{pool}, StateTypes: []flowrun.StateType{scheduled}})
		if err != nil {
			t.Fatal(err)
		}
		byKey := map[string]prefect.FlowRun{}
		for _, f := range found {
			if _, twice := byKey[f.IdempotencyKey]; twice {
				t.Errorf("there are two flow runs of key %q", f.IdempotencyKey)
			}
			byKey[f.IdempotencyKey] = f
		}
		return byKey
	}
	eventually(t, "the schedule makes no flow runs", func() bool { return len(ahead(from)) >= 3 })
	before := ahead(from)
	later := time.Now().Add(time.Hour)
	p.create(t, d.ID, prefect.NewFlowRun{ScheduledTime: &later, IdempotencyKey: "asked"})
	if err := p.CreateWorkQueue(t.Context(), to, prefect.WorkQueue{Name: "urgent", Priority: 1}); err != nil {
		t.Fatal(err)
	}
	if err := p.MoveDeployment(t.Context(), d.ID, to, "urgent"); err != nil {
		t.Fatal(err)
	}
	if left := ahead(from); len(left) != 1 || left["asked"].ID == "" {
		t.Errorf("in the old work pool there are %d flow runs, of keys %v", len(left), slices.Collect(maps.Keys(left)))
	}
	var key string
	for key = range before {
		break
	}
	due := before[key].Due()
	ours, _, err := p.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{IdempotencyKey: key, ScheduledTime: &due})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the schedule makes no flow runs in the new work pool", func() bool { return len(ahead(to)) >= len(before) })
	after := ahead(to)
	for k, f := range before {
		switch a := after[k]; {
		case a.ID == "" || a.ID == f.ID || a.WorkQueueName != "urgent" || !a.Due().Equal(f.Due()):
			t.Errorf("key %q: flow run %s, queue %q, due %s; it was %s, due %s", k, a.ID, a.WorkQueueName, a.Due(), f.ID, f.Due())
		case k == key && a.ID != ours.ID:
			t.Errorf("key %q: flow run %s, and %s was made", k, a.ID, ours.ID)
		}
	}
	listed, err := p.Deployments(t.Context(), to)
	if err != nil || len(listed) != 1 || listed[0].ID != d.ID || listed[0].WorkQueueName != "urgent" {
		t.Errorf("deployments of the new work pool: %+v, error %v", listed, err)
	}
	if listed, err = p.Deployments(t.Context(), from); err != nil || len(listed) != 0 {
		t.Errorf("deployments of the old work pool: %+v, error %v", listed, err)
	}
}

// events holds that Prefect tells of what happens, or says that it does not.
func events(t *testing.T, p *prefectServer) {
	if p.noEvents {
		p.rule(t, "a server without events refuses the webhook and says that flow runs start all the same", func(t *testing.T) {
			err := p.EnsureWebhook(t.Context(), prefect.WebhookSetup{BlockName: "b-" + uuid.NewString(), AutomationName: "a", URL: "http://127.0.0.1:1/", WorkPools: []string{"p"}})
			wantFault(t, err, flowrun.Permanent)
			if err != nil && !strings.Contains(err.Error(), "without them flow runs still start") {
				t.Errorf("%v does not say what becomes of flow runs", err)
			}
		})
		return
	}
	p.rule(t, "the webhook is called once for each event about the installation's pools, in the shape that is decoded", func(t *testing.T) { webhook(t, p) })
}

// webhook holds that an installation's automation tells what pushpool understands, once, about its pools only.
func webhook(t *testing.T, p *prefectServer) {
	type told struct {
		ID        string `json:"id"`
		Event     string `json:"event"`
		FlowRun   string `json:"flow_run"`
		StateType string `json:"state_type"`
		StateName string `json:"state_name"`
	}
	calls := make(chan told, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var inner string
		if json.Unmarshal(body, &inner) == nil { // 2.20 sends a JSON string
			body = []byte(inner)
		}
		var got told
		if err != nil || json.Unmarshal(body, &got) != nil || r.Header.Get("Authorization") != "Bearer s3cret" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("received %q with %v", body, r.Header)
		}
		calls <- got
	}))
	defer receiver.Close()
	next := func() told {
		t.Helper()
		select {
		case got := <-calls:
			return got
		case <-time.After(20 * time.Second):
			t.Fatal("the webhook is not called")
			return told{}
		}
	}
	d := p.deploy(t, prefect.NewDeployment{})
	foreign := p.deploy(t, prefect.NewDeployment{})
	name := "pushpool-" + uuid.NewString()
	setup := prefect.WebhookSetup{BlockName: name, AutomationName: name, URL: "http://127.0.0.1:1/old", Secret: "old", WorkPools: []string{"none"}}
	changed := setup
	changed.URL, changed.Secret, changed.WorkPools = receiver.URL, "s3cret", []string{d.WorkPoolName, p.newPool(t)}
	for _, s := range []prefect.WebhookSetup{setup, changed, changed} {
		if err := p.EnsureWebhook(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	other := changed
	other.Secret = "another"
	for _, test := range []struct {
		setup prefect.WebhookSetup
		want  []prefect.Change
	}{
		{changed, []prefect.Change{{Object: "webhook block " + name, Act: "none"}, {Object: "automation " + name, Act: "none"}}},
		{other, []prefect.Change{{Object: "webhook block " + name, Act: "update", Fields: []string{"headers"}}, {Object: "automation " + name, Act: "none"}}},
	} {
		changes, err := p.ConnectWebhook(t.Context(), test.setup, true)
		if diff := cmp.Diff(test.want, changes); diff != "" || err != nil {
			t.Errorf("what is to be changed, error %v (-want +got):\n%s", err, diff)
		}
	}
	var automations []struct{ ID string }
	p.admin(t, http.MethodPost, "/automations/filter", map[string]any{"automations": map[string]any{"name": map[string]any{"any_": []string{name}}}}, &automations)
	if len(automations) != 1 {
		t.Fatalf("%d automations, want 1", len(automations))
	}
	defer p.admin(t, http.MethodDelete, "/automations/"+automations[0].ID, nil, nil)

	block, err := p.BlockDocument(t.Context(), "webhook", name)
	if err != nil || decoded(t, block.Data)["url"] != receiver.URL {
		t.Errorf("block document: %s, error %v, want the url %s", block.Data, err, receiver.URL)
	}
	var shown prefect.BlockDocument
	p.admin(t, http.MethodGet, "/block_documents/"+block.ID, nil, &shown)
	hidden := map[string]any{"Authorization": "********", "Content-Type": "********"}
	if diff := cmp.Diff([]any{"********", hidden}, []any{decoded(t, shown.Data)["url"], decoded(t, shown.Data)["headers"]}); diff != "" {
		t.Errorf("url and headers without secrets (-want +got):\n%s", diff)
	}

	p.create(t, foreign.ID, prefect.NewFlowRun{})
	f := p.create(t, d.ID, prefect.NewFlowRun{})
	want := told{ID: f.StateID, Event: "prefect.flow-run.Scheduled", FlowRun: "prefect.flow-run." + f.ID, StateType: "SCHEDULED", StateName: "Scheduled"}
	if diff := cmp.Diff(want, next()); diff != "" {
		t.Errorf("a flow run is created (-want +got):\n%s", diff)
	}
	p.set(t, f.ID, prefect.Proposal{Type: pending})
	p.set(t, f.ID, prefect.Proposal{Type: running})
	a := p.set(t, f.ID, prefect.Proposal{Type: cancelling, Name: `It's "odd" \`})
	want = told{ID: a.State.ID, Event: `prefect.flow-run.It's "odd" \`, FlowRun: "prefect.flow-run." + f.ID, StateType: "CANCELLING", StateName: `It's "odd" \`}
	if diff := cmp.Diff(want, next()); diff != "" {
		t.Errorf("a flow run is cancelled, PENDING and RUNNING untold (-want +got):\n%s", diff)
	}
	a = p.set(t, f.ID, prefect.Proposal{Type: cancelled})
	if got := next(); got.ID != a.State.ID || got.StateType != "CANCELLED" {
		t.Errorf("told %+v, want CANCELLED", got)
	}
	if err := p.SetAutomationEnabled(t.Context(), name, false); err != nil {
		t.Fatal(err)
	}
	p.create(t, d.ID, prefect.NewFlowRun{})
	if err := p.EnsureWebhook(t.Context(), changed); err != nil { // leaves it switched off
		t.Fatal(err)
	}
	p.create(t, d.ID, prefect.NewFlowRun{})
	if err := p.Heartbeat(t.Context(), d.WorkPoolName, "pushpool", time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := p.SetAutomationEnabled(t.Context(), name, true); err != nil {
		t.Fatal(err)
	}
	f = p.create(t, d.ID, prefect.NewFlowRun{})
	if got := next(); got.ID != f.StateID {
		t.Errorf("told of %+v, want that of the flow run created last, %s", got, f.ID)
	}
}
