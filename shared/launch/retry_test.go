package launch_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

// until waits for a process, which starts and ends in its own time.
func (r *rig) until(done func() bool) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal("nothing happened for 10 s")
		}
	}
}

// over waits until no execution of the flow run is alive.
func (r *rig) over(id string) {
	r.t.Helper()
	for _, x := range r.executions(id) {
		name, err := cloudrun.ParseExecutionName(x.Name)
		r.must(err)
		r.until(func() bool {
			x, err := r.cloudRun.Execution(r.t.Context(), name)
			r.must(err)
			return x.Outcome != nil
		})
	}
}

// running launches a flow run and brings it to RUNNING.
func (r *rig) running() prefect.FlowRun {
	r.t.Helper()
	fr := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
	r.set(fr.ID, flowrun.StateRunning)
	return fr
}

func (r *rig) kill(id string) {
	r.t.Helper()
	x := r.executions(id)
	r.until(func() bool { return r.emulator.Kill(x[len(x)-1].Name) == nil }) // it may have no process yet
	r.over(id)
}

// TestARetryIsLeftToItsContainer_Prefect15458_17913 holds that a flow run that its own container runs again is
// launched again where that container is gone, and only there: in limited pools too, which
// Prefect's query leaves such flow runs out of, and with the ledger lost.
func TestARetryIsLeftToItsContainer_Prefect15458_17913(t *testing.T) {
	for limitName, limited := range map[string]bool{"an unlimited pool": false, "a limited pool": true} {
		for ledgerName, lost := range map[string]bool{"the ledger kept": false, "the ledger lost": true} {
			for containerName, alive := range map[string]bool{"the container alive": true, "the container gone": false} {
				t.Run(containerName+", "+limitName+", "+ledgerName, func(t *testing.T) {
					r := newRig(t)
					if limited {
						r.limit(5)
					}
					fr := r.running()
					r.retries(fr.ID, 1)
					r.set(fr.ID, flowrun.StateFailed)
					if got := r.state(fr.ID); got != "SCHEDULED/AwaitingRetry" {
						t.Fatalf("%s, want AwaitingRetry", got)
					}
					if !alive {
						r.kill(fr.ID)
					}
					if lost {
						r.ledger.lose()
					}
					waiting := r.read(fr.ID)
					r.must(r.dispatch(fr.ID))
					now := r.read(fr.ID)
					if alive {
						if now.StateID != waiting.StateID || now.RetryType() != "in_process" || len(r.executions(fr.ID)) != 1 {
							t.Fatalf("%s, %q, %d executions: the container's retry was taken from it", r.state(fr.ID), now.RetryType(), len(r.executions(fr.ID)))
						}
						return
					}
					if got := len(r.executions(fr.ID)); now.StateType != flowrun.StatePending || got != 2 {
						t.Fatalf("%s with %d executions, want it launched once more", r.state(fr.ID), got)
					}
					if got := r.record(fr.ID).LaunchID; got != launchID(waiting) {
						t.Errorf("launch %s, want a new one, %s", got, launchID(waiting))
					}
				})
			}
		}
	}
}

// TestAnEarlierExecutionIsEndedFirst_PrefectGCP249 holds that a flow run that somebody runs again has one
// live execution at a time, with the ledger lost too.
func TestAnEarlierExecutionIsEndedFirst_PrefectGCP249(t *testing.T) {
	for name, lost := range map[string]bool{"the ledger kept": false, "the ledger lost": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.running()
			r.set(fr.ID, flowrun.StateCrashed, flowrun.StateScheduled)
			if lost {
				r.ledger.lose()
			}
			if err := r.dispatch(fr.ID); !errors.Is(err, settle.ErrWait) {
				t.Fatalf("%v, want to be asked again once it is over", err)
			}
			if got := len(r.executions(fr.ID)); got != 1 {
				t.Fatalf("%d executions while the first is being stopped, want one", got)
			}
			r.over(fr.ID)
			r.must(r.dispatch(fr.ID))
			x := r.executions(fr.ID)
			if got := r.state(fr.ID); got != "PENDING/Pending" || len(x) != 2 || x[0].State != cloudruntest.Cancelled {
				t.Fatalf("%s with %d executions, the first %s: want it launched again after the first was cancelled", got, len(x), x[0].State)
			}
		})
	}
}

// TestACancelledFlowRunIsStopped holds that an event about CANCELLING stops the execution.
func TestACancelledFlowRunIsStopped(t *testing.T) {
	r := newRig(t)
	fr := r.running()
	r.set(fr.ID, flowrun.StateCancelling)
	r.must(r.dispatch(fr.ID))
	r.over(fr.ID)
	r.must(r.dispatch(fr.ID))
	if got := r.state(fr.ID); got != "CANCELLED/Cancelled" {
		t.Errorf("%s, want CANCELLED", got)
	}
}
