package launch_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestAnInterruptedLaunchIsFinishedByTheNextDelivery_Prefect16448_20485 holds that a flow run is executed once,
// whatever call of the first delivery failed, whether or not it had taken effect, and whether
// or not the ledger was lost afterwards.
func TestAnInterruptedLaunchIsFinishedByTheNextDelivery_Prefect16448_20485(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "the service is unavailable")
	for name, fault := range map[string]func(r *rig){
		"the answer to PENDING is lost":  func(r *rig) { r.onceLost() },
		"CreateJob fails before it acts": func(r *rig) { r.answer("CreateJob", cloudruntest.Before, unavailable) },
		"CreateJob fails after it acted": func(r *rig) { r.answer("CreateJob", cloudruntest.After, unavailable) },
		"CreateJob takes longer than its deadline": func(r *rig) {
			r.answer("CreateJob", cloudruntest.After, status.Error(codes.DeadlineExceeded, "context deadline exceeded"))
		},
		"a crash before the region is recorded": func(r *rig) {
			r.strikePrefect(func(_ http.ResponseWriter, req *http.Request, _ http.Handler) bool {
				if strings.HasPrefix(req.URL.Path, "/api/deployments/") && req.Method == http.MethodGet {
					r.ledger.down.Store(true)
				}
				return false
			})
		},
		"a crash between CreateJob and its record": func(r *rig) {
			r.strikeCloudRun(func(method string, phase cloudruntest.Phase) error {
				if method == "CreateJob" && phase == cloudruntest.After {
					r.ledger.down.Store(true)
				}
				return nil
			})
		},
	} {
		for lost, lose := range map[string]bool{"the ledger is kept": false, "the ledger is lost": true} {
			t.Run(name+", "+lost, func(t *testing.T) {
				r := newRig(t)
				fr := r.flowRun(prefect.NewFlowRun{})
				fault(r)
				r.fails(fr.ID)
				r.strikePrefect(nil)
				r.strikeCloudRun(nil)
				r.ledger.down.Store(false)
				if lose {
					r.ledger.lose()
				}
				r.later(lease) // where nobody gave it back
				if !lose {
					r.must(r.people.UpdateFlowRun(t.Context(), fr.ID, map[string]any{"name": "renamed"}))
				}
				r.must(r.dispatch(fr.ID))
				r.launchedOnce(fr.ID)
				r.must(r.dispatch(fr.ID))
				r.launchedOnce(fr.ID)
			})
		}
	}
}

// TestAJobThatWasMadeIsNotMadeAgain holds that one launch has one execution where the ledger is
// lost and somebody deleted the job: the flow run tells that there was one.
func TestAJobThatWasMadeIsNotMadeAgain(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(fr.ID))
	r.deleteJob(r.record(fr.ID).ExecutionName)
	r.ledger.lose()
	for range 3 {
		r.must(r.dispatch(fr.ID))
		r.later(time.Minute)
	}
	if got, x := r.state(fr.ID), r.executions(fr.ID); got != "CRASHED/Crashed" || len(x) != 1 {
		t.Errorf("%s with %d executions, want CRASHED with the one that was deleted", got, len(x))
	}
}

// TestWhatAnEarlierTryMadeIsNotMadeAgain holds that one launch has one execution where the answer to its creation was
// lost, and somebody deleted its job when it ran, while the next try was under way.
func TestWhatAnEarlierTryMadeIsNotMadeAgain(t *testing.T) {
	r := newRig(t)
	fr := r.unclear()
	r.later(lease)
	var once sync.Once
	r.strikePrefect(func(_ http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		if strings.HasPrefix(req.URL.Path, "/api/deployments/") && req.Method == http.MethodGet {
			once.Do(func() {
				r.set(fr.ID, flowrun.StateRunning)
				r.deleteJob(r.executions(fr.ID)[0].Name)
			})
		}
		return false
	})
	r.must(r.dispatch(fr.ID))
	if x := r.executions(fr.ID); len(x) != 1 {
		t.Errorf("%d executions, want the one that was deleted", len(x))
	}
}

// TestALaunchThatWasMadeIsRecorded holds that the ledger has it though the message's time is over.
func TestALaunchThatWasMadeIsRecorded(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	ctx, cancel := context.WithCancel(t.Context())
	r.strikePrefect(func(_ http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		if req.Method == http.MethodPatch { // infrastructure_pid, after CreateJob
			cancel()
		}
		return false
	})
	r.must(r.launcher.Dispatch(ctx, r.holder(), fr.ID, r.now()))
	r.launchedOnce(fr.ID)
}

// TestALaunchThatWasOvertakenIsUndone holds that what was made for a launch that had to be
// stopped meanwhile does not stay.
func TestALaunchThatWasOvertakenIsUndone(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.strikeCloudRun(func(method string, phase cloudruntest.Phase) error {
		if method != "CreateJob" || phase != cloudruntest.After {
			return nil
		}
		r.later(lease) // the answer takes longer than the lease
		r.set(fr.ID, flowrun.StateCancelling)
		for _, e := range []flowrun.Event{
			flowrun.Taken{Lease: flowrun.Lease{Holder: "other", Until: r.now().Add(lease)}},
			flowrun.Abandon{Holder: "other", Reason: "cancelled"}, flowrun.Released{Holder: "other"},
		} {
			_, err := r.ledger.Update(t.Context(), fr.ID, func(rec flowrun.Record) (flowrun.Record, error) { return flowrun.Apply(rec, e, r.now()) })
			r.must(err)
		}
		return nil
	})
	r.must(r.dispatch(fr.ID))
	if got := r.read(fr.ID).StateType; got != flowrun.StateCancelling {
		t.Errorf("%s before it is over, want CANCELLING", got)
	}
	r.over(fr.ID)
	for range 2 { // nothing starts afterwards
		r.later(time.Minute)
		r.must(r.dispatch(fr.ID))
	}
	if x := r.executions(fr.ID); len(x) != 1 || x[0].State != cloudruntest.Cancelled {
		t.Errorf("%+v, want it cancelled", x)
	}
	if got := r.state(fr.ID); got != "CANCELLED/Cancelled" {
		t.Errorf("%s, want CANCELLED", got)
	}
}

// TestTheLedgerFollowsPrefect holds that a launch of ours that Prefect has and the ledger does
// not is finished, although the ledger has another one under way.
func TestTheLedgerFollowsPrefect(t *testing.T) {
	r := newRig(t)
	fr := r.running()
	r.kill(fr.ID)
	r.set(fr.ID, flowrun.StateCrashed, flowrun.StateScheduled)
	second := launchID(r.read(fr.ID))
	_, err := r.people.SetState(t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(second)})
	r.must(err)
	r.messages.take()
	r.must(r.dispatch(fr.ID))
	if diff := cmp.Diff([]sent{{FlowRunID: fr.ID}}, r.messages.take()); diff != "" {
		t.Fatal(diff)
	}
	r.must(r.dispatch(fr.ID))
	if rec := r.record(fr.ID); rec.LaunchID != second || rec.Status != flowrun.StatusLaunched || len(r.executions(fr.ID)) != 2 {
		t.Errorf("the ledger has %s %s, %d executions, want %s launched", rec.LaunchID, rec.Status, len(r.executions(fr.ID)), second)
	}
}

// TestALiveLeaseIsWaitedFor holds that a second delivery does nothing while the first may be at it.
func TestALiveLeaseIsWaitedFor(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.answer("CreateJob", cloudruntest.Before, status.Error(codes.Unavailable, "the service is unavailable"))
	r.fails(fr.ID)
	r.must(r.dispatch(fr.ID)) // the request may still be under way
	if got := len(r.executions(fr.ID)); got != 0 {
		t.Fatalf("%d executions while the first request may be under way, want none", got)
	}
	r.later(callTimeout)
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
}

// TestAnInterruptedLaunchIsFoundInAnotherRegion holds that with the ledger lost a launch is not
// made again in the region that the template names by now.
func TestAnInterruptedLaunchIsFoundInAnotherRegion(t *testing.T) {
	r := newRig(t, func(c *launch.Config) { c.Regions = []string{region, "europe-west1"} })
	r.deployed = r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "eu", WorkPool: "etl", JobVariables: map[string]any{"region": "europe-west1"}})
	fr := r.unclear()
	r.ledger.lose()
	r.patch("/deployments/"+r.deployed.ID, map[string]any{"job_variables": map[string]any{"region": region}})
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
	if got := r.record(fr.ID).Region; got != "europe-west1" {
		t.Errorf("region %s, want europe-west1, where it was made", got)
	}
}
