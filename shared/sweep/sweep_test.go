package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

func TestOneSweep_Prefect18766_21932(t *testing.T) {
	const soon, due, far = time.Minute, -time.Second, time.Hour
	one := func(id string, state flowrun.StateType, at time.Duration) func(*world) {
		return func(w *world) { w.add(id, "etl", state, at) }
	}
	limited := func(then func(*world)) func(*world) {
		return func(w *world) { then(w); w.limited["etl"] = true }
	}
	inProcess := func(w *world) {
		w.add("a", "etl", flowrun.StateScheduled, due).EmpiricalPolicy = map[string]any{"retry_type": "in_process"}
	}
	ours := func(state flowrun.StateType) func(*world) {
		return func(w *world) { w.launched("a", "etl", state) }
	}
	with := func(first func(*world), changes ...func(*world)) func(*world) {
		return func(w *world) {
			first(w)
			for _, c := range changes {
				c(w)
			}
		}
	}
	ended := func(ago time.Duration) func(*world) {
		return func(w *world) { w.job("a", time.Now().Add(-ago)) }
	}
	for rule, tt := range map[string]struct {
		change func(*world)
		done   []string
		report Report
	}{
		"what is due is dispatched now":                   {one("a", flowrun.StateScheduled, due), []string{"dispatch a"}, Report{Dispatch: 1}},
		"what was due for long is counted, too":           {one("a", flowrun.StateScheduled, -3*time.Minute), []string{"dispatch a"}, Report{Dispatch: 1, Overdue: 1}},
		"what is due this instant is dispatched now":      {one("a", flowrun.StateScheduled, 0), []string{"dispatch a"}, Report{Dispatch: 1}},
		"what is due soon gets a timer at that time":      {one("a", flowrun.StateScheduled, soon), []string{"timer a in 1m0s due"}, Report{Timer: 1}},
		"what is due later is left to a later sweep":      {one("a", flowrun.StateScheduled, far), nil, Report{}},
		"a limited pool is woken for what is due":         {limited(one("a", flowrun.StateScheduled, due)), []string{"wake etl"}, Report{Wake: 1}},
		"a limited pool has timers too":                   {limited(one("a", flowrun.StateScheduled, soon)), []string{"timer a in 1m0s due"}, Report{Timer: 1}},
		"a retry in process is dispatched in any pool":    {limited(inProcess), []string{"dispatch a"}, Report{Dispatch: 1}},
		"PENDING that the ledger does not know is looked": {one("a", flowrun.StatePending, 0), []string{"look a"}, Report{Looks: 1}},
		"so is RUNNING":    {one("a", flowrun.StateRunning, 0), []string{"look a"}, Report{Looks: 1}},
		"so is CANCELLING": {one("a", flowrun.StateCancelling, 0), []string{"look a"}, Report{Looks: 1}},
		"so is PAUSED":     {one("a", flowrun.StatePaused, 0), []string{"look a"}, Report{Looks: 1}},
		"suspended is not: its container left on purpose": {func(w *world) {
			w.add("a", "etl", flowrun.StatePaused, 0).State = &prefect.State{Details: prefect.StateDetails{PauseReschedule: true}}
		}, nil, Report{}},
		"COMPLETED is over": {one("a", flowrun.StateCompleted, 0), nil, Report{}},
		"SCHEDULED in somebody else's pool is left alone": {func(w *world) { w.add("a", "theirs", flowrun.StateScheduled, due) }, nil, Report{}},
		"RUNNING in somebody else's pool is left alone":   {func(w *world) { w.add("a", "theirs", flowrun.StateRunning, due) }, nil, Report{}},
		"what was found to be somebody else's is not looked at again": {with(one("a", flowrun.StateRunning, 0), func(w *world) {
			_, _ = w.Update(context.Background(), "a", func(r flowrun.Record) (flowrun.Record, error) {
				r.ForeignStateID = "first state of a"
				return r, nil
			})
		}), nil, Report{}},
		"until its state changes": {with(one("a", flowrun.StateRunning, 0), func(w *world) {
			_, _ = w.Update(context.Background(), "a", func(r flowrun.Record) (flowrun.Record, error) {
				r.ForeignStateID = "another state"
				return r, nil
			})
		}), []string{"look a"}, Report{Looks: 1}},

		"where all three agree one execution is read":  {ours(flowrun.StateRunning), []string{"check a"}, Report{Checks: 1}},
		"an execution that ended is looked at":         {with(ours(flowrun.StateRunning), ended(time.Minute)), []string{"check a"}, Report{Looks: 1}},
		"but first its event gets the time to tell it": {with(ours(flowrun.StateRunning), ended(time.Second)), nil, Report{}},
		"a job that is not listed is looked at":        {with(ours(flowrun.StateRunning), func(w *world) { delete(w.jobs, "a") }), []string{"check a"}, Report{Looks: 1}},
		"so is another launch's":                       {with(ours(flowrun.StateRunning), func(w *world) { w.jobs["a"].Labels["pushpool-launch"] = "another" }), []string{"check a", "stray pp-a-x a"}, Report{Looks: 1, Strays: 1}},
		"so is a flow run that is apart":               {with(ours(flowrun.StateCancelling), func(w *world) { w.apart["a"] = true }), []string{"check a"}, Report{Looks: 1}},
		"what ended in Prefect alone is looked at":     {with(ours(flowrun.StateCompleted), ended(time.Minute)), []string{"check a"}, Report{Looks: 1}},
		"what Prefect has deleted is looked at":        {with(ours(flowrun.StateRunning), func(w *world) { w.flowRuns = nil }), []string{"look a"}, Report{Looks: 1}},
		"what a pool left behind that is served no more": {with(ours(flowrun.StateRunning), func(w *world) {
			w.flowRuns[0].WorkPoolName = "gone"
			w.put("a", flowrun.Launch{Status: flowrun.StatusLaunched, WorkPool: "gone"})
			w.apart["a"] = true
		}), []string{"check a"}, Report{Looks: 1}},
		"whoever holds the lease is left to it": {with(ours(flowrun.StateRunning), ended(time.Minute), func(w *world) {
			_, _ = w.Update(context.Background(), "a", func(r flowrun.Record) (flowrun.Record, error) {
				r.LeaseHolder, r.LeaseUntil = "somebody", time.Now().Add(time.Minute)
				return r, nil
			})
		}), nil, Report{}},
		"a verdict that was not told is looked at":           {verdictOf("a", time.Minute), []string{"check a"}, Report{Looks: 1}},
		"but first whoever reached it gets time to tell it":  {verdictOf("a", time.Second), nil, Report{}},
		"that somebody else is at a flow run is no failure":  {with(one("a", flowrun.StateRunning, 0), func(w *world) { w.looking["a"] = flowrun.ErrBusy }), []string{"look a"}, Report{Looks: 1, Busy: 1}},
		"an execution that is being stopped is no failure":   {with(one("a", flowrun.StateRunning, 0), func(w *world) { w.looking["a"] = settle.ErrWait }), []string{"look a"}, Report{Looks: 1, Busy: 1}},
		"an execution that is alive and nobody's is a stray": {func(w *world) { w.job("a", time.Time{}) }, []string{"stray pp-a-x a"}, Report{Strays: 1}},
		"one that ended is not":                              {func(w *world) { w.job("a", time.Now()) }, nil, Report{}},
		"another installation's is not ours to settle":       {func(w *world) { w.job("a", time.Time{}); w.jobs["a"].Labels["pushpool-install"] = "other" }, nil, Report{}},
		"a user's own job has no labels of ours":             {func(w *world) { w.job("a", time.Time{}); clear(w.jobs["a"].Labels) }, nil, Report{}},
		"under way without a record it is settled by a look": {func(w *world) { w.add("a", "etl", flowrun.StateRunning, 0); w.job("a", time.Time{}) }, []string{"look a"}, Report{Looks: 1}},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				s := w.sweeper(t, "etl")
				tt.change(w)
				report := swept(t, s)
				if diff := cmp.Diff(tt.done, w.did(), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("did (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.report, report); diff != "" {
					t.Errorf("report (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// verdictOf makes a flow run RUNNING whose verdict was reached that long ago, and not told.
func verdictOf(id string, ago time.Duration) func(*world) {
	return func(w *world) {
		w.launched(id, "etl", flowrun.StateRunning)
		w.job(id, time.Now().Add(-time.Hour))
		w.put(id, flowrun.Launch{Status: flowrun.StatusFinished, FinishedAt: time.Now().Add(-ago), WorkPool: "etl"})
	}
}

func TestOneWakeForAllThatWaitInALimitedPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.limited["etl"] = true
		for i := range 450 {
			w.add(fmt.Sprint("waits", i), "etl", flowrun.StateScheduled, -time.Minute)
		}
		swept(t, w.sweeper(t, "etl"))
		if diff := cmp.Diff([]string{"wake etl"}, w.did()); diff != "" {
			t.Errorf("did (-want +got):\n%s", diff)
		}
	})
}

// What waits for a slot of its deployment is woken by its deployment, not one by one, also
// before the time to which Prefect set it.
func TestOneWakeForAllThatWaitForADeployment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for i := range 250 {
			fr := w.add(fmt.Sprint("waits", i), "etl", flowrun.StateScheduled, time.Duration(i-100)*time.Second/10)
			fr.StateName, fr.DeploymentID = prefect.AwaitingSlot, "d"
		}
		report := swept(t, w.sweeper(t, "etl"))
		if diff := cmp.Diff([]string{"wake d"}, w.did()); diff != "" {
			t.Errorf("did (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(Report{Wake: 1}, report); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
	})
}

// More than Prefect returns at once is read page by page, and done at the same time.
func TestManyFlowRunsFitOneSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.takes["dispatch"], w.takes["look"] = time.Second, 2*time.Second
		for i := range 250 {
			w.add(fmt.Sprint("due", i), "etl", flowrun.StateScheduled, -time.Minute)
			w.add(fmt.Sprint("runs", i), "etl", flowrun.StateRunning, 0)
		}
		start := time.Now()
		if diff := cmp.Diff(Report{Dispatch: 250, Looks: 250}, swept(t, w.sweeper(t, "etl"))); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
		if took := time.Since(start); took > Timeout {
			t.Errorf("took %s", took)
		}
		if w.most > atOnce || w.most < atOnce/2 {
			t.Errorf("%d at once, want nearly %d", w.most, atOnce)
		}
		if done := w.did(); len(slices.Compact(done)) != 500 {
			t.Errorf("%d different acts, want 500", len(done))
		}
		for holder, n := range w.holders {
			if n > 1 {
				t.Errorf("%d looks hold the same lease %s", n, holder)
			}
		}
	})
}

// What does not fit one sweep takes its turn in the next, whichever instance makes that.
func TestEveryFlowRunHasItsTurn(t *testing.T) {
	for rule, add := range map[string]func(w *world, id string){
		"unknown to the ledger":   func(w *world, id string) { w.add(id, "etl", flowrun.StateRunning, 0) },
		"apart from its record":   func(w *world, id string) { w.launched(id, "etl", flowrun.StateRunning); w.apart[id] = true },
		"checked although agreed": func(w *world, id string) { w.launched(id, "etl", flowrun.StateRunning) },
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				for i := range 30 {
					add(w, fmt.Sprintf("run%02d", i))
				}
				var looked []string
				for range 3 {
					s := w.sweeper(t, "etl")
					s.cfg.MaxLooks, s.cfg.MaxChecks = 10, 10
					swept(t, s)
					did := w.did()
					if len(did) != 10 {
						t.Errorf("%d looks, want 10", len(did))
					}
					looked = append(looked, did...)
					time.Sleep(time.Minute)
				}
				slices.Sort(looked)
				if n := len(slices.Compact(looked)); n != 30 {
					t.Errorf("%d flow runs were looked at in three sweeps, want all 30", n)
				}
			})
		})
	}
}

func TestHeartbeatsKeepThePoolReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.sweeper(t, "etl")
		var hours []int
		for hour := range 30 {
			swept(t, s)
			if done := w.did(); len(done) > 0 {
				if diff := cmp.Diff([]string{"heartbeat etl as pushpool pushpool, 24h0m0s"}, done); diff != "" {
					t.Errorf("did (-want +got):\n%s", diff)
				}
				hours = append(hours, hour)
			}
			time.Sleep(time.Hour)
		}
		if diff := cmp.Diff([]int{12, 24}, hours); diff != "" {
			t.Errorf("sent in hours (-want +got):\n%s", diff)
		}
	})
}

// Prefect shows queues and deployments Not Ready a minute after it was last asked, so it is
// asked twice a minute: by the sweep, and half-way to the next one by what the wake does.
func TestQueuesAndDeploymentsAreKeptReady(t *testing.T) {
	for _, on := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			s := w.sweeper(t, "etl")
			s.cfg.Readiness = on
			swept(t, s)
			var want []string
			if on {
				want = []string{"poll etl", "wake etl in 30s ready"}
			}
			if diff := cmp.Diff(want, w.did()); diff != "" {
				t.Errorf("switched on %t (-want +got):\n%s", on, diff)
			}
		})
	}
}

// A flow run that loses the slot of its deployment's limit while it starts is cancelled by Prefect.
func TestTheSlotOfADeploymentsLimitIsHeld(t *testing.T) {
	for rule, tt := range map[string]struct {
		state      flowrun.StateType
		lease, of  string
		status     flowrun.Status
		lost       error
		want       []string
		wantFailed bool
	}{
		"while it starts":               {flowrun.StatePending, "lease", "launch of a", flowrun.StatusLaunched, nil, []string{"check a", "renew lease for 5m0s"}, false},
		"while it is launched":          {flowrun.StatePending, "lease", "launch of a", flowrun.StatusClaimed, nil, []string{"check a", "renew lease for 5m0s"}, false},
		"not without a limit":           {flowrun.StatePending, "", "launch of a", flowrun.StatusLaunched, nil, []string{"check a"}, false},
		"not once it runs":              {flowrun.StateRunning, "lease", "launch of a", flowrun.StatusLaunched, nil, []string{"check a"}, false},
		"not for somebody else":         {flowrun.StatePending, "lease", "a worker", flowrun.StatusLaunched, nil, []string{"check a"}, false},
		"that it is lost is no failure": {flowrun.StatePending, "lease", "launch of a", flowrun.StatusLaunched, &flowrun.Error{Fault: flowrun.NotFound}, []string{"check a", "renew lease for 5m0s"}, false},
		"that Prefect is down is one":   {flowrun.StatePending, "lease", "launch of a", flowrun.StatusLaunched, &flowrun.Error{}, []string{"check a", "renew lease for 5m0s"}, true},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.launched("a", "etl", tt.state)
				w.put("a", flowrun.Launch{Status: tt.status, WorkPool: "etl"})
				w.flowRuns[0].State = &prefect.State{Details: prefect.StateDetails{TransitionID: tt.of, DeploymentConcurrencyLeaseID: tt.lease}}
				w.looking["lease"] = tt.lost
				_, err := w.sweeper(t, "etl").Sweep(t.Context())
				if diff := cmp.Diff(tt.want, w.did()); diff != "" || err != nil != tt.wantFailed {
					t.Errorf("failed with %v, did (-want +got):\n%s", err, diff)
				}
			})
		})
	}
}

func TestOneSweepAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.add("a", "etl", flowrun.StateScheduled, -time.Second)
		w.takes["dispatch"] = 30 * time.Second
		s, other := w.sweeper(t, "etl"), w.sweeper(t, "etl") // another instance
		go func() { _, _ = s.Sweep(t.Context()) }()
		time.Sleep(10 * time.Second)
		if report := swept(t, other); len(report) != 0 {
			t.Errorf("a second sweep did %v", report)
		}
		time.Sleep(30 * time.Second)
		if report := swept(t, other); report[Dispatch] != 1 {
			t.Errorf("the sweep after the first did %v: the lease was not given back", report)
		}
	})
	t.Run("one that died is followed once its time is over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.add("a", "etl", flowrun.StateScheduled, -time.Second)
			s := w.sweeper(t, "etl")
			if _, err := w.UpdateSweep(t.Context(), func(state flowrun.Sweep) (flowrun.Sweep, error) {
				state, _ = state.Begin("dead", time.Now().Add(Timeout), time.Now())
				return state, nil
			}); err != nil {
				t.Fatal(err)
			}
			first := swept(t, s)
			time.Sleep(time.Minute)
			if second := swept(t, s); first[Dispatch] != 0 || second[Dispatch] != 1 {
				t.Errorf("dispatched %d, then %d", first[Dispatch], second[Dispatch])
			}
		})
	})
}

func TestOneFailureDoesNotStopTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.fail["gone"], w.fail[region] = errors.New("no work pool gone"), errors.New("no such region")
		w.takes["look"] = time.Hour
		w.add("hangs", "slow", flowrun.StateRunning, 0)
		w.add("a", "etl", flowrun.StateScheduled, -time.Second)
		w.launched("b", "etl", flowrun.StateRunning)
		ctx, cancel := context.WithTimeout(t.Context(), Timeout)
		defer cancel()
		report, err := w.sweeper(t, "gone", "slow", "etl").Sweep(ctx)
		if diff := cmp.Diff(Report{Dispatch: 1, Looks: 1, Checks: 1}, report); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
		for _, want := range []error{w.fail["gone"], w.fail[region], context.DeadlineExceeded} {
			if !errors.Is(err, want) {
				t.Errorf("error %v, want %v in it", err, want)
			}
		}
		// What hung gave the sweep back all the same.
		if _, err := w.UpdateSweep(t.Context(), func(state flowrun.Sweep) (flowrun.Sweep, error) {
			if state.LeaseHolder != "" {
				t.Errorf("%s still holds the sweep", state.LeaseHolder)
			}
			return state, nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// Hundreds of failures of one cause would not fit a log line.
func TestTheErrorNamesTheFirstFailuresOnly(t *testing.T) {
	w := newWork("")
	for i := range 25 {
		w.failed(fmt.Errorf("failure %d", i))
	}
	err := w.err()
	if n := strings.Count(err.Error(), "failure"); n != maxErrors || !strings.HasSuffix(err.Error(), "and 15 more errors") {
		t.Errorf("%d failures named: %v", n, err)
	}
}
