package simulate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// Options of a world.
type Options struct {
	Seed     uint64
	FlowRuns int
	// Calm leaves all faults out.
	Calm bool
	// Trace keeps a timeline.
	Trace bool
	// Load has all flow runs come at once, within quotas.
	Load *Load
	// Storm are kinds of faults that strike more often than all others. What is worst then comes with it:
	// see nextHolder and work.
	Storm []Kind
	// Crowd has flow runs come to the limited pool, many within a second, those last that are to go first.
	Crowd bool

	// readyAtMost is the longest that a job takes to be ready; 0 means 8 s. Its start takes 1 to 5 s more.
	readyAtMost time.Duration
	// scripted has flow runs come within a minute, of every deployment and ending in turn, some of
	// which a person cancels or retries.
	scripted bool
	crash    func(function, name, what string) bool // kills at a call, if set and true
	only     map[string]bool                        // the faults that may strike; nil: all
	without  map[string]bool                        // flow runs that do not come
}

// World is what became of a world.
type World struct {
	Seed                uint64
	FlowRuns            int
	Deliveries, Faulted int // deliveries to functions; those that a fault struck
	ByKind              map[Kind]int
	Between             int // faults between two calls of one message
	Steps               int
	Hash                uint64 // of all that happened, in order
	Final               map[flowrun.StateType]int
	Violations          []Violation
	Schedule            []string // the faults that struck, by name
	Timeline            []string
}

// Run simulates one world.
func Run(t *testing.T, o Options) (result World) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		w := newWorld(o)
		defer w.close()
		w.live()
		result = World{
			Seed: o.Seed, FlowRuns: len(w.labels), Deliveries: w.deliveries, Faulted: w.faulted, ByKind: w.byKind, Between: w.between,
			Steps: w.loop.steps, Hash: w.loop.hash, Final: map[flowrun.StateType]int{}, Violations: w.violations, Schedule: w.schedule, Timeline: w.timeline,
		}
		for _, label := range w.labels {
			result.Final[w.flowRuns[label].state]++
		}
	})
	return result
}

// Deadlines of healing, counted from the last fault.
const (
	// settleTime is what a flow run may take without any fault: its own time-out, a slow job, the
	// longest interval between two looks and a cancellation's grace.
	settleTime = 4*time.Minute + 4*time.Minute + 5*time.Minute + time.Minute
	// twoSweeps is what the bar adds.
	twoSweeps = 2 * time.Minute
	// backlog is what all that wait for slots may take.
	backlog = 2 * time.Hour
	// slowest is the longest that a lease and a back-off can hold up a sweep's look.
	slowest = 3 * time.Minute
)

// live lets the world run to its end and looks at what is left.
func (w *world) live() {
	start := time.Now()
	for n := range w.FlowRuns {
		w.arrive(n, start)
	}
	w.every(5*time.Second, "prefect's services", func() { w.prefect.Tick() })
	w.every(time.Minute, "cloud scheduler", w.sweep)
	over := func() bool { return w.stopped() || w.quiet() && w.settled() }
	// Who waits for a slot begins when another ends, however late: each change of state begins the
	// time anew, but not for ever.
	overdue := func() bool {
		since := w.lastChange
		if w.faultsUntil.After(since) {
			since = w.faultsUntil
		}
		return time.Since(since) > settleTime+slowest+twoSweeps || time.Since(w.faultsUntil) > backlog
	}
	w.loop.run(func() bool { return over() || overdue() })
	if w.stopped() {
		return
	}
	if w.checkHealed(false); w.stopped() {
		return
	}
	// What was delayed for hours comes now, to an installation at rest.
	w.leaving = true
	late := time.Now()
	w.loop.run(func() bool { return w.stopped() || len(w.inFlight) == 0 || time.Since(late) > 5*time.Hour })
	w.leaving = false
	w.faultsUntil = time.Now()
	late = time.Now()
	w.loop.run(func() bool {
		return w.stopped() || time.Since(late) > 3*time.Minute && w.settled() || time.Since(late) > settleTime+slowest+twoSweeps
	})
	w.checkHealed(true)
}

// stopped reports whether there is no use in going on.
func (w *world) stopped() bool { return len(w.violations) > 0 && !w.KeepGoing() }

// KeepGoing reports whether a world goes on after a violation.
func (o Options) KeepGoing() bool { return false }

// every has something happen at regular times.
func (w *world) every(d time.Duration, name string, do func()) {
	var next func()
	next = func() {
		w.loop.at(time.Now().Add(d), name, func() {
			if !w.leaving {
				do()
			}
			next()
		})
	}
	next()
}

// sweep is Cloud Scheduler's call.
func (w *world) sweep() {
	for _, of := range w.installations {
		name := fmt.Sprintf("sweep %s %d", of.name, time.Now().Unix())
		if w.chooseMessage(w.dice.of(name), name) == MessageLost {
			w.struck(MessageLost, false, nil, name)
			continue
		}
		of.serve("reconciler", name, http.MethodPost, nil, nil, func(int) {})
	}
}

// adopt learns the id of a new flow run, by its name.
func (w *world) adopt(c prefecttest.Change) string {
	label := w.prefect.Name(c.FlowRunID)
	fr := w.flowRuns[label]
	if fr == nil {
		panic("a flow run nobody asked for: " + label)
	}
	switch {
	case fr.deleted: // the run request that made it, delivered once more, makes another
		fr.monitored = newMonitored()
	case fr.id != "":
		w.violate(Duplicated, label, "a run request made two flow runs")
	}
	fr.id = c.FlowRunID
	w.name(c.FlowRunID, label)
	return label
}

// precious reports whether a message is the only one who knows of what it asks: a run request.
func (w *world) precious(data []byte) bool { return strings.Contains(string(data), `"deployment":`) }

// webhook takes an event of Prefect's to the webhook function, or loses it.
func (w *world) webhook(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	said := "event " + w.label(string(body))
	if i := strings.Index(said, `"occurred"`); i > 0 { // times are those of a server that has its own clock
		if j := strings.Index(said[i:], `,"flow_run"`); j > 0 {
			said = said[:i] + said[i+j:]
		}
	}
	name := w.nth(said)
	r := w.dice.of(name)
	answered, lost := make(chan int, 1), false
	err = w.loop.park(req.Context(), between(r, 50*time.Millisecond, 300*time.Millisecond), name, func() {
		if lost = w.chooseMessage(r, name) == MessageLost; lost {
			w.struck(MessageLost, false, nil, name)
			return
		}
		w.installations[0].serve("webhook", name, http.MethodPost, body, req.Header, func(status int) { answered <- status })
	})
	if err != nil {
		return nil, err
	}
	if lost {
		return nil, errors.New("connect: connection refused")
	}
	select {
	case status := <-answered:
		rec := httptest.NewRecorder()
		rec.WriteHeader(max(status, http.StatusServiceUnavailable*b(status == 0)))
		return rec.Result(), nil
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

func b(v bool) int {
	if v {
		return 1
	}
	return 0
}

// deleteExecution is what a person does in the console.
func (w *world) deleteExecution(c *container) {
	for _, name := range w.jobsOf(c.launch) {
		if !c.already { // deleted before its flow run could tell that it ran, it may be started again
			c.fr.starts[c.launch]--
		}
		for _, r := range []string{region, second} {
			_, _ = w.cloudRun.DeleteJob(context.Background(), &runpb.DeleteJobRequest{Name: path.Join("projects", project, "locations", r, "jobs", name)})
		}
	}
}

// settled reports whether nothing is left to do.
func (w *world) settled() bool { return len(w.unfinished(false)) == 0 }

// unfinished is what keeps the world from being at rest.
func (w *world) unfinished(final bool) (why []Violation) {
	add := func(c Counter, label, format string, args ...any) {
		why = append(why, Violation{c, label, fmt.Sprintf(format, args...), time.Now()})
	}
	for _, label := range w.labels {
		fr := w.flowRuns[label]
		switch {
		case fr.deleted:
		case fr.id == "" && !final && w.flying(label): // its run request comes late
		case fr.id == "":
			add(Lost, label, "was asked for and never created")
		case fr.state.Terminal():
		case fr.state == flowrun.StateScheduled, fr.state == flowrun.StatePaused:
			add(Lost, label, "is %s/%s", fr.state, fr.name)
		default:
			add(Unhealed, label, "is %s/%s with %d containers alive", fr.state, fr.name, len(fr.live))
		}
		if len(fr.live) > 0 && (fr.deleted || fr.state.Terminal()) {
			add(Unhealed, label, "has a container although it is %s", fr.state)
		}
	}
	for _, of := range w.installations {
		records, _ := of.ledger.now().Open(context.Background()) // in memory
		for _, r := range records {
			add(Unhealed, w.flowRun(r.FlowRunID), "the ledger holds its launch for %s, %q, reported at %s", r.Status, r.Outcome, r.ReportedAt)
		}
	}
	return why
}

// flying reports whether a message is on its way that asks for the flow run.
func (w *world) flying(label string) bool {
	for m := range w.inFlight {
		if w.precious(m.data) && strings.Contains(m.name, `"`+label+`"`) {
			return true
		}
	}
	return false
}

func (w *world) checkHealed(final bool) {
	for _, v := range w.unfinished(final) {
		w.violations = append(w.violations, v)
		w.trace("VIOLATION %s", v)
	}
}

// Summary adds worlds up.
type Summary struct {
	Seed        uint64       `json:"seed"`
	FlowRuns    int          `json:"flow_runs"`
	Deliveries  int          `json:"deliveries"`
	Faults      int          `json:"faults"`
	Lost        int          `json:"lost"`
	Duplicated  int          `json:"duplicated"`
	Overwritten int          `json:"overwritten"`
	OverLimit   int          `json:"over_limit"`
	Unhealed    int          `json:"unhealed"`
	Wall        float64      `json:"wall_s"`
	ByKind      map[Kind]int `json:"by_kind"`
}

// Sum is a summary with what its line does not tell.
type Sum struct {
	Summary
	All     int // deliveries, those included that no fault struck
	Between int // faults between two calls of one message
	Steps   int
}

// Join adds another part of the same simulation.
func (s *Sum) Join(o Sum) {
	if s.ByKind == nil {
		s.ByKind = map[Kind]int{}
	}
	for k, n := range o.ByKind {
		s.ByKind[k] += n
	}
	s.FlowRuns, s.Deliveries, s.Faults = s.FlowRuns+o.FlowRuns, s.Deliveries+o.Deliveries, s.Faults+o.Faults
	s.Lost, s.Duplicated, s.Overwritten = s.Lost+o.Lost, s.Duplicated+o.Duplicated, s.Overwritten+o.Overwritten
	s.OverLimit, s.Unhealed = s.OverLimit+o.OverLimit, s.Unhealed+o.Unhealed
	s.All, s.Between, s.Steps = s.All+o.All, s.Between+o.Between, s.Steps+o.Steps
}

// Add counts a world in.
func (s *Sum) Add(w World) {
	if s.ByKind == nil {
		s.ByKind = map[Kind]int{}
		for _, k := range Kinds() {
			s.ByKind[k] = 0
		}
	}
	s.FlowRuns += w.FlowRuns
	s.Deliveries += w.Faulted
	s.All += w.Deliveries
	s.Between += w.Between
	s.Steps += w.Steps
	for k, n := range w.ByKind {
		s.ByKind[k] += n
		s.Faults += n
	}
	for _, v := range w.Violations {
		*map[Counter]*int{
			Lost: &s.Lost, Duplicated: &s.Duplicated, Overwritten: &s.Overwritten, OverLimit: &s.OverLimit, Unhealed: &s.Unhealed,
		}[v.Counter]++
	}
}
