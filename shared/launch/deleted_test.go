package launch_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestAFlowRunOfADeletedDeploymentIsCancelled_Prefect16213 holds that a flow run that outlives its deployment
// ends as with Prefect's worker, whatever it waits for, and is not looked at again and again.
func TestAFlowRunOfADeletedDeploymentIsCancelled_Prefect16213(t *testing.T) {
	newRig(t).cancelsWithoutDeployment()
}

// TestAFlowRunOfADeletedDeploymentIsCancelledOfRealServer does the same at the server that PUSHPOOL_TEST_PREFECT names.
func TestAFlowRunOfADeletedDeploymentIsCancelledOfRealServer(t *testing.T) {
	newRealRig(t).cancelsWithoutDeployment()
}

func (r *rig) cancelsWithoutDeployment() {
	t, one := r.t, 1
	for name, tt := range map[string]struct {
		limit  *int
		before func(prefect.FlowRun) // the deployment is deleted
		after  func(prefect.FlowRun)
	}{
		"put back while it is deleted": {
			before: func(fr prefect.FlowRun) { r.set(fr.ID, flowrun.StatePending) },
			after:  func(fr prefect.FlowRun) { r.set(fr.ID, flowrun.StateScheduled) },
		},
		"started before, and to start again": {
			before: func(fr prefect.FlowRun) {
				r.set(fr.ID, flowrun.StatePending, flowrun.StateRunning, flowrun.StateFailed, flowrun.StateScheduled)
			},
		},
		"refused a slot": {
			limit: &one,
			before: func(fr prefect.FlowRun) {
				first, _, err := r.people.CreateFlowRun(t.Context(), fr.DeploymentID, prefect.NewFlowRun{})
				r.must(err)
				r.set(first.ID, flowrun.StatePending)
				r.set(fr.ID, flowrun.StatePending)
			},
		},
		"claimed, and not launched yet": {
			before: func(fr prefect.FlowRun) {
				_, err := r.people.SetState(t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(launchID(fr))})
				r.must(err)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			d, err := r.people.CreateDeployment(t.Context(), prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: r.holder(), WorkPool: "etl", ConcurrencyLimit: tt.limit})
			if tt.limit != nil && flowrun.FaultOf(err) == flowrun.Permanent {
				return // 2.20 has no limits of deployments
			}
			r.must(err)
			fr, _, err := r.people.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{})
			r.must(err)
			tt.before(r.read(fr.ID))
			r.send(http.MethodDelete, "/deployments/"+d.ID, nil)
			if _, err := r.people.FlowRun(t.Context(), fr.ID); flowrun.FaultOf(err) == flowrun.NotFound && err != nil {
				r.must(r.launcher.Dispatch(t.Context(), r.holder(), fr.ID, r.now().Add(-time.Minute)))
				return // a server of 2.20 deletes all that is SCHEDULED
			}
			if tt.after != nil {
				tt.after(r.read(fr.ID))
			}
			r.must(r.dispatch(fr.ID))
			got := r.read(fr.ID)
			if want := "Deployment " + d.ID + " no longer exists, cancelled run."; got.StateType != flowrun.StateCancelled || got.State.Message != want {
				t.Errorf("the flow run is %s, %q, want CANCELLED, %q", got.StateType, got.State.Message, want)
			}
			if rec := r.record(fr.ID); rec.LeaseHolder != "" || rec.Unreported() || !rec.Status.Over() {
				t.Errorf("the ledger has %+v, want it over and told", rec)
			}
			r.calls.Store(0)
			r.must(r.dispatch(fr.ID))
			if got := r.calls.Load(); got != 1 || len(r.executions(fr.ID)) != 0 {
				t.Errorf("afterwards %d calls and %d executions, want one call and none", got, len(r.executions(fr.ID)))
			}
		})
	}
	r.t = t
}
