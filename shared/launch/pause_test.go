package launch_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/settle"
)

// pause has the flow run's container report that it pauses: it waits, or leaves where suspended.
func (r *rig) pause(id string, suspended bool) {
	r.t.Helper()
	r.send(http.MethodPost, "/flow_runs/"+id+"/set_state", map[string]any{"state": map[string]any{
		"type": "PAUSED", "state_details": map[string]any{"pause_reschedule": suspended, "pause_timeout": r.now().Add(time.Hour)},
	}})
}

func (r *rig) resume(id string) {
	r.t.Helper()
	r.send(http.MethodPost, "/flow_runs/"+id+"/resume", nil)
}

// TestASuspendedFlowRunIsLaunchedWhenItIsResumed holds that it is no crash while its container is
// gone, and not left waiting when somebody resumes it, also where the old container has not
// left yet; with the ledger lost, too.
func TestASuspendedFlowRunIsLaunchedWhenItIsResumed(t *testing.T) {
	for ledgerName, lost := range map[string]bool{"the ledger kept": false, "the ledger lost": true} {
		for containerName, alive := range map[string]bool{"the container still alive": true, "the container gone": false} {
			t.Run(containerName+", "+ledgerName, func(t *testing.T) {
				r := newRig(t)
				fr := r.running()
				r.pause(fr.ID, true)
				if !alive {
					r.kill(fr.ID)
				}
				if lost {
					r.ledger.lose()
				}
				for range 2 { // gone is seen twice
					r.must(r.settler.Look(t.Context(), r.holder(), fr.ID))
					r.later(time.Minute)
				}
				if got := r.read(fr.ID).StateType; got != flowrun.StatePaused || len(r.executions(fr.ID)) != 1 {
					t.Fatalf("%s with %d executions, want it left alone", r.state(fr.ID), len(r.executions(fr.ID)))
				}
				r.resume(fr.ID)
				waiting := r.read(fr.ID)
				if got := r.state(fr.ID); got != "SCHEDULED/Resuming" {
					t.Fatalf("%s, want SCHEDULED/Resuming", got)
				}
				if alive {
					if err := r.dispatch(fr.ID); !errors.Is(err, settle.ErrWait) {
						t.Fatalf("%v, want to be asked again once the old container is gone", err)
					}
					r.over(fr.ID)
				}
				r.must(r.dispatch(fr.ID))
				x := r.executions(fr.ID)
				if now := r.read(fr.ID); now.StateType != flowrun.StatePending || len(x) != 2 || x[0].Completed.IsZero() {
					t.Fatalf("%s with %d executions, want it launched once more, and the first over", r.state(fr.ID), len(x))
				}
				if got := r.record(fr.ID).LaunchID; got != launchID(waiting) {
					t.Errorf("launch %s, want a new one, %s", got, launchID(waiting))
				}
			})
		}
	}
}

// TestAPausedFlowRunIsItsContainers holds that nothing is done about a flow run whose container
// waits, neither while it is PAUSED nor when it is resumed.
func TestAPausedFlowRunIsItsContainers(t *testing.T) {
	for name, lost := range map[string]bool{"the ledger kept": false, "the ledger lost": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.running()
			r.pause(fr.ID, false)
			if lost {
				r.ledger.lose()
			}
			untouched := func(want string) {
				t.Helper()
				before := r.read(fr.ID).StateID
				r.must(r.settler.Look(t.Context(), r.holder(), fr.ID))
				r.must(r.dispatch(fr.ID))
				x := r.executions(fr.ID)
				if got := r.state(fr.ID); got != want || r.read(fr.ID).StateID != before || len(x) != 1 || !x[0].Completed.IsZero() {
					t.Fatalf("%s with executions %+v, want %s and the one alive", got, x, want)
				}
			}
			untouched("PAUSED/Paused")
			r.resume(fr.ID)
			untouched("RUNNING/Running")
		})
	}
}
