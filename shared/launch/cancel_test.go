package launch_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestWhatWaitsCanBeCancelled holds that a flow run that waits, for whatever it is, is CANCELLED when a person
// cancels it, and that what it waited for launches nothing when it comes.
func TestWhatWaitsCanBeCancelled(t *testing.T) {
	for rule, wait := range map[string]func(r *rig) (id string, waitsAs string){
		"for its time": func(r *rig) (string, string) {
			at := r.now().Add(time.Minute)
			fr := r.flowRun(prefect.NewFlowRun{ScheduledTime: &at})
			r.must(r.dispatch(fr.ID))
			return fr.ID, "SCHEDULED/Scheduled"
		},
		"for capacity": func(r *rig) (string, string) {
			fr := r.flowRun(prefect.NewFlowRun{})
			r.answer("CreateJob", cloudruntest.Before, status.Error(codes.ResourceExhausted, "Quota exceeded"))
			r.must(r.dispatch(fr.ID))
			return fr.ID, "SCHEDULED/AwaitingCapacity"
		},
		"for a slot of its deployment": func(r *rig) (string, string) {
			r.deploymentLimit(1, "")
			first, second := r.flowRun(prefect.NewFlowRun{}), r.flowRun(prefect.NewFlowRun{})
			r.must(r.dispatch(first.ID))
			r.must(r.dispatch(second.ID))
			r.set(first.ID, flowrun.StateRunning, flowrun.StateCompleted)
			return second.ID, "SCHEDULED/AwaitingConcurrencySlot"
		},
		"for a slot of its work pool": func(r *rig) (string, string) {
			r.limit(1)
			first, second := r.flowRun(prefect.NewFlowRun{}), r.flowRun(prefect.NewFlowRun{})
			r.must(r.dispatch(first.ID))
			r.must(r.dispatch(second.ID))
			r.set(first.ID, flowrun.StateRunning, flowrun.StateCompleted)
			return second.ID, "SCHEDULED/Scheduled"
		},
		"for its next launch, after one that ended": func(r *rig) (string, string) {
			fr := r.running()
			r.kill(fr.ID)
			r.must(r.ended(fr.ID, flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 1}))
			at := r.now().Add(time.Minute)
			_, err := r.people.SetState(r.t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StateScheduled, ScheduledTime: &at})
			r.must(err)
			r.must(r.dispatch(fr.ID))
			return fr.ID, "SCHEDULED/Scheduled"
		},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t)
			id, waitsAs := wait(r)
			if got := r.state(id); got != waitsAs {
				t.Fatalf("it waits as %s, want %s", got, waitsAs)
			}
			before := len(r.executions(id))
			r.set(id, flowrun.StateCancelling) // as the user interface does
			r.must(r.dispatch(id))             // the event about it, where Prefect did not end it by itself
			r.later(2 * time.Minute)
			r.must(r.dispatch(id)) // a timer
			r.must(r.launcher.Wake(t.Context(), r.holder(), message.Wake{WorkPool: "etl", DeploymentID: r.deployed.ID}))
			if got := r.state(id); got != "CANCELLED/Cancelled" || len(r.executions(id)) != before {
				t.Errorf("%s with %d executions more, want CANCELLED with none", got, len(r.executions(id))-before)
			}
		})
	}
}
