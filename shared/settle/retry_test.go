package settle_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/settle"
)

// all is a budget for every kind of end.
var all = map[flowrun.RetryKind]int{
	flowrun.RetryPlatform: 2, flowrun.RetryStart: 2, flowrun.RetryOutOfMemory: 2, flowrun.RetryExitCode: 2, flowrun.RetrySignal: 2, flowrun.RetryTimedOut: 2,
}

func budgets(cfg *settle.Config) {
	cfg.Retries = flowrun.Retries{Budget: all, Started: true} // what only a deployment can allow is not taken from here
	cfg.RetryDelay, cfg.RetryMemory = 30*time.Second, 32<<30
	cfg.Random = func() float64 { return 0.5 }
}

// endedWith tells the settler of an end with what the execution's entry holds.
func (r *rig) endedWith(id string, l flowrun.Launch, kind flowrun.OutcomeKind, retries *flowrun.Retries, has flowrun.Resources) error {
	return r.settler.Ended(r.t.Context(), uuid.NewString(), id, settle.Ending{
		LaunchID: l.LaunchID, Execution: executionOf(l), Outcome: flowrun.Outcome{Kind: kind}, EndedAt: r.now(), Retries: retries, Resources: has,
	})
}

// TestAnEndIsTriedAgainWithinItsBudget_Prefect10211 holds that retries are counted, in the ledger and, where
// that is lost at any moment, in Prefect's history.
func TestAnEndIsTriedAgainWithinItsBudget_Prefect10211(t *testing.T) {
	for name, lose := range map[string]struct{ beforeEnd, beforeLaunch bool }{
		"with the ledger": {}, "lost before each end": {beforeEnd: true}, "lost before each launch": {beforeLaunch: true},
		"lost all the time": {beforeEnd: true, beforeLaunch: true},
	} {
		for _, event := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", told", false: ", found"}[event], func(t *testing.T) {
				r := newRig(t, budgets)
				fr := r.flowRun()
				end := func(kind flowrun.OutcomeKind) {
					l := r.launch(fr.ID)
					r.later(time.Second)
					r.cloudRun.end(l, kind, r.now())
					if lose.beforeEnd {
						r.ledger.lose()
					}
					if event {
						r.must(r.ended(fr.ID, l, kind))
					} else {
						r.must(r.look(fr.ID))
					}
					r.later(time.Second)
					if lose.beforeLaunch {
						r.ledger.lose()
					}
				}
				for _, want := range []struct {
					kind  flowrun.OutcomeKind
					says  string
					after time.Duration
				}{
					{flowrun.Platform, "Retry 1 of 2 (platform) at ", 30 * time.Second},
					{flowrun.Secret, "Retry 1 of 2 (start) at ", 30 * time.Second},
					{flowrun.Platform, "Retry 2 of 2 (platform) at ", time.Minute},
				} {
					at := r.now().Add(time.Second) // of the end
					end(want.kind)
					got := r.read(fr.ID)
					if got.StateName != "AwaitingRetry" || got.StateType != flowrun.StateScheduled || !strings.HasPrefix(got.State.Message, want.says) {
						t.Fatalf("%s %s: %s; want AwaitingRetry: %s", got.StateType, got.StateName, got.State.Message, want.says)
					}
					if when := got.State.Details.ScheduledTime; when == nil || !when.Equal(at.Add(want.after)) {
						t.Errorf("it is tried again at %v, want %s", when, at.Add(want.after))
					}
				}
				end(flowrun.Platform)
				got := r.read(fr.ID)
				if got.StateType != flowrun.StateCrashed || !strings.Contains(got.State.Message, "2 of 2 retries were made") {
					t.Errorf("%s: %s", got.StateType, got.State.Message)
				}
				if rec := r.record(fr.ID); !lose.beforeEnd && !lose.beforeLaunch && rec.Retried[flowrun.RetryPlatform] != 2 {
					t.Errorf("the ledger counts %v", rec.Retried)
				}
			})
		}
	}
}

// TestAFlowThatHadBegunIsTriedAgainOnlyWhereThatIsAllowed holds that the permission is its
// launch's own, told by ledger or entry, and is never assumed.
func TestAFlowThatHadBegunIsTriedAgainOnlyWhereThatIsAllowed(t *testing.T) {
	for rule, tt := range map[string]struct {
		ledger, entry *flowrun.Retries
		want          string
	}{
		"the ledger allows it":                      {ledger: &flowrun.Retries{Budget: all, Started: true}, want: "SCHEDULED Retry 1 of 2"},
		"the ledger does not":                       {ledger: &flowrun.Retries{Budget: all}, want: "CRASHED The container was ended by a signal."},
		"the entry allows it":                       {entry: &flowrun.Retries{Budget: all, Started: true}, want: "SCHEDULED Retry 1 of 2"},
		"the ledger goes before":                    {ledger: &flowrun.Retries{Budget: all}, entry: &flowrun.Retries{Budget: all, Started: true}, want: "CRASHED"},
		"nobody knows the launch's":                 {want: "CRASHED"},
		"no budget, so there is nothing to explain": {ledger: &flowrun.Retries{Started: true}, want: "CRASHED The container was ended by a signal."},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t, budgets)
			fr := r.flowRun()
			l := r.claimed(fr.ID)
			r.apply(fr.ID, flowrun.Attempted{Holder: "launcher", LaunchID: l.LaunchID, Region: region, JobName: l.JobName, Retries: tt.ledger})
			r.cloudRun.start(l)
			r.bring(fr.ID, flowrun.StateRunning)
			r.must(r.endedWith(fr.ID, l, flowrun.Signal, tt.entry, flowrun.Resources{}))
			got := r.read(fr.ID)
			if text := string(got.StateType) + " " + got.State.Message; !strings.HasPrefix(text, tt.want) {
				t.Errorf("%s, want %s", text, tt.want)
			}
			explained := strings.Contains(got.State.Message, "`pushpool_retry_started`")
			if mustExplain := got.StateType == flowrun.StateCrashed && (tt.ledger == nil || tt.ledger.Budget != nil); explained != mustExplain {
				t.Errorf("explained is %t: %s", explained, got.State.Message)
			}
		})
	}
}

func TestWhatAFlowOrAPersonReportedIsNeverTriedAgain(t *testing.T) {
	for was, becomes := range map[flowrun.StateType]flowrun.StateType{
		flowrun.StateCompleted: flowrun.StateCompleted, flowrun.StateFailed: flowrun.StateFailed, flowrun.StateCrashed: flowrun.StateCrashed,
		flowrun.StateCancelled: flowrun.StateCancelled, flowrun.StateCancelling: flowrun.StateCancelled, flowrun.StatePaused: flowrun.StateCrashed,
		suspended: flowrun.StatePaused, flowrun.StateScheduled: flowrun.StateScheduled, inProcess: flowrun.StateScheduled,
	} {
		for kind := range map[flowrun.OutcomeKind]bool{flowrun.Platform: true, flowrun.ExitCode: true} {
			r := newRig(t, budgets)
			fr := r.flowRun()
			l := r.launch(fr.ID)
			r.bring(fr.ID, was)
			r.must(r.endedWith(fr.ID, l, kind, &flowrun.Retries{Budget: all, Started: true}, flowrun.Resources{}))
			got := r.read(fr.ID)
			if got.StateType != becomes || strings.HasPrefix(got.State.Message, "Retry") {
				t.Errorf("%s, %s: %s %q, want %s", was, kind, got.StateType, got.State.Message, becomes)
			}
		}
	}
}

func TestOutOfMemoryIsTriedAgainWithMoreOnly(t *testing.T) {
	for rule, tt := range map[string]struct {
		has  flowrun.Resources
		want string
	}{
		"twice as much":             {flowrun.Resources{MilliCPU: 1000, MemoryBytes: 512 << 20}, "SCHEDULED Retry 1 of 2 (out_of_memory) at %s. It gets 1024Mi of memory instead of 512Mi."},
		"as much as it may have":    {flowrun.Resources{MilliCPU: 1000, MemoryBytes: 4 << 30}, "CRASHED The container reached its memory limit. Raise the job variable `memory`, or let the flow use less. It is not tried again: 4096Mi of memory are as much as a retry may have with its CPU."},
		"what it has is not known.": {flowrun.Resources{}, "CRASHED "},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t, budgets)
			fr := r.flowRun()
			l := r.launch(fr.ID)
			r.later(time.Second)
			r.must(r.endedWith(fr.ID, l, flowrun.OutOfMemory, nil, tt.has))
			got := r.read(fr.ID)
			want := strings.Replace(tt.want, "%s", r.now().Add(30*time.Second).Format("15:04:05 UTC"), 1)
			if text := string(got.StateType) + " " + got.State.Message; !strings.HasPrefix(text, want) {
				t.Errorf("%s\nwant\n%s", text, want)
			}
		})
	}
}

// TestARetryThatWasNotToldIsToldLater holds that a decided retry is carried out by whoever
// comes next, and not over what the flow run became meanwhile.
func TestARetryThatWasNotToldIsToldLater(t *testing.T) {
	for meanwhile, want := range map[flowrun.StateType]flowrun.StateType{
		flowrun.StatePending: flowrun.StateScheduled, flowrun.StateCompleted: flowrun.StateCompleted, flowrun.StateCancelling: flowrun.StateCancelling,
	} {
		r := newRig(t, budgets)
		fr := r.flowRun()
		l := r.launch(fr.ID)
		r.later(time.Second)
		r.down.Store(true)
		if err := r.ended(fr.ID, l, flowrun.Platform); err == nil {
			t.Fatal("Prefect was down")
		}
		r.down.Store(false)
		r.later(lease)
		if meanwhile != flowrun.StatePending {
			r.set(fr.ID, flowrun.StateRunning, meanwhile)
		}
		r.must(r.look(fr.ID))
		if got := r.read(fr.ID); got.StateType != want {
			t.Errorf("%s meanwhile: %s, want %s", meanwhile, got.StateType, want)
		}
	}
}
