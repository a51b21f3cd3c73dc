package settle_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

// check is what a sweep does with a flow run that it listed.
func (r *rig) check(id string) error {
	return r.settler.Check(r.t.Context(), uuid.NewString(), r.read(id), r.record(id))
}

func (r *rig) stray(l flowrun.Launch, id string) error {
	return r.settler.Stray(r.t.Context(), uuid.NewString(), id, executionOf(l))
}

// TestWhatAgreesCostsOneRead holds which flow runs a sweep asks nothing more about while their
// execution is alive.
func TestWhatAgreesCostsOneRead(t *testing.T) {
	for name, tt := range map[string]struct {
		was    flowrun.StateType
		change func(r *rig, id string)
		agrees bool
	}{
		"PENDING":                         {flowrun.StatePending, nil, true},
		"RUNNING":                         {flowrun.StateRunning, nil, true},
		"PAUSED":                          {flowrun.StatePaused, nil, true},
		"its own container runs it again": {inProcess, nil, true},
		"COMPLETED, cleaning up":          {flowrun.StateCompleted, func(r *rig, _ string) { r.later(time.Hour) }, true},
		"FAILED, cleaning up":             {flowrun.StateFailed, func(r *rig, _ string) { r.later(time.Hour) }, true},
		"CRASHED just now":                {flowrun.StateCrashed, nil, true},
		"CANCELLED just now":              {flowrun.StateCancelled, nil, true},

		"PENDING for too long":         {flowrun.StatePending, func(r *rig, _ string) { r.later(startDeadline) }, false},
		"CANCELLING":                   {flowrun.StateCancelling, nil, false},
		"CRASHED, and lives on":        {flowrun.StateCrashed, func(r *rig, _ string) { r.later(cancelGrace) }, false},
		"CANCELLED, and lives on":      {flowrun.StateCancelled, func(r *rig, _ string) { r.later(cancelGrace) }, false},
		"to be launched anew":          {flowrun.StateScheduled, nil, false},
		"RUNNING, launched by another": {flowrun.StateRunning, func(r *rig, id string) { r.pid(id, "theirs") }, false},
		"PENDING, claimed by another": {flowrun.StateScheduled, func(r *rig, id string) {
			r.propose(id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
		}, false},
		"abandoned": {flowrun.StateRunning, func(r *rig, id string) {
			r.apply(id, flowrun.Taken{Lease: flowrun.Lease{Holder: "h", Until: r.now()}}, flowrun.Abandon{Holder: "h"})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			r.launch(fr.ID)
			r.bring(fr.ID, tt.was)
			if tt.change != nil {
				tt.change(r, fr.ID)
			}
			if got := r.settler.Agrees(r.read(fr.ID), r.record(fr.ID)); got != tt.agrees {
				t.Fatalf("agrees %t, want %t", got, tt.agrees)
			}
			calls := r.calls.Load()
			if err := r.check(fr.ID); err != nil && !errors.Is(err, settle.ErrWait) {
				t.Fatal(err)
			}
			if called := r.calls.Load() > calls; called == tt.agrees {
				t.Errorf("Prefect was asked: %t", called)
			}
		})
	}
}

// TestALaunchThatCameLateHasAllOfItsTime holds that the start deadline of a flow run that was PENDING for long
// before Cloud Run had its job begins with the job.
func TestALaunchThatCameLateHasAllOfItsTime(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.claimed(fr.ID)
	r.later(startDeadline - time.Second)
	r.apply(fr.ID,
		flowrun.Attempted{Holder: "launcher", LaunchID: l.LaunchID, Region: region, JobName: l.JobName},
		flowrun.Launched{Holder: "launcher", LaunchID: l.LaunchID, ExecutionName: executionOf(l).String()})
	r.must(r.people.UpdateFlowRun(t.Context(), fr.ID, map[string]any{"infrastructure_pid": l.JobName}))
	r.cloudRun.start(l)
	for _, after := range []time.Duration{time.Minute, startDeadline} {
		r.later(after)
		if agrees := r.settler.Agrees(r.read(fr.ID), r.record(fr.ID)); agrees != (after < startDeadline) {
			t.Errorf("%s after the last look: agrees %t", after, agrees)
		}
	}
}

// TestALaunchThatCameLateHasAllOfItsTimeThoughTheLedgerIsLost holds that the job tells when it was made.
func TestALaunchThatCameLateHasAllOfItsTimeThoughTheLedgerIsLost(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.claimed(fr.ID)
	r.later(startDeadline - time.Second)
	r.must(r.people.UpdateFlowRun(t.Context(), fr.ID, map[string]any{"infrastructure_pid": l.JobName}))
	r.cloudRun.start(l)
	r.cloudRun.unstarted(l, cloudrun.Job{Reconciling: true, CreateTime: r.now()})
	r.ledger.lose()
	for _, after := range []time.Duration{time.Minute, startDeadline} {
		r.later(after)
		if err := r.check(fr.ID); err != nil && !errors.Is(err, settle.ErrWait) {
			t.Fatal(err)
		}
		if stopped := r.cloudRun.stopped != nil; stopped != (after == startDeadline) {
			t.Errorf("%s after the last look: stopped %t", after, stopped)
		}
	}
}

// TestAnEndThatNobodyToldIsFoundByACheck holds that what a check reads is believed at once
// where it is an end, and twice where it is nothing.
func TestAnEndThatNobodyToldIsFoundByACheck(t *testing.T) {
	r := newRig(t)
	ended, gone := r.flowRun(), r.flowRun()
	l, m := r.launch(ended.ID), r.launch(gone.ID)
	r.bring(ended.ID, flowrun.StateRunning)
	r.bring(gone.ID, flowrun.StateRunning)
	r.cloudRun.end(l, flowrun.ExitCode, r.now())
	r.cloudRun.vanish(m)
	for range 2 {
		r.must(r.check(ended.ID))
		r.must(r.check(gone.ID))
		r.later(grace)
	}
	for _, id := range []string{ended.ID, gone.ID} {
		if got := r.state(id); got != flowrun.StateCrashed {
			t.Errorf("%s, want CRASHED", got)
		}
	}
}

// TestAStartThatTakesTooLongIsGivenUp holds that it is stopped, seen gone, and only then reported,
// with what it waited for.
func TestAStartThatTakesTooLongIsGivenUp(t *testing.T) {
	for name, tt := range map[string]struct {
		make    func(r *rig, id string) flowrun.Launch
		stopped func(l flowrun.Launch) []string
		says    string
	}{
		"a job that never becomes ready": {func(r *rig, id string) flowrun.Launch {
			l := r.launch(id)
			r.cloudRun.unstarted(l, cloudrun.Job{Reconciling: true, Waiting: "Imported container image is being prepared."})
			return l
		}, func(l flowrun.Launch) []string { return []string{"delete " + region + "/" + l.JobName} }, "Imported container image is being prepared."},
		"a container in which no flow starts": {func(r *rig, id string) flowrun.Launch { return r.launch(id) },
			func(l flowrun.Launch) []string { return []string{"cancel " + executionOf(l).Execution} }, "no flow in it reported to Prefect"},
		"a job that cannot be made": {func(r *rig, id string) flowrun.Launch { return r.claimed(id) },
			func(flowrun.Launch) []string { return nil }, "no job could be created"},
		"a job that cannot be made, tried somewhere": {func(r *rig, id string) flowrun.Launch {
			l := r.claimed(id)
			r.apply(id, flowrun.Attempted{Holder: "launcher", LaunchID: l.LaunchID, Region: region, JobName: l.JobName})
			return l
		}, func(flowrun.Launch) []string { return nil }, "no job could be created"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			l := tt.make(r, fr.ID)
			for range 3 {
				r.later(startDeadline / 4)
				if err := r.check(fr.ID); err != nil || r.cloudRun.stopped != nil || r.state(fr.ID) != flowrun.StatePending {
					t.Fatalf("%s before its time was over, %v, stopped %v", r.state(fr.ID), err, r.cloudRun.stopped)
				}
			}
			r.later(startDeadline / 4)
			for range 4 {
				if err := r.check(fr.ID); err != nil && !errors.Is(err, settle.ErrWait) {
					t.Fatal(err)
				}
				if r.cloudRun.stopped != nil && r.state(fr.ID) == flowrun.StatePending && r.record(fr.ID).Status != flowrun.StatusAbandoned {
					t.Fatalf("the ledger has %s while it is being stopped", r.record(fr.ID).Status)
				}
				if x, alive := r.cloudRun.executions[executionOf(l)]; alive && x.Outcome == nil && r.cloudRun.stopped != nil {
					if r.state(fr.ID) != flowrun.StatePending {
						t.Fatalf("%s while its execution lives", r.state(fr.ID))
					}
					r.cloudRun.end(l, flowrun.Cancelled, r.now())
				}
				r.later(grace)
			}
			now := r.read(fr.ID)
			if now.StateType != flowrun.StateCrashed || !strings.Contains(now.State.Message, tt.says) {
				t.Errorf("%s %q, want CRASHED saying %q", now.StateType, now.State.Message, tt.says)
			}
			if diff := cmp.Diff(tt.stopped(l), r.cloudRun.stopped); diff != "" {
				t.Errorf("stopped (-want +got):\n%s", diff)
			}
			if rec := r.record(fr.ID); rec.Outcome != flowrun.NotStarted || rec.Open() {
				t.Errorf("the ledger has %s, open %t", rec.Outcome, rec.Open())
			}
		})
	}
}

// TestAnExecutionDoesNotOutliveItsFlowRun holds that one is stopped whose flow run crashed or was
// cancelled, after a grace, and none because its flow run completed or failed.
func TestAnExecutionDoesNotOutliveItsFlowRun(t *testing.T) {
	for was, stops := range map[flowrun.StateType]bool{
		flowrun.StateCrashed: true, flowrun.StateCancelled: true, flowrun.StateCompleted: false, flowrun.StateFailed: false,
	} {
		t.Run(string(was), func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			l := r.launch(fr.ID)
			r.bring(fr.ID, was)
			before := r.read(fr.ID)
			r.must(r.look(fr.ID))
			if r.cloudRun.stopped != nil {
				t.Fatalf("stopped %v within the grace", r.cloudRun.stopped)
			}
			r.later(cancelGrace)
			err := r.look(fr.ID)
			var want []string
			if stops {
				want = []string{"cancel " + executionOf(l).Execution}
			}
			if diff := cmp.Diff(want, r.cloudRun.stopped); diff != "" || errors.Is(err, settle.ErrWait) != stops {
				t.Errorf("%v: stopped (-want +got):\n%s", err, diff)
			}
			r.cloudRun.end(l, flowrun.Cancelled, r.now())
			r.must(r.look(fr.ID))
			if diff := cmp.Diff(before, r.read(fr.ID)); diff != "" {
				t.Errorf("the flow run was changed:\n%s", diff)
			}
			if r.record(fr.ID).Open() {
				t.Error("the launch is still open in the ledger")
			}
		})
	}
}

// TestTwoLaunchersOfOneFlowRun holds that ours is stopped where a worker took the flow run over.
func TestTwoLaunchersOfOneFlowRun(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.launch(fr.ID)
	r.bring(fr.ID, flowrun.StateScheduled)
	r.propose(fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
	r.pid(fr.ID, "theirs")
	r.set(fr.ID, flowrun.StateRunning)
	before := r.read(fr.ID)
	if err := r.check(fr.ID); !errors.Is(err, settle.ErrWait) {
		t.Errorf("%v, want our execution stopped", err)
	}
	if diff := cmp.Diff([]string{"cancel " + executionOf(l).Execution}, r.cloudRun.stopped); diff != "" {
		t.Error(diff)
	}
	r.cloudRun.end(l, flowrun.Cancelled, r.now())
	r.must(r.look(fr.ID))
	if diff := cmp.Diff(before, r.read(fr.ID)); diff != "" {
		t.Errorf("the worker's flow run was changed:\n%s", diff)
	}
}

// TestSomebodyElsesFlowRunIsAskedAboutOnce holds that a look notes it, and that nothing of ours is noted so.
func TestSomebodyElsesFlowRunIsAskedAboutOnce(t *testing.T) {
	r := newRig(t)
	theirs, ours := r.flowRun(), r.flowRun()
	r.propose(theirs.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
	r.launch(ours.ID)
	r.bring(ours.ID, flowrun.StateRunning)
	r.must(r.look(theirs.ID))
	r.must(r.look(ours.ID))
	if got := r.record(theirs.ID).ForeignStateID; got != r.read(theirs.ID).StateID {
		t.Errorf("noted %q, want the state that it has", got)
	}
	if got := r.record(ours.ID).ForeignStateID; got != "" {
		t.Errorf("noted %q of our own", got)
	}
}

// TestStrays holds what becomes of a living execution that the ledger does not hold for its flow
// run's current launch.
func TestStrays(t *testing.T) {
	for name, tt := range map[string]struct {
		before  func(r *rig, id string)
		stopped bool
		status  flowrun.Status // of the record afterwards
	}{
		"the ledger was lost: it learns of the launch": {func(r *rig, _ string) { r.ledger.lose() }, false, flowrun.StatusLaunched},
		"it was recorded meanwhile":                    {func(*rig, string) {}, false, flowrun.StatusLaunched},
		"its flow run was deleted": {func(r *rig, id string) {
			r.ledger.lose()
			r.send(http.MethodDelete, "/flow_runs/"+id, nil)
		}, true, flowrun.StatusNone},
		"its flow run was launched anew": {func(r *rig, id string) {
			r.bring(id, flowrun.StateScheduled)
			r.ledger.lose()
			r.claimed(id)
		}, true, flowrun.StatusClaimed},
		"a worker took its flow run": {func(r *rig, id string) {
			r.bring(id, flowrun.StateScheduled)
			r.ledger.lose()
			r.propose(id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
		}, true, flowrun.StatusNone},
		"its flow run completed": {func(r *rig, id string) {
			r.bring(id, flowrun.StateCompleted)
			r.ledger.lose()
		}, false, flowrun.StatusLaunched},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			l := r.launch(fr.ID)
			tt.before(r, fr.ID)
			err := r.stray(l, fr.ID)
			var want []string
			if tt.stopped {
				want = []string{"cancel " + executionOf(l).Execution}
			}
			if diff := cmp.Diff(want, r.cloudRun.stopped); diff != "" || errors.Is(err, settle.ErrWait) != tt.stopped || err != nil && !tt.stopped {
				t.Errorf("%v: stopped (-want +got):\n%s", err, diff)
			}
			rec := r.record(fr.ID)
			if rec.Status != tt.status || rec.LeaseHolder != "" {
				t.Errorf("the ledger has %s, held by %q, want %s", rec.Status, rec.LeaseHolder, tt.status)
			}
			if tt.status == flowrun.StatusLaunched && rec.ExecutionName != executionOf(l).String() {
				t.Errorf("the ledger has execution %q", rec.ExecutionName)
			}
		})
	}
	t.Run("that has ended is nobody's business", func(t *testing.T) {
		r := newRig(t)
		fr := r.flowRun()
		l := r.launch(fr.ID)
		r.ledger.lose()
		r.cloudRun.end(l, flowrun.ExitCode, r.now())
		r.must(r.stray(l, fr.ID))
		if rec := r.record(fr.ID); rec.Status != flowrun.StatusNone || r.cloudRun.stopped != nil {
			t.Errorf("the ledger has %s, stopped %v", rec.Status, r.cloudRun.stopped)
		}
	})
}

func (r *rig) pid(id, job string) {
	r.t.Helper()
	r.must(r.people.UpdateFlowRun(r.t.Context(), id, map[string]any{"infrastructure_pid": job}))
}
