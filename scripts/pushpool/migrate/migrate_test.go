package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// rig is a stand-in for Prefect whose scheduler runs when the test says so.
type rig struct {
	*prefect.Client
	server *prefecttest.Server
	file   string
	dep    prefect.Deployment
	broken *brittle
	// ahead is how far the server's clock is ahead of ours.
	ahead *atomic.Int64
}

// brittle is a network that is gone after some calls.
type brittle struct {
	mu   sync.Mutex
	left int // < 0: it holds
	// beforeMove, if set, is what somebody else does just before a deployment is moved.
	beforeMove func()
}

func (b *brittle) set(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = n
}

func (b *brittle) RoundTrip(r *http.Request) (*http.Response, error) {
	b.mu.Lock()
	if b.left == 0 {
		b.mu.Unlock()
		return nil, errors.New("the process was killed")
	}
	b.left--
	before := b.beforeMove
	if r.Method != http.MethodPatch || !strings.Contains(r.URL.Path, "/deployments/") {
		before = nil
	} else {
		b.beforeMove = nil
	}
	b.mu.Unlock()
	if before != nil {
		before()
	}
	return http.DefaultTransport.RoundTrip(r)
}

const (
	every = 20 * time.Second
	// waiting is how many flow runs a schedule of that interval lays ahead at first.
	waiting = 100
)

func newRig(t *testing.T) rig {
	t.Helper()
	ahead := new(atomic.Int64)
	server := prefecttest.New(prefecttest.Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	t.Cleanup(server.Close)
	b := &brittle{left: -1}
	client, err := prefect.New(prefect.Config{APIURL: server.URL(), RequestsPerMinute: 60_000, HTTPClient: &http.Client{Transport: b}})
	if err != nil {
		t.Fatal(err)
	}
	for _, pool := range []string{"old", "new"} {
		if err := client.CreateWorkPool(t.Context(), pool, "cloud-run-v2", nil); err != nil {
			t.Fatal(err)
		}
	}
	flow, err := client.CreateFlow(t.Context(), "etl")
	if err != nil {
		t.Fatal(err)
	}
	d, err := client.CreateDeployment(t.Context(), prefect.NewDeployment{
		Name: "prod", FlowID: flow.ID, WorkPool: "old", WorkQueue: "urgent", Tags: []string{"nightly"},
		Parameters: map[string]any{"day": "today"}, Schedules: []prefect.Schedule{{Interval: every}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server.Tick()
	return rig{client, server, filepath.Join(t.TempDir(), "migration.json"), d, b, ahead}
}

// aMinute is what the server's scheduler may take until it has seen a change: what was due within
// it, it does not lay any more.
func (r rig) aMinute() {
	r.ahead.Add(int64(time.Minute))
	r.server.Tick()
}

func (r rig) plan(t *testing.T) State {
	t.Helper()
	plan, err := Make(t.Context(), r.Client, "old", "new", nil, []string{"new"}, as)
	if err != nil {
		t.Fatal(err)
	}
	s, err := plan.Resume(State{})
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Prepare(t.Context(), r.Client); err != nil {
		t.Fatal(err)
	}
	return s
}

// as is a preview of jobs that are as the worker's.
func as(context.Context, prefect.Deployment, string) (string, error) { return "", nil }

// byKey are all flow runs of the deployment by idempotency key; there must be one of each.
func (r rig) byKey(t *testing.T) map[string]prefect.FlowRun {
	t.Helper()
	found := map[string]prefect.FlowRun{}
	for offset := 0; ; offset += prefect.MaxPage {
		page, err := r.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{r.dep.ID}, Offset: offset})
		if err != nil {
			t.Fatal(err)
		}
		for _, fr := range page {
			if _, twice := found[fr.IdempotencyKey]; twice {
				t.Errorf("two flow runs are due at %s", fr.Due())
			}
			found[fr.IdempotencyKey] = fr
		}
		if len(page) < prefect.MaxPage {
			return found
		}
	}
}

// whole holds that each flow run that was there before is there, or one made in its stead; those
// that were claimed are themselves.
func (r rig) whole(t *testing.T, before map[string]prefect.FlowRun, claimed, pool string) {
	t.Helper()
	after := r.byKey(t)
	for key, was := range before {
		is, ok := after[key]
		switch {
		case !ok:
			t.Errorf("the flow run that was due at %s is lost", was.Due())
		case was.ID == claimed:
			if is.ID != claimed || is.StateType != flowrun.StatePending || is.WorkPoolName != was.WorkPoolName {
				t.Errorf("the flow run that the worker claimed is %s %s in %s", is.ID, is.StateType, is.WorkPoolName)
			}
		case is.ID == was.ID && !was.Due().After(time.Now().Add(time.Duration(r.ahead.Load()))): // due before the move: it stays with its worker
		case is.WorkPoolName != pool:
			t.Errorf("the flow run due at %s is in work pool %s, not in %s", is.Due(), is.WorkPoolName, pool)
		case !is.Due().Equal(was.Due()):
			t.Errorf("the flow run due at %s is due at %s now", was.Due(), is.Due())
		}
	}
}

// claimFirst is the worker that takes the next flow run that is due.
func (r rig) claimFirst(t *testing.T) string {
	t.Helper()
	first, err := r.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{r.dep.ID}, StateTypes: []prefect.StateType{flowrun.StateScheduled}, Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := r.SetState(t.Context(), first[0].ID, prefect.Proposal{Type: flowrun.StatePending}); err != nil || answer.Status != prefect.StatusAccept {
		t.Fatalf("claim: %+v, %v", answer, err)
	}
	return first[0].ID
}

// TestAMoveLosesNothingAndDoublesNothing holds for a schedule with flow runs due at any moment, with the
// scheduler before and after us, there and back.
func TestAMoveLosesNothingAndDoublesNothing(t *testing.T) {
	for name, scheduler := range map[string]func(*prefecttest.Server){
		"the scheduler comes later": func(*prefecttest.Server) {},
		"the scheduler comes first": func(s *prefecttest.Server) { s.Tick() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			before := r.byKey(t)
			if len(before) != waiting {
				t.Fatalf("the schedule laid %d flow runs ahead", len(before))
			}
			claimed := r.claimFirst(t)
			s := r.plan(t)
			again := 0
			m := New(r.Client, r.file)
			m.Tell = func(_, _ string, n int) { again += n }
			if err := m.Switch(t.Context(), &s); err != nil {
				t.Fatal(err)
			}
			if due := int(ahead / every); again < due-2 || again > due {
				t.Errorf("%d flow runs were made again, of the %d due soon", again, due)
			}
			scheduler(r.server)
			r.aMinute()
			r.whole(t, before, claimed, "new")
			if d, err := r.Deployment(t.Context(), r.dep.ID); err != nil || d.WorkPoolName != "new" || d.WorkQueueName != "urgent" {
				t.Errorf("the deployment is in %s, %s: %v", d.WorkPoolName, d.WorkQueueName, err)
			}
			saved, err := Load(r.file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(State{"old", "new", []Moved{{r.dep.ID, "etl/prod", "urgent", true, nil}}}, saved); diff != "" {
				t.Errorf("saved (-want +got):\n%s", diff)
			}

			left, err := m.Back(t.Context(), &saved)
			if err != nil || left != nil {
				t.Fatalf("back: %v, %v", left, err)
			}
			r.aMinute()
			// What we made is asked for and no longer laid ahead by a schedule: it stays where it is.
			for key, fr := range r.byKey(t) {
				if was := before[key]; was.ID != "" && was.ID != claimed && !fr.AutoScheduled {
					delete(before, key)
				}
			}
			r.whole(t, before, claimed, "old")
		})
	}
}

// TestACrashAnywhereIsMadeGood holds for a process that is killed before each of its calls and
// started again.
func TestACrashAnywhereIsMadeGood(t *testing.T) {
	for calls := 0; calls < 40; calls += 1 + calls/5 {
		t.Run(fmt.Sprintf("after %d calls", calls), func(t *testing.T) {
			r := newRig(t)
			before := r.byKey(t)
			claimed := r.claimFirst(t)
			s := r.plan(t)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // the client repeats what it can
			defer cancel()
			r.broken.set(calls)
			err := New(r.Client, r.file).Switch(ctx, &s)
			r.broken.set(-1)
			if err == nil {
				t.Skip("it was done")
			}
			if !strings.Contains(err.Error(), "repeat the command") {
				t.Errorf("the error does not say what to do: %v", err)
			}
			r.aMinute()
			saved, err := Load(r.file)
			if err != nil {
				t.Fatal(err)
			}
			if err := New(r.Client, r.file).Switch(t.Context(), &saved); err != nil {
				t.Fatal(err)
			}
			r.aMinute()
			r.whole(t, before, claimed, "new")
		})
	}
}

// TestWhatSomebodyMovedElsewhereIsLeft holds for the way back.
func TestWhatSomebodyMovedElsewhereIsLeft(t *testing.T) {
	r := newRig(t)
	s := r.plan(t)
	m := New(r.Client, r.file)
	if err := m.Switch(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if err := r.CreateWorkPool(t.Context(), "third", "cloud-run-v2", nil); err != nil {
		t.Fatal(err)
	}
	if err := r.MoveDeployment(t.Context(), r.dep.ID, "third", "default"); err != nil {
		t.Fatal(err)
	}
	left, err := m.Back(t.Context(), &s)
	if diff := cmp.Diff([]string{"etl/prod"}, left); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if d, err := r.Deployment(t.Context(), r.dep.ID); err != nil || d.WorkPoolName != "third" {
		t.Errorf("it is in %s: %v", d.WorkPoolName, err)
	}
}

// TestAPlanSaysWhatWillDiffer holds for the pools, the queues, the deployments and what stays.
func TestAPlanSaysWhatWillDiffer(t *testing.T) {
	r := newRig(t)
	r.claimFirst(t)
	limit := 3
	if err := r.CopyWorkPool(t.Context(), prefect.WorkPool{Type: "cloud-run", BaseJobTemplate: json.RawMessage(`{"variables": {}, "job_configuration": {}}`), ConcurrencyLimit: &limit}, "v1"); err != nil {
		t.Fatal(err)
	}
	if err := r.CopyWorkPool(t.Context(), prefect.WorkPool{Type: "cloud-run-v2", BaseJobTemplate: json.RawMessage(`{"variables": {"properties": {"a": {"default": 1}}}, "job_configuration": {}}`)}, "changed"); err != nil {
		t.Fatal(err)
	}
	if err := r.CreateWorkPool(t.Context(), "kubernetes", "kubernetes", nil); err != nil {
		t.Fatal(err)
	}
	if err := r.SetWorkPoolPaused(t.Context(), "changed", true); err != nil {
		t.Fatal(err)
	}
	refuse := func(_ context.Context, d prefect.Deployment, pool string) (string, error) {
		if pool == "new" {
			return "", errors.New("memory: too much")
		}
		return "-\"a\"\n+\"b\"\n", nil
	}
	for name, tt := range map[string]struct {
		to      string
		names   []string
		served  []string
		preview Preview
		want    string // a part of what is printed, or of the error
	}{
		"as the worker's":     {"new", nil, []string{"new"}, as, "move    etl/prod, whose job is as the worker's\n"},
		"a queue":             {"new", nil, []string{"new"}, as, "create  work queue urgent of work pool new, like that of old\n"},
		"what stays":          {"new", nil, []string{"new"}, as, "99 SCHEDULED, 1 PENDING in work pool old"},
		"a refusal":           {"new", nil, []string{"new"}, refuse, "REFUSED etl/prod: memory: too much\n"},
		"a difference":        {"copy", nil, []string{"copy"}, refuse, "move    etl/prod, whose job differs from the worker's:\n          -\"a\"\n"},
		"a copy":              {"copy", nil, []string{"copy"}, as, "create  work pool copy, as a copy of old\n"},
		"by name":             {"new", []string{"etl/prod"}, []string{"new"}, as, "move    etl/prod"},
		"no such deployment":  {"new", []string{"etl/none"}, []string{"new"}, as, "--deployment: work pool \"old\" has none that is called etl/none"},
		"a pool not served":   {"new", nil, []string{"other"}, as, "add it to WORK_POOLS first"},
		"a pool served twice": {"new", nil, []string{"new", "old"}, as, "nothing has to be moved"},
		"templates differ":    {"changed", nil, []string{"changed"}, as, "warning the base job templates differ"},
		"a paused pool":       {"changed", nil, []string{"changed"}, as, "warning work pool changed is paused"},
		"another type":        {"v1", nil, []string{"v1"}, as, "warning the work pools are of different types (cloud-run-v2 and cloud-run)"},
		"a type of others":    {"kubernetes", nil, []string{"kubernetes"}, as, "which pushpool does not launch"},
		"the same pool":       {"old", nil, []string{"old"}, as, "are the same work pool"},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := Make(t.Context(), r.Client, "old", tt.to, tt.names, tt.served, tt.preview)
			var b strings.Builder
			if plan.Print(&b); err != nil {
				b.Reset()
				b.WriteString(err.Error())
			}
			if !strings.Contains(b.String(), tt.want) {
				t.Errorf("it does not say %q:\n%s", tt.want, b.String())
			}
		})
	}
}

// TestASavedMigrationIsNotWrittenOver holds that a file keeps one migration, which goes on with what it has.
func TestASavedMigrationIsNotWrittenOver(t *testing.T) {
	plan := Plan{From: "old", To: "new", Deployments: []Planned{{ID: "b", Name: "etl/b", Queue: "default"}}}
	if _, err := plan.Resume(State{From: "old", To: "other"}); err == nil || !strings.Contains(err.Error(), "--state") {
		t.Errorf("another migration: %v", err)
	}
	caught := []Caught{{ID: "f", IdempotencyKey: "k"}}
	got, err := plan.Resume(State{"old", "new", []Moved{{"a", "etl/a", "default", true, nil}, {"b", "etl/b", "urgent", true, caught}}})
	if err != nil {
		t.Fatal(err)
	}
	// b is in the old work pool again, so it is to be moved; what a crash left to be looked after is kept.
	want := State{"old", "new", []Moved{{"a", "etl/a", "default", true, nil}, {"b", "etl/b", "default", false, caught}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNoState) {
		t.Errorf("no file: %v", err)
	}
}

// TestWhatTheWorkerClaimsMeanwhileStaysWithIt holds for a flow run that was noted as due soon, and that the worker
// claims before the move.
func TestWhatTheWorkerClaimsMeanwhileStaysWithIt(t *testing.T) {
	r := newRig(t)
	before := r.byKey(t)
	s := r.plan(t)
	claimed := ""
	r.broken.beforeMove = func() { claimed = r.claimFirst(t) }
	if err := New(r.Client, r.file).Switch(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if claimed == "" {
		t.Fatal("nothing was claimed")
	}
	r.aMinute()
	r.whole(t, before, claimed, "new")
}
