package lookahead_test

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/lookahead"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

var now = time.Date(2030, 1, 1, 6, 0, 0, 0, time.UTC)

// world is Prefect's list of waiting flow runs, by their time, and what was sent about them.
type world struct {
	*ledger.Memory
	flowRuns []prefect.FlowRun
	limited  bool
	between  func(page int) // two pages

	mu    sync.Mutex
	pages int
	sent  []string
}

func (w *world) Limited(context.Context, string) (bool, error) { return w.limited, nil }

func (w *world) FlowRuns(_ context.Context, f prefect.Filter) ([]prefect.FlowRun, error) {
	if w.pages++; w.between != nil {
		w.between(w.pages)
	}
	from, _ := slices.BinarySearchFunc(w.flowRuns, f.ScheduledFrom, func(fr prefect.FlowRun, t time.Time) int {
		return fr.NextScheduledStartTime.Compare(t)
	})
	to := from
	for to < len(w.flowRuns) && !w.flowRuns[to].NextScheduledStartTime.After(f.ScheduledBefore) {
		to++
	}
	from = min(from+f.Offset, to)
	page := slices.Clone(w.flowRuns[from:min(to, from+prefect.MaxPage)])
	for i := range page { // as large as Prefect's answers are
		page[i].Parameters = map[string]any{}
		if err := json.Unmarshal([]byte(parameters), &page[i].Parameters); err != nil {
			return nil, err
		}
		page[i].JobVariables = json.RawMessage(strings.Clone(parameters))
	}
	return page, nil
}

var parameters = `{"a":"` + strings.Repeat("x", 1000) + `","b":[1,2,3,4,5,6,7,8]}`

func (w *world) note(format string, args ...any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, fmt.Sprintf(format, args...))
	return nil
}

func (w *world) Dispatch(_ context.Context, id string) error { return w.note("dispatch %s", id) }

func (w *world) DispatchAt(_ context.Context, id string, at time.Time, _ string) error {
	return w.note("timer %s %s", id, at.Sub(now))
}

func (w *world) Wake(_ context.Context, m message.Wake) error {
	return w.note("wake %s%s", m.WorkPool, m.DeploymentID)
}

// look looks ahead at a time and returns what was sent.
func (w *world) look(t testing.TB, a *lookahead.Ahead) []string {
	t.Helper()
	w.sent, w.pages = nil, 0
	if _, err := a.Look(t.Context(), "etl", func(send func() error) { _ = send() }); err != nil {
		t.Fatal(err)
	}
	return w.sent
}

func (w *world) ahead(at *time.Time) *lookahead.Ahead {
	return lookahead.New(w, w, w, 150*time.Second, func() time.Time { return *at })
}

// many returns n flow runs, step apart from the first, of 20 deployments.
func many(n int, first, step time.Duration) *world {
	w := &world{Memory: ledger.NewMemory()}
	for i := range n {
		at := now.Add(first + time.Duration(i)*step)
		w.flowRuns = append(w.flowRuns, prefect.FlowRun{
			ID: fmt.Sprintf("%036d", i), Name: "able-ant", DeploymentID: fmt.Sprint("d", i%20), StateName: "Scheduled", NextScheduledStartTime: &at,
		})
	}
	return w
}

func (w *world) deployment(t testing.TB, id string, lead time.Duration, waits bool) {
	t.Helper()
	_, err := w.UpdateDeployment(t.Context(), id, func(d flowrun.Deployment) (flowrun.Deployment, error) {
		d.Lead, d.Waits = flowrun.Lead(lead), waits
		return d, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Prefect's event about a flow run that was just created costs fewer calls than a message beside it.
func TestWhatWasJustCreatedIsLeftToItsEvent(t *testing.T) {
	for rule, tt := range map[string]struct {
		due, age time.Duration
		limited  bool
		want     []string
	}{
		"its event may come yet":     {0, 3*time.Second - 1, false, nil},
		"its event must have come":   {0, 3 * time.Second, false, []string{"dispatch"}},
		"so where there is a limit":  {0, 3*time.Second - 1, true, nil},
		"and there it is one wake":   {0, 3 * time.Second, true, []string{"wake etl"}},
		"what is due later is timed": {time.Minute, 0, false, []string{"timer 1m0s"}},
	} {
		t.Run(rule, func(t *testing.T) {
			w, at := many(1, tt.due, 0), now
			w.flowRuns[0].Created, w.limited = now.Add(-tt.age), tt.limited
			got := w.look(t, w.ahead(&at))
			for i := range got {
				got[i] = strings.Replace(got[i], " "+w.flowRuns[0].ID, "", 1)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What is launched early is launched its deployment's lead before it is due; whoever has to
// wait for a slot, or for something other than its time, is not.
func TestTimersComeALeadBefore(t *testing.T) {
	for rule, tt := range map[string]struct {
		state   string
		due     time.Duration
		lead    time.Duration
		limited bool
		waits   bool
		want    []string
	}{
		"without a lead at its time":             {"Scheduled", time.Minute, 0, false, false, []string{"timer 1m0s"}},
		"with a lead, in whole seconds":          {"Scheduled", time.Minute, 6300 * time.Millisecond, false, false, []string{"timer 53s"}},
		"within its lead it is dispatched now":   {"Scheduled", 5 * time.Second, 6 * time.Second, false, false, []string{"dispatch"}},
		"a lead brings it within the horizon":    {"Scheduled", 160 * time.Second, 20 * time.Second, false, false, []string{"timer 2m20s"}},
		"beyond the horizon it is left":          {"Scheduled", 160 * time.Second, 0, false, false, nil},
		"not in a pool with a limit":             {"Scheduled", time.Minute, 6 * time.Second, true, false, []string{"timer 1m0s"}},
		"not where others wait for a slot of it": {"Scheduled", time.Minute, 6 * time.Second, false, true, []string{"timer 1m0s"}},
		"a retry's delay is not cut short":       {"AwaitingRetry", time.Minute, 6 * time.Second, false, false, []string{"timer 1m0s"}},
	} {
		t.Run(rule, func(t *testing.T) {
			w, at := many(1, tt.due, 0), now
			w.flowRuns[0].StateName, w.limited = tt.state, tt.limited
			w.deployment(t, "d0", tt.lead, tt.waits)
			var got []string
			for _, s := range w.look(t, w.ahead(&at)) {
				got = append(got, strings.Join(strings.Fields(strings.ReplaceAll(s, w.flowRuns[0].ID, "")), " "))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A timer that an earlier look set is not set again, unless the flow run's time or lead changed;
// one that could not be set is.
func TestATimerIsSetOnce(t *testing.T) {
	w, at := many(3, time.Minute, time.Second), now
	a := w.ahead(&at)
	if got := w.look(t, a); len(got) != 3 {
		t.Fatalf("sent %v", got)
	}
	at = now.Add(10 * time.Second)
	if got := w.look(t, a); got != nil {
		t.Errorf("set again: %v", got)
	}
	w.deployment(t, "d1", 5*time.Second, false)
	if diff := cmp.Diff([]string{"timer " + w.flowRuns[1].ID + " 56s"}, w.look(t, a)); diff != "" {
		t.Errorf("with another lead (-want +got):\n%s", diff)
	}
	failed := w.flowRuns[1].ID
	w.deployment(t, "d1", 0, false)
	if _, err := a.Look(t.Context(), "etl", func(func() error) {}); err != nil { // nothing is sent
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"timer " + failed + " 1m1s"}, w.look(t, a)); diff != "" {
		t.Errorf("after it could not be sent (-want +got):\n%s", diff)
	}
}

// What leaves the list while it is read, launched by an earlier page's messages, makes nobody fall
// between two pages.
func TestNobodyFallsBetweenTwoPages(t *testing.T) {
	for name, step := range map[string]time.Duration{"each at its own time": time.Millisecond, "all at one time": 0} {
		t.Run(name, func(t *testing.T) {
			w, at := many(1000, -time.Minute, step), now
			if step > 0 {
				w.between = func(page int) {
					if page > 1 {
						w.flowRuns = w.flowRuns[100:] // PENDING meanwhile
					}
				}
			}
			if got := w.look(t, w.ahead(&at)); len(got) != 1000 || len(slices.Compact(slices.Sorted(slices.Values(got)))) != 1000 {
				t.Errorf("%d messages about 1000 flow runs", len(got))
			}
		})
	}
}

// The calls grow with what waits and no faster, and in a pool with a limit not at all with what is due.
func TestTheCallsOfALook(t *testing.T) {
	for name, tt := range map[string]struct {
		due     time.Duration
		limited bool
		pages   int
		sent    int
	}{
		"10,000 to come":                         {time.Second, false, 51, 10_000},
		"10,000 to come, in a pool with a limit": {time.Second, true, 52, 10_000},
		"10,000 due, in a pool with a limit":     {-time.Hour, true, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w, at := many(10_000, tt.due, 10*time.Millisecond), now
			w.limited = tt.limited
			got := w.look(t, w.ahead(&at))
			if w.pages > tt.pages || len(got) != tt.sent {
				t.Errorf("%d calls and %d messages, want at most %d and %d", w.pages, len(got), tt.pages, tt.sent)
			}
		})
	}
}

// BenchmarkLook looks ahead at flow runs that are due soon. MiB is what the heap holds at most.
func BenchmarkLook(b *testing.B) {
	for _, n := range []int{1000, 5000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w, at := many(n, time.Second, 10*time.Millisecond), now
			var most uint64
			w.between = func(int) {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
			}
			for b.Loop() {
				w.look(b, w.ahead(&at))
			}
			b.ReportMetric(float64(most)/(1<<20), "MiB")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/flow-run")
		})
	}
}

// What the alert on progress goes by: a flow run that should have been launched. What waits for a
// limit, a pause or capacity is held back, and nobody has to get up for it.
func TestWhatIsHeldBackIsNotOverdue(t *testing.T) {
	for rule, tt := range map[string]struct {
		change  func(*prefect.FlowRun)
		ago     time.Duration
		limited bool
		want    int
	}{
		"due for long, and nothing holds it back":                {ago: 3 * time.Minute, want: 1},
		"also where it is late":                                  {change: func(fr *prefect.FlowRun) { fr.StateName = "Late" }, ago: 3 * time.Minute, want: 1},
		"due a moment ago the dispatcher may be at it":           {ago: time.Minute},
		"it waits for a slot of its deployment":                  {change: func(fr *prefect.FlowRun) { fr.StateName = prefect.AwaitingSlot }, ago: 3 * time.Minute},
		"it waits for capacity":                                  {change: func(fr *prefect.FlowRun) { fr.StateName = flowrun.AwaitingCapacity }, ago: 3 * time.Minute},
		"its pool or queue has a limit, or is paused":            {ago: 3 * time.Minute, limited: true},
		"others wait for a slot of its deployment, it is behind": {change: func(fr *prefect.FlowRun) { fr.DeploymentID = "full" }, ago: 3 * time.Minute},
	} {
		t.Run(rule, func(t *testing.T) {
			w, at := many(2, -tt.ago, 0), now
			w.limited = tt.limited
			w.flowRuns[1].DeploymentID, w.flowRuns[1].StateName = "full", prefect.AwaitingSlot
			if tt.change != nil {
				tt.change(&w.flowRuns[0])
			}
			done, err := w.ahead(&at).Look(t.Context(), "etl", func(send func() error) { _ = send() })
			if err != nil || done.Overdue != tt.want {
				t.Errorf("%d are overdue, want %d; error %v", done.Overdue, tt.want, err)
			}
		})
	}
}

// TestWhoseContainerIsGoneIsDispatched holds that a flow run that its own container was to run again is looked at
// by itself, also where a worker was refused a slot for it since: a wake of its deployment leaves it out.
func TestWhoseContainerIsGoneIsDispatched(t *testing.T) {
	for _, state := range []string{"AwaitingRetry", prefect.AwaitingSlot} {
		w, at := many(1, -time.Minute, 0), now
		w.flowRuns[0].StateName = state
		w.flowRuns[0].EmpiricalPolicy = map[string]any{"retry_type": prefect.RetryInProcess}
		if diff := cmp.Diff([]string{"dispatch " + w.flowRuns[0].ID}, w.look(t, w.ahead(&at))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", state, diff)
		}
	}
}
