package launch_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/prefect"
)

func inSlots(c *launch.Config) { c.Options.Mode = launch.ModeSlots }

func oneSlot(c *launch.Config) { c.Options.Mode, c.Slots = launch.ModeSlots, 1 }

// warm launches a flow run in each slot, so that what follows updates jobs.
func (r *rig) warm(n int) {
	r.t.Helper()
	for range n {
		fr := r.flowRun(prefect.NewFlowRun{JobVariables: map[string]any{"command": "true"}})
		r.must(r.dispatch(fr.ID))
		r.launchedOnce(fr.ID)
	}
	r.started()
	r.later(time.Minute)
}

// started waits until every job has started its execution.
func (r *rig) started() {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		reconciling := false
		for job, err := range r.cloudRun.Jobs(r.t.Context(), project, region) {
			r.must(err)
			reconciling = reconciling || job.Reconciling
		}
		if !reconciling {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("a job does not become ready")
		}
	}
}

// TestSlotsAreUsedAgain_Prefect16007 holds that launches share a fixed set of jobs, and each execution has
// the labels and the template of its own flow run.
func TestSlotsAreUsedAgain_Prefect16007(t *testing.T) {
	r := newRig(t, inSlots)
	r.warm(3)
	r.warm(3)
	fr := r.flowRun(prefect.NewFlowRun{JobVariables: map[string]any{"command": "sleep 599", "labels": map[string]any{"own": "yes"}}})
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
	x := r.executions(fr.ID)[0]
	if x.Labels["own"] != "yes" || x.Labels[cloudrun.LabelLaunch] != string(r.record(fr.ID).LaunchID) {
		t.Errorf("labels %v", x.Labels)
	}
	if pid := r.read(fr.ID).InfrastructurePID; !strings.HasSuffix(x.Name, "/executions/"+pid) {
		t.Errorf("Prefect has infrastructure_pid %q of %s", pid, x.Name)
	}
	jobs := 0
	for job, err := range r.cloudRun.Jobs(t.Context(), project, region) {
		r.must(err)
		jobs++
		if !job.Name.Slot() {
			t.Errorf("job %s is no slot", job.Name)
		}
	}
	if jobs != 3 {
		t.Errorf("7 launches made %d jobs", jobs)
	}
}

// TestAnInterruptedLaunchInASlotIsFinishedByTheNextDelivery holds that a flow run is executed
// once whatever call failed, whether or not it had taken effect, and whether or not the
// ledger was lost, the slot new or used.
func TestAnInterruptedLaunchInASlotIsFinishedByTheNextDelivery(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "the service is unavailable")
	deadline := status.Error(codes.DeadlineExceeded, "context deadline exceeded")
	type fault func(r *rig, write string)
	for name, interrupt := range map[string]fault{
		"the answer to PENDING is lost": func(r *rig, _ string) { r.onceLost() },
		"the write fails before it acts": func(r *rig, write string) {
			r.answer(write, cloudruntest.Before, unavailable)
		},
		"the write fails after it acted":           func(r *rig, write string) { r.answer(write, cloudruntest.After, unavailable) },
		"the write takes longer than its deadline": func(r *rig, write string) { r.answer(write, cloudruntest.After, deadline) },
		"the slot cannot be read": func(r *rig, _ string) {
			r.answer("GetJob", cloudruntest.Before, status.Error(codes.Internal, "internal"))
		},
		"a crash between the write and its record": func(r *rig, write string) {
			r.strikeCloudRun(func(method string, phase cloudruntest.Phase) error {
				if method == write && phase == cloudruntest.After {
					r.ledger.down.Store(true)
				}
				return nil
			})
		},
	} {
		for slot, used := range map[string]bool{"a new slot": false, "a used slot": true} {
			for lost, lose := range map[string]bool{"the ledger is kept": false, "the ledger is lost": true} {
				t.Run(name+", "+slot+", "+lost, func(t *testing.T) {
					r := newRig(t, inSlots)
					write := "CreateJob"
					if used {
						write = "UpdateJob"
						r.warm(3)
					}
					fr := r.flowRun(prefect.NewFlowRun{})
					interrupt(r, write)
					r.fails(fr.ID)
					r.strikePrefect(nil)
					r.strikeCloudRun(nil)
					r.ledger.down.Store(false)
					if lose {
						r.ledger.lose()
					}
					r.started()
					r.later(lease)
					r.must(r.dispatch(fr.ID))
					r.launchedOnce(fr.ID)
					r.must(r.dispatch(fr.ID))
					r.launchedOnce(fr.ID)
				})
			}
		}
	}
}

// TestOfTwoUpdatesThatRaceNoneIsLost holds that an update which another one overtakes goes
// elsewhere or waits, and that the execution of neither is kept from starting.
func TestOfTwoUpdatesThatRaceNoneIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*launch.Config)
		slots   int
		overdue string // the state of the overtaken flow run after its delivery
	}{
		"and goes to another slot":           {inSlots, 3, "PENDING/Pending"},
		"and waits, where there is no other": {oneSlot, 1, "SCHEDULED/AwaitingCapacity"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.change)
			r.warm(c.slots)
			first, second := r.flowRun(prefect.NewFlowRun{}), r.flowRun(prefect.NewFlowRun{})
			var overtaken atomic.Bool
			r.strikeCloudRun(func(method string, phase cloudruntest.Phase) error {
				if method != "UpdateJob" || phase != cloudruntest.Before || overtaken.Swap(true) {
					return nil
				}
				// The ledger forgets that the slot is taken, and the other one takes it.
				_, err := r.ledger.UpdateRegion(context.Background(), project+"/"+region, func(g flowrun.Region) (flowrun.Region, error) {
					g.Slots = nil
					return g, nil
				})
				return errors.Join(err, r.dispatch(second.ID))
			})
			r.must(r.dispatch(first.ID))
			r.launchedOnce(second.ID)
			if got := r.state(first.ID); got != c.overdue {
				t.Errorf("the overtaken flow run is %s, want %s", got, c.overdue)
			}
			r.started()
			if d := r.read(first.ID).NextScheduledStartTime; d != nil {
				r.later(max(0, d.Sub(r.now())) + time.Minute)
			}
			r.must(r.dispatch(first.ID))
			r.launchedOnce(first.ID)
		})
	}
}

// TestAnUnclearUpdateThatWasOvertakenIsMadeElsewhere holds that an update of which nobody
// knows what came is not believed lost because the slot holds another launch, and is made
// again only where it can no longer take effect.
func TestAnUnclearUpdateThatWasOvertakenIsMadeElsewhere(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "the service is unavailable")
	for name, phase := range map[string]cloudruntest.Phase{"it had no effect": cloudruntest.Before, "it had taken effect": cloudruntest.After} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, oneSlot)
			r.warm(1)
			first, second := r.flowRun(prefect.NewFlowRun{}), r.flowRun(prefect.NewFlowRun{})
			r.answer("UpdateJob", phase, unavailable)
			r.fails(first.ID)
			r.started()
			r.later(lease)
			r.must(r.dispatch(second.ID))
			r.launchedOnce(second.ID)
			r.started()
			r.later(lease)
			r.must(r.dispatch(first.ID))
			r.launchedOnce(first.ID)
		})
	}
}

// TestASlotIsNotTakenWhileItStartsAnExecution holds that a launch waits rather than keep
// another one's execution from starting.
func TestASlotIsNotTakenWhileItStartsAnExecution(t *testing.T) {
	r := newRigOf(t, cloudruntest.Options{ReadyDelay: 300 * time.Millisecond}, oneSlot)
	first, second := r.flowRun(prefect.NewFlowRun{}), r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(first.ID))
	r.later(time.Minute) // long after the ledger thinks it is there
	r.must(r.dispatch(second.ID))
	if got := r.state(second.ID); got != "SCHEDULED/AwaitingCapacity" {
		t.Fatalf("the second flow run is %s", got)
	}
	r.started()
	r.launchedOnce(first.ID)
	r.later(time.Minute)
	r.must(r.dispatch(second.ID))
	r.started()
	r.launchedOnce(second.ID)
}

// TestAFailureToStartIsToldBeforeItsSlotIsTaken holds that why an execution never started is
// not lost with the next update.
func TestAFailureToStartIsToldBeforeItsSlotIsTaken(t *testing.T) {
	r := newRig(t, oneSlot)
	broken := r.flowRun(prefect.NewFlowRun{JobVariables: map[string]any{"image": "gone/missing"}})
	r.must(r.dispatch(broken.ID))
	r.started()
	next := r.flowRun(prefect.NewFlowRun{})
	r.later(time.Minute)
	r.must(r.dispatch(next.ID))
	if got := r.state(next.ID); got != "SCHEDULED/AwaitingCapacity" {
		t.Fatalf("the next flow run is %s although the slot's failure was not told", got)
	}
	r.must(r.settler.Look(t.Context(), r.holder(), broken.ID))
	if got := r.read(broken.ID); got.StateType != flowrun.StateCrashed || !strings.Contains(got.State.Message, "image") {
		t.Errorf("the flow run whose image is missing is %s: %q", got.StateType, got.State.Message)
	}
	r.later(time.Minute)
	r.must(r.dispatch(next.ID))
	r.launchedOnce(next.ID)
}

// TestACancelledLaunchLeavesItsSlotToOthers holds that no job with others' executions is
// deleted, and that the cancelled one ends.
func TestACancelledLaunchLeavesItsSlotToOthers(t *testing.T) {
	r := newRigOf(t, cloudruntest.Options{ReadyDelay: 300 * time.Millisecond, StopGrace: 100 * time.Millisecond}, oneSlot)
	other := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(other.ID))
	r.started()
	r.later(time.Minute)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(fr.ID))
	r.set(fr.ID, flowrun.StateCancelling)
	r.must(r.dispatch(fr.ID)) // while it is starting
	r.started()
	r.later(lease)
	r.must(r.settler.Look(t.Context(), r.holder(), fr.ID))
	for deadline := time.Now().Add(20 * time.Second); r.executions(fr.ID)[0].Completed.IsZero(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the cancelled execution does not end")
		}
	}
	r.later(lease)
	r.must(r.settler.Look(t.Context(), r.holder(), fr.ID))
	if got := r.state(fr.ID); got != "CANCELLED/Cancelled" {
		t.Errorf("the flow run is %s", got)
	}
	r.launchedOnce(other.ID)
	if x := r.executions(other.ID)[0]; !x.Completed.IsZero() {
		t.Errorf("the other's execution is %s", x.State)
	}
}

// TestManyLaunchesRaceForFewSlots holds that instances which launch at the same time, with a
// ledger that is lost between, launch each flow run once.
func TestManyLaunchesRaceForFewSlots(t *testing.T) {
	for name, mode := range map[string]func(*launch.Config){
		"slots": func(c *launch.Config) { c.Options.Mode, c.Slots = launch.ModeSlots, 4 },
		"jobs":  func(*launch.Config) {},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRigOf(t, cloudruntest.Options{ReadyDelay: 20 * time.Millisecond}, mode)
			const count = 24
			var ids []string
			for range count {
				ids = append(ids, r.flowRun(prefect.NewFlowRun{}).ID)
			}
			launched := map[string]bool{}
			for round := 0; len(launched) < count && round < 40; round++ {
				var g errgroup.Group
				for range 2 {
					for _, id := range ids {
						if !launched[id] {
							g.Go(func() error { _ = r.dispatch(id); return nil })
						}
					}
				}
				_ = g.Wait()
				r.started()
				if round%7 == 6 {
					r.ledger.lose()
				}
				r.later(20 * time.Second)
				for _, id := range ids {
					if x := r.executions(id); len(x) == 1 {
						launched[id] = true
					} else if len(x) > 1 {
						t.Fatalf("flow run %s has %d executions", id, len(x))
					}
				}
			}
			if len(launched) != count {
				t.Errorf("%d of %d flow runs were launched", len(launched), count)
			}
		})
	}
}

// TestCloudRunTakesATokenOnce holds what slots rely on: a token that was used starts nothing.
func TestCloudRunTakesATokenOnce(t *testing.T) {
	r := newRig(t)
	id := flowrun.NewLaunchID(install, "flow run", "state")
	name := cloudrun.JobName{Project: project, Region: region, Job: cloudrun.SlotJob("pushpool", 0)}
	job := func() *runpb.Job {
		return &runpb.Job{Template: &runpb.ExecutionTemplate{Template: &runpb.TaskTemplate{Containers: []*runpb.Container{{Image: "i", Command: []string{"true"}}}}}}
	}
	etag := func() string {
		j, err := r.cloudRun.Job(t.Context(), name)
		r.must(err)
		return j.Etag
	}
	r.must(r.cloudRun.CreateJob(t.Context(), cloudrun.Launch{Name: name, ID: id, Job: job()}))
	before := etag()
	r.must(r.cloudRun.UpdateJob(t.Context(), cloudrun.Launch{Name: name, ID: id, Job: job()}, before)) // the last token again
	other := flowrun.NewLaunchID(install, "flow run", "another state")
	err := r.cloudRun.UpdateJob(t.Context(), cloudrun.Launch{Name: name, ID: other, Job: job()}, before)
	if !errors.Is(err, cloudrun.ErrChanged) || flowrun.FaultOf(err) != flowrun.Refused {
		t.Errorf("an update of an older version: %v", err)
	}
	r.must(r.cloudRun.UpdateJob(t.Context(), cloudrun.Launch{Name: name, ID: other, Job: job()}, etag()))
	err = r.cloudRun.UpdateJob(t.Context(), cloudrun.Launch{Name: name, ID: id, Job: job()}, etag()) // an older token
	if flowrun.FaultOf(err) != flowrun.Exists {
		t.Errorf("a token that was used before: %v", err)
	}
	if n := len(r.emulator.Executions()); n != 2 {
		t.Errorf("%d executions of two tokens", n)
	}
}
