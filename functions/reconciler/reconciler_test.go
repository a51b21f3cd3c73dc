package reconciler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
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
	"github.com/pushpool/pushpool/shared/telemetry"
)

func TestOneSweep_Prefect18766_21932(t *testing.T) {
	const soon, due, far = time.Minute, -time.Second, time.Hour
	suspended := func(w *world) {
		w.flowRuns[0].State = &prefect.State{Details: prefect.StateDetails{PauseReschedule: true}}
	}
	for rule, tt := range map[string]struct {
		state   flowrun.StateType
		at      time.Duration
		limited bool
		pool    string // "etl" if empty
		change  func(*world)
		done    []string
		report  report
	}{
		"what is due is dispatched now":              {state: flowrun.StateScheduled, at: due, done: []string{"dispatch a"}, report: report{Dispatched: 1}},
		"what is due this instant is dispatched now": {state: flowrun.StateScheduled, at: 0, done: []string{"dispatch a"}, report: report{Dispatched: 1}},
		"what is due soon gets a timer at that time": {state: flowrun.StateScheduled, at: soon, done: []string{"timer a in 1m0s due"}, report: report{Timers: 1}},
		"what is due later is left to a later sweep": {state: flowrun.StateScheduled, at: far},
		"a limited pool is woken for what is due":    {state: flowrun.StateScheduled, at: due, limited: true, done: []string{"wake etl"}, report: report{Wakes: 1}},
		"a limited pool has timers too":              {state: flowrun.StateScheduled, at: soon, limited: true, done: []string{"timer a in 1m0s due"}, report: report{Timers: 1}},
		"one whose container was to run it again is dispatched in a limited pool too": {
			state: flowrun.StateScheduled, at: due, limited: true, done: []string{"dispatch a"}, report: report{Dispatched: 1},
			change: func(w *world) { w.flowRuns[0].EmpiricalPolicy = map[string]any{"retry_type": "in_process"} },
		},
		"PENDING is looked at":                              {state: flowrun.StatePending, done: []string{"look a"}, report: report{Looks: 1}},
		"RUNNING is looked at":                              {state: flowrun.StateRunning, done: []string{"look a"}, report: report{Looks: 1}},
		"CANCELLING is looked at":                           {state: flowrun.StateCancelling, done: []string{"look a"}, report: report{Looks: 1}},
		"PAUSED is looked at: its container waits":          {state: flowrun.StatePaused, done: []string{"look a"}, report: report{Looks: 1}},
		"suspended is not: its container left on purpose":   {state: flowrun.StatePaused, change: suspended},
		"COMPLETED is over":                                 {state: flowrun.StateCompleted},
		"SCHEDULED in somebody else's pool is left alone":   {state: flowrun.StateScheduled, at: due, pool: "somebody-elses"},
		"RUNNING in somebody else's pool is left alone":     {state: flowrun.StateRunning, pool: "somebody-elses"},
		"that somebody else is at a flow run is no failure": {state: flowrun.StateRunning, change: func(w *world) { w.looking["a"] = flowrun.ErrBusy }, done: []string{"look a"}, report: report{Looks: 1, Busy: 1}},
		"an execution that is being stopped is no failure":  {state: flowrun.StateRunning, change: func(w *world) { w.looking["a"] = settle.ErrWait }, done: []string{"look a"}, report: report{Looks: 1, Busy: 1}},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.limited["etl"] = tt.limited
				pool := tt.pool
				if pool == "" {
					pool = "etl"
				}
				w.add("a", pool, tt.state, tt.at)
				if tt.change != nil {
					tt.change(w)
				}
				rep := swept(t, w.sweeper(t, false, "etl"))
				if diff := cmp.Diff(tt.done, w.did(), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("did (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.report, rep); diff != "" {
					t.Errorf("report (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestOneWakeForAllThatWaitInALimitedPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.limited["etl"] = true
		for i := range 450 {
			w.add(fmt.Sprint("waits", i), "etl", flowrun.StateScheduled, -time.Minute)
		}
		swept(t, w.sweeper(t, false, "etl"))
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
			w.add(fmt.Sprint("waits", i), "etl", flowrun.StateScheduled, time.Duration(i-100)*time.Second/10)
			fr := &w.flowRuns[len(w.flowRuns)-1]
			fr.StateName, fr.DeploymentID = prefect.AwaitingSlot, "d"
		}
		rep := swept(t, w.sweeper(t, false, "etl"))
		if diff := cmp.Diff([]string{"wake d"}, w.did()); diff != "" {
			t.Errorf("did (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(report{Wakes: 1}, rep); diff != "" {
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
		rep := swept(t, w.sweeper(t, false, "etl"))
		if want := (report{Dispatched: 250, Looks: 250}); rep != want {
			t.Errorf("report %+v, want %+v", rep, want)
		}
		if took := time.Since(start); took > sweepTimeout {
			t.Errorf("took %s", took)
		}
		if w.most != atOnce {
			t.Errorf("%d at once, want %d", w.most, atOnce)
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

// minutes sweeps once a minute and returns in which minutes the flow run a was looked at.
func (w *world) minutes(t *testing.T, r *Reconciler, n int) []int {
	t.Helper()
	var looked []int
	for minute := range n {
		_, _ = r.sweep(t.Context())
		if slices.Contains(w.did(), "look a") {
			looked = append(looked, minute)
		}
		time.Sleep(time.Minute)
	}
	return looked
}

func TestLooksComeAtGrowingIntervals(t *testing.T) {
	for rule, tt := range map[string]struct {
		looking error
		want    []int
	}{
		"doubling, up to five minutes":          {want: []int{0, 1, 2, 3, 5, 8, 13, 18}},
		"a look that failed is repeated":        {looking: errors.New("unavailable"), want: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}},
		"so is one that found somebody else":    {looking: flowrun.ErrBusy, want: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}},
		"so is one that has to be waited after": {looking: settle.ErrWait, want: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.add("a", "etl", flowrun.StateRunning, 0)
				w.looking["a"] = tt.looking
				if diff := cmp.Diff(tt.want, w.minutes(t, w.sweeper(t, false, "etl"), 20)); diff != "" {
					t.Errorf("looked in minutes (-want +got):\n%s", diff)
				}
			})
		})
	}
	t.Run("anew after a change of state", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.add("a", "etl", flowrun.StateRunning, 0)
			r := w.sweeper(t, false, "etl")
			w.minutes(t, r, 14) // the next one would be in minute 18
			w.flowRuns[0].StateType, w.flowRuns[0].StateID = flowrun.StateCancelling, "second"
			if diff := cmp.Diff([]int{0, 1, 2}, w.minutes(t, r, 3)); diff != "" {
				t.Errorf("looked in minutes (-want +got):\n%s", diff)
			}
		})
	})
	t.Run("what is not under way any more is forgotten", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.add("a", "etl", flowrun.StateRunning, 0)
			r := w.sweeper(t, false, "etl")
			swept(t, r)
			w.flowRuns = nil
			swept(t, r)
			if n := len(r.looks["etl"]); n != 0 {
				t.Errorf("%d flow runs are remembered", n)
			}
		})
	})
}

// More than one sweep can look at are looked at in turn, the longest overdue first.
func TestNoFlowRunIsNeverLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for i := range 30 {
			w.add(fmt.Sprintf("run%02d", i), "etl", flowrun.StateRunning, 0)
		}
		r := w.sweeper(t, false, "etl")
		r.maxLooks = 10
		var looked []string
		for range 3 {
			if rep := swept(t, r); rep.Looks != 10 {
				t.Errorf("%d looks, want 10", rep.Looks)
			}
			looked = append(looked, w.did()...)
			time.Sleep(time.Minute)
		}
		slices.Sort(looked)
		if n := len(slices.Compact(looked)); n != 30 {
			t.Errorf("%d flow runs were looked at in three sweeps, want all 30", n)
		}
	})
}

func TestVerdictsThatWereNotReportedAreLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		over := func(id string, reported time.Time) {
			if _, err := w.Update(t.Context(), id, func(r flowrun.Record) (flowrun.Record, error) {
				r.Status, r.FinishedAt, r.ReportedAt = flowrun.StatusFinished, time.Now(), reported
				return r, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		over("untold", time.Time{})
		over("told", time.Now())
		time.Sleep(time.Minute)
		over("being-told", time.Time{}) // whoever reached it just now gets time to
		r := w.sweeper(t, false, "etl")
		w.fail["etl"] = errors.New("the pool cannot be listed")
		rep, err := r.sweep(t.Context())
		if !errors.Is(err, w.fail["etl"]) || rep.Looks != 1 {
			t.Errorf("report %+v, error %v", rep, err)
		}
		if diff := cmp.Diff([]string{"look untold"}, w.did()); diff != "" {
			t.Errorf("did (-want +got):\n%s", diff)
		}
	})
}

func TestHeartbeatsKeepThePoolReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		r := w.sweeper(t, true, "etl")
		var hours []int
		for hour := range 30 {
			swept(t, r)
			if done := w.did(); len(done) > 0 {
				if diff := cmp.Diff([]string{"heartbeat etl pushpool 24h0m0s"}, done); diff != "" {
					t.Errorf("did (-want +got):\n%s", diff)
				}
				hours = append(hours, hour)
			}
			time.Sleep(time.Hour)
		}
		if diff := cmp.Diff([]int{0, 12, 24}, hours); diff != "" {
			t.Errorf("sent in hours (-want +got):\n%s", diff)
		}
	})
}

func TestOneSweepOfAPoolAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.add("a", "etl", flowrun.StateScheduled, -time.Second)
		w.takes["dispatch"] = 30 * time.Second
		r, other := w.sweeper(t, false, "etl"), w.sweeper(t, false, "etl") // another instance
		go func() { _, _ = r.sweep(t.Context()) }()
		time.Sleep(10 * time.Second)
		if rep := swept(t, other); rep != (report{}) {
			t.Errorf("a second sweep did %+v", rep)
		}
		time.Sleep(30 * time.Second)
		if rep := swept(t, other); rep.Dispatched != 1 {
			t.Errorf("the sweep after the first did %+v: the lease was not given back", rep)
		}
	})
	t.Run("one that died is followed once its time is over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.add("a", "etl", flowrun.StateScheduled, -time.Second)
			r := w.sweeper(t, false, "etl")
			if _, err := w.UpdatePool(t.Context(), "etl", func(p flowrun.Pool) (flowrun.Pool, error) {
				p, _ = p.Sweep("dead", time.Now().Add(sweepTimeout), time.Now())
				return p, nil
			}); err != nil {
				t.Fatal(err)
			}
			first := swept(t, r)
			time.Sleep(time.Minute)
			if second := swept(t, r); first.Dispatched != 0 || second.Dispatched != 1 {
				t.Errorf("dispatched %d, then %d", first.Dispatched, second.Dispatched)
			}
		})
	})
}

func TestOnePoolDoesNotStopTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.fail["gone"] = errors.New("no work pool gone")
		w.takes["look"] = time.Hour
		w.add("hangs", "slow", flowrun.StateRunning, 0)
		w.add("a", "etl", flowrun.StateScheduled, -time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), sweepTimeout)
		defer cancel()
		rep, err := w.sweeper(t, false, "gone", "slow", "etl").sweep(ctx)
		if rep.Dispatched != 1 || !errors.Is(err, w.fail["gone"]) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("did %+v, error %v", rep, err)
		}
		// What hung gave its pool back all the same.
		if _, err := w.UpdatePool(t.Context(), "slow", func(p flowrun.Pool) (flowrun.Pool, error) {
			if p.SweepHolder != "" {
				t.Errorf("%s still holds the pool", p.SweepHolder)
			}
			return p, nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTheSchedulersAnswer(t *testing.T) {
	for rule, tt := range map[string]struct {
		method   string
		err      error
		status   int
		severity string
	}{
		"a sweep":                      {method: http.MethodPost, status: 204, severity: "INFO"},
		"a sweep that is not complete": {method: http.MethodPost, err: errors.New("list flow runs: 503"), status: 500, severity: "ERROR"},
		"a visitor":                    {method: http.MethodGet, status: 405},
	} {
		t.Run(rule, func(t *testing.T) {
			var log bytes.Buffer
			h := endpoint(func(ctx context.Context) (report, error) {
				if _, bounded := ctx.Deadline(); !bounded {
					t.Error("the sweep has no deadline")
				}
				return report{Looks: 7}, tt.err
			}, telemetry.NewLogger(&log, "p", slog.LevelInfo))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), tt.method, "/reconciler", nil))
			if w.Code != tt.status || tt.err != nil && !strings.Contains(w.Body.String(), tt.err.Error()) {
				t.Errorf("answered %d %s", w.Code, w.Body)
			}
			if tt.status == http.StatusMethodNotAllowed {
				if w.Header().Get("Allow") != "POST" || log.Len() > 0 {
					t.Errorf("Allow %q, logged %s", w.Header().Get("Allow"), &log)
				}
				return
			}
			var line struct {
				Severity string             `json:"severity"`
				Sweep    map[string]float64 `json:"sweep"`
			}
			if err := json.Unmarshal(log.Bytes(), &line); err != nil { // exactly one line
				t.Fatalf("logged %s: %v", &log, err)
			}
			if line.Severity != tt.severity || line.Sweep["looks"] != 7 {
				t.Errorf("logged %+v", line)
			}
		})
	}
}

// Hundreds of failures of one cause would not fit a log line.
func TestTheErrorNamesTheFirstFailuresOnly(t *testing.T) {
	w := newWork()
	for i := range 25 {
		w.failed(fmt.Errorf("failure %d", i))
	}
	_, err := w.wait()
	if n := strings.Count(err.Error(), "failure"); n != maxErrors || !strings.HasSuffix(err.Error(), "and 15 more errors") {
		t.Errorf("%d failures named: %v", n, err)
	}
}

// All the looks of a sweep have to fit what this instance may ask of Prefect in a minute.
func TestLooksFitTheRequestsPerMinute(t *testing.T) {
	for rule, tt := range map[string]struct {
		perMinute int
		pools     []string
		want      int
	}{
		"by default":            {500, []string{"etl"}, 166},
		"shared by the pools":   {500, []string{"etl", "ml"}, 83},
		"one in any case":       {1, []string{"etl", "ml"}, 1},
		"a server of our own's": {6000, []string{"etl"}, 2000},
	} {
		t.Run(rule, func(t *testing.T) {
			var c config
			c.RequestsPerMinute, c.WorkPools = tt.perMinute, tt.pools
			if got := c.maxLooks(); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}
