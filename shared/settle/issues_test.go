package settle_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// TestALiveExecutionOutlivesItsCompletedFlowRun_Prefect23025 holds that a container which has
// reported its end is not stopped while it winds up, and that whatever becomes of it then, a
// signal or a deletion, changes nothing.
func TestALiveExecutionOutlivesItsCompletedFlowRun_Prefect23025(t *testing.T) {
	for _, was := range []flowrun.StateType{flowrun.StateCompleted, flowrun.StateFailed} {
		for _, kind := range []flowrun.OutcomeKind{flowrun.Signal, flowrun.ExitCode, flowrun.Deleted} {
			for _, lost := range []bool{false, true} {
				r := newRig(t)
				fr := r.flowRun()
				l := r.launch(fr.ID, "prefect", "flow-run", "execute")
				r.bring(fr.ID, was)
				before := r.read(fr.ID)
				if lost {
					r.ledger.lose()
				}
				for range 3 {
					r.must(r.look(fr.ID))
					r.later(time.Minute)
				}
				if len(r.cloudRun.stopped) > 0 {
					t.Errorf("%s, ledger lost %t: stopped %v", was, lost, r.cloudRun.stopped)
				}
				r.must(r.ended(fr.ID, l, kind))
				if now := r.read(fr.ID); now.StateID != before.StateID || r.told.Load() != 0 {
					t.Errorf("%s, ledger lost %t: after a %s it is %s", was, lost, kind, now.StateType)
				}
			}
		}
	}
}

// TestNobodyIsCrashedWhileItsExecutionLives_Prefect16429_13020 holds that neither a slow start
// nor a long silence is taken for an end: a flow run that was told CRASHED would complete later.
func TestNobodyIsCrashedWhileItsExecutionLives_Prefect16429_13020(t *testing.T) {
	for _, was := range []flowrun.StateType{flowrun.StatePending, flowrun.StateRunning} {
		for _, lost := range []bool{false, true} {
			r := newRig(t)
			fr := r.flowRun()
			r.launch(fr.ID)
			r.bring(fr.ID, was)
			before := r.read(fr.ID)
			if lost {
				r.ledger.lose()
			}
			for range 5 {
				r.must(r.look(fr.ID))
				r.later(10 * time.Second)
			}
			if now := r.read(fr.ID); now.StateID != before.StateID || len(r.cloudRun.stopped) > 0 {
				t.Errorf("%s, ledger lost %t: it is %s, stopped %v", was, lost, now.StateType, r.cloudRun.stopped)
			}
		}
	}
}

// TestACancellationNeedsNoDeployment_Prefect12389 holds that a flow run ends although the
// deployment that it was made from is gone.
func TestACancellationNeedsNoDeployment_Prefect12389(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.launch(fr.ID)
	r.bring(fr.ID, flowrun.StateRunning)
	r.send(http.MethodDelete, "/deployments/"+r.deployed.ID, nil)
	r.set(fr.ID, flowrun.StateCancelling)
	r.must(r.look(fr.ID))
	if len(r.cloudRun.stopped) != 1 || !strings.HasPrefix(r.cloudRun.stopped[0], "cancel "+l.JobName) {
		t.Fatalf("stopped %v", r.cloudRun.stopped)
	}
	r.cloudRun.end(l, flowrun.Cancelled, r.now())
	r.must(r.look(fr.ID))
	if got := r.state(fr.ID); got != flowrun.StateCancelled {
		t.Errorf("%s, want CANCELLED", got)
	}
}
