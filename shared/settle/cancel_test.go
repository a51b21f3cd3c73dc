package settle_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestCancellingIsLeftToTheFlowThatListens_Prefect16001 holds that only `prefect flow-run execute`, once it
// runs, gets the grace; every other execution is stopped at once.
func TestCancellingIsLeftToTheFlowThatListens_Prefect16001(t *testing.T) {
	for name, tt := range map[string]struct {
		command []string
		was     flowrun.StateType
		grace   bool
	}{
		"it listens":             {[]string{"prefect", "flow-run", "execute"}, flowrun.StateRunning, true},
		"it listens in a shell":  {[]string{"sh", "-c", "prefect flow-run execute"}, flowrun.StateRunning, true},
		"it does not listen yet": {[]string{"prefect", "flow-run", "execute"}, flowrun.StatePending, false},
		"it never listens":       {[]string{"python", "-m", "prefect.engine"}, flowrun.StateRunning, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			l := r.launch(fr.ID, tt.command...)
			r.bring(fr.ID, tt.was)
			r.set(fr.ID, flowrun.StateCancelling)
			until := r.now().Add(cancelGrace)
			r.must(r.look(fr.ID))
			if tt.grace {
				r.later(cancelGrace / 2)
				r.must(r.look(fr.ID))
				at := sent{FlowRunID: fr.ID, At: until, Cause: "cancel"}
				if diff := cmp.Diff([]sent{at, at}, r.messages.take()); diff != "" || r.cloudRun.stopped != nil {
					t.Fatalf("stopped %v: %s", r.cloudRun.stopped, diff)
				}
				r.later(cancelGrace / 2)
				r.must(r.look(fr.ID))
			}
			if diff := cmp.Diff([]string{"cancel " + executionOf(l).Execution}, r.cloudRun.stopped); diff != "" {
				t.Error(diff)
			}
			if got := r.state(fr.ID); got != flowrun.StateCancelling {
				t.Fatalf("%s before its execution is over, want CANCELLING", got)
			}
			r.cloudRun.end(l, flowrun.Cancelled, r.now())
			r.must(r.look(fr.ID))
			if got := r.state(fr.ID); got != flowrun.StateCancelled {
				t.Errorf("%s, want CANCELLED", got)
			}
		})
	}
}

// TestTheGraceCountsFromTheCancellation holds that a cancellation that is noticed late, its event
// lost, gets no grace of its own.
func TestTheGraceCountsFromTheCancellation(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.launch(fr.ID, "prefect", "flow-run", "execute")
	r.bring(fr.ID, flowrun.StateRunning)
	r.set(fr.ID, flowrun.StateCancelling)
	r.later(cancelGrace)
	r.must(r.look(fr.ID))
	if diff := cmp.Diff([]string{"cancel " + executionOf(l).Execution}, r.cloudRun.stopped); diff != "" {
		t.Error(diff)
	}
}

// TestCancellingWhatHasNotStarted holds that nothing of it starts any more.
func TestCancellingWhatHasNotStarted(t *testing.T) {
	t.Run("a job that is being made is deleted, and CANCELLED told when it is gone", func(t *testing.T) {
		for _, lost := range []bool{false, true} {
			r := newRig(t)
			fr := r.flowRun()
			l := r.launch(fr.ID)
			r.cloudRun.unstarted(l, cloudrun.Job{Reconciling: true})
			r.set(fr.ID, flowrun.StateCancelling)
			if lost {
				r.ledger.lose()
			}
			r.must(r.look(fr.ID))
			if diff := cmp.Diff([]string{"delete " + region + "/" + l.JobName}, r.cloudRun.stopped); diff != "" {
				t.Errorf("ledger lost %t: %s", lost, diff)
			}
			r.must(r.look(fr.ID))
			if got := r.state(fr.ID); got != flowrun.StateCancelling {
				t.Fatalf("ledger lost %t: %s, want CANCELLING until it is surely gone", lost, got)
			}
			r.later(grace)
			r.must(r.look(fr.ID))
			if got := r.state(fr.ID); got != flowrun.StateCancelled {
				t.Errorf("ledger lost %t: %s, want CANCELLED", lost, got)
			}
		}
	})
	t.Run("a launch that tried nothing yet is CANCELLED at once", func(t *testing.T) {
		r := newRig(t)
		fr := r.flowRun()
		r.claimed(fr.ID)
		r.set(fr.ID, flowrun.StateCancelling)
		r.must(r.look(fr.ID))
		if got := r.state(fr.ID); got != flowrun.StateCancelled {
			t.Errorf("%s, want CANCELLED", got)
		}
	})
	t.Run("a flow run that waits for its next launch is CANCELLED at once", func(t *testing.T) {
		r := newRig(t)
		fr := r.flowRun()
		l := r.launch(fr.ID)
		r.bring(fr.ID, flowrun.StateCrashed)
		r.must(r.ended(fr.ID, l, flowrun.ExitCode))
		r.set(fr.ID, flowrun.StateScheduled, flowrun.StateCancelling)
		if got := r.state(fr.ID); got != flowrun.StateCancelling {
			t.Fatalf("%s, want CANCELLING: Prefect takes the last launch's infrastructure_pid for its own", got)
		}
		r.must(r.look(fr.ID))
		if got := r.state(fr.ID); got != flowrun.StateCancelled {
			t.Errorf("%s, want CANCELLED", got)
		}
	})
}

// TestWhatEndsWhileItIsCancelledKeepsItsEnd holds that CANCELLED, which Prefect accepts over any
// end, is not proposed over one: the flow's own, or a person's.
func TestWhatEndsWhileItIsCancelledKeepsItsEnd(t *testing.T) {
	for _, end := range []flowrun.StateType{flowrun.StateCompleted, flowrun.StateFailed, flowrun.StateCancelled} {
		for name, lost := range map[string]bool{"the ledger kept": false, "the ledger lost": true} {
			t.Run(string(end)+", "+name, func(t *testing.T) {
				r := newRig(t)
				fr := r.flowRun()
				l := r.launch(fr.ID, "python", "-m", "prefect.engine")
				r.bring(fr.ID, flowrun.StateRunning)
				r.set(fr.ID, flowrun.StateCancelling)
				r.must(r.look(fr.ID)) // stops its execution
				r.force(fr.ID, end)
				was := r.read(fr.ID).StateID
				if lost {
					r.ledger.lose()
				}
				r.cloudRun.end(l, flowrun.Cancelled, r.now())
				r.must(r.ended(fr.ID, l, flowrun.Cancelled))
				r.must(r.look(fr.ID))
				if now := r.read(fr.ID); now.StateID != was {
					t.Errorf("%s, want it left %s", now.StateType, end)
				}
			})
		}
	}
}

// TestAStoredCancellationIsNotToldOverAnEnd holds that CANCELLED, where Prefect could not be told it at
// once, is not proposed once the flow run has another end.
func TestAStoredCancellationIsNotToldOverAnEnd(t *testing.T) {
	for _, end := range []flowrun.StateType{flowrun.StateCompleted, flowrun.StateFailed} {
		r := newRig(t)
		fr := r.flowRun()
		l := r.launch(fr.ID, "python", "-m", "prefect.engine")
		r.bring(fr.ID, flowrun.StateRunning)
		r.set(fr.ID, flowrun.StateCancelling)
		r.must(r.look(fr.ID))
		r.down.Store(true)
		r.cloudRun.end(l, flowrun.Cancelled, r.now())
		if err := r.ended(fr.ID, l, flowrun.Cancelled); err == nil || !r.record(fr.ID).Unreported() {
			t.Fatalf("%v, unreported %t, want the verdict stored", err, r.record(fr.ID).Unreported())
		}
		r.force(fr.ID, end)
		r.down.Store(false)
		r.later(lease)
		r.must(r.look(fr.ID))
		if got := r.state(fr.ID); got != end || r.record(fr.ID).Unreported() {
			t.Errorf("%s, unreported %t, want it left %s", got, r.record(fr.ID).Unreported(), end)
		}
	}
}

// TestTheDyingEnginesCrashIsACancellation holds that CRASHED becomes CANCELLED where it came after our signal, and only there.
func TestTheDyingEnginesCrashIsACancellation(t *testing.T) {
	for name, tt := range map[string]struct {
		cancel, lost bool
		want         flowrun.StateType
	}{
		"after we stopped it":                  {true, false, flowrun.StateCancelled},
		"after we stopped it, the ledger lost": {true, true, flowrun.StateCancelled},
		"by itself":                            {false, false, flowrun.StateCrashed},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			l := r.launch(fr.ID, "python", "-m", "prefect.engine")
			r.bring(fr.ID, flowrun.StateRunning)
			if tt.cancel {
				r.set(fr.ID, flowrun.StateCancelling)
				r.must(r.look(fr.ID))
			}
			r.later(time.Second)
			r.force(fr.ID, flowrun.StateCrashed)
			r.later(time.Second)
			if tt.lost {
				r.ledger.lose()
			}
			r.must(r.ended(fr.ID, l, flowrun.Cancelled))
			if got := r.state(fr.ID); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestAFlowRunDeletedInPrefect holds that what it left behind is stopped, and that nobody is told.
func TestAFlowRunDeletedInPrefect(t *testing.T) {
	for name, tt := range map[string]struct {
		before func(r *rig, l flowrun.Launch)
		event  bool
		stops  func(l flowrun.Launch) []string
		status flowrun.Status
	}{
		"its execution is alive": {
			func(*rig, flowrun.Launch) {}, false,
			func(l flowrun.Launch) []string { return []string{"cancel " + executionOf(l).Execution} }, flowrun.StatusAbandoned,
		},
		"its job is being made": {
			func(r *rig, l flowrun.Launch) { r.cloudRun.unstarted(l, cloudrun.Job{Reconciling: true}) }, false,
			func(l flowrun.Launch) []string { return []string{"delete " + region + "/" + l.JobName} }, flowrun.StatusAbandoned,
		},
		"its execution ended": {
			func(r *rig, l flowrun.Launch) { r.cloudRun.end(l, flowrun.ExitCode, r.now()) }, false,
			func(flowrun.Launch) []string { return nil }, flowrun.StatusFinished,
		},
		"its execution's end is told": {func(*rig, flowrun.Launch) {}, true, func(flowrun.Launch) []string { return nil }, flowrun.StatusFinished},
		"its execution is gone":       {func(r *rig, l flowrun.Launch) { r.cloudRun.vanish(l) }, false, func(flowrun.Launch) []string { return nil }, flowrun.StatusFinished},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			l := r.launch(fr.ID)
			tt.before(r, l)
			r.send(http.MethodDelete, "/flow_runs/"+fr.ID, nil)
			if tt.event {
				r.must(r.ended(fr.ID, l, flowrun.ExitCode))
			} else {
				r.must(r.look(fr.ID))
			}
			rec := r.record(fr.ID)
			if diff := cmp.Diff(tt.stops(l), r.cloudRun.stopped); diff != "" || rec.Status != tt.status || rec.Unreported() || r.told.Load() != 0 {
				t.Errorf("%s, unreported %t, told %d: %s", rec.Status, rec.Unreported(), r.told.Load(), diff)
			}
		})
	}
}

// TestAFlowRunThatIsNotOursIsLeftAlone holds that a worker's flow run is neither settled nor stopped.
func TestAFlowRunThatIsNotOursIsLeftAlone(t *testing.T) {
	for _, to := range []flowrun.StateType{flowrun.StatePending, flowrun.StateRunning, flowrun.StateCancelling, inProcess} {
		t.Run(string(to), func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			r.propose(fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
			r.bring(fr.ID, to)
			before := r.read(fr.ID)
			r.must(r.look(fr.ID))
			if diff := cmp.Diff(before, r.read(fr.ID)); diff != "" || r.cloudRun.stopped != nil || r.messages.take() != nil {
				t.Errorf("stopped %v: %s", r.cloudRun.stopped, diff)
			}
		})
	}
}

// TestAnEndThatNamesAnothersFlowRunChangesNothing holds that an entry is a hint: whatever flow run
// and launch it names, what is not ours, or not this launch's, is neither told nor stopped.
func TestAnEndThatNamesAnothersFlowRunChangesNothing(t *testing.T) {
	anothers := func(r *rig, id string) {
		scheduled := r.read(id).StateID
		r.propose(id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(flowrun.NewLaunchID("other-project/pushpool", id, scheduled))})
		r.set(id, flowrun.StateRunning)
	}
	for name, claim := range map[string]func(r *rig, id string){
		"a worker's": func(r *rig, id string) {
			r.propose(id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
			r.set(id, flowrun.StateRunning)
		},
		"another installation's":     anothers,
		"nobody's yet":               func(*rig, string) {},
		"ours, of another launch":    func(r *rig, id string) { r.launch(id); r.bring(id, flowrun.StateRunning) },
		"one that completed already": func(r *rig, id string) { r.launch(id); r.set(id, flowrun.StateRunning, flowrun.StateCompleted) },
	} {
		for _, kind := range []flowrun.OutcomeKind{flowrun.ExitCode, flowrun.Cancelled, flowrun.Platform, flowrun.Deleted} {
			t.Run(name+", "+string(kind), func(t *testing.T) {
				r := newRig(t)
				fr := r.flowRun()
				forged := flowrun.Launch{LaunchID: flowrun.NewLaunchID(install, fr.ID, uuid.NewString()), Region: region}
				forged.JobName = jobtemplate.JobID(fr.Name, forged.LaunchID)
				claim(r, fr.ID)
				before := r.read(fr.ID)
				err := r.ended(fr.ID, forged, kind)
				if diff := cmp.Diff(before, r.read(fr.ID)); diff != "" || r.told.Load() != 0 || r.cloudRun.stopped != nil {
					t.Errorf("%v; %d proposals, stopped %v: %s", err, r.told.Load(), r.cloudRun.stopped, diff)
				}
			})
		}
	}
	t.Run("one that does not exist", func(t *testing.T) {
		r := newRig(t)
		forged := flowrun.Launch{LaunchID: flowrun.NewLaunchID(install, uuid.NewString(), uuid.NewString()), Region: region, JobName: "pp-forged"}
		err := r.ended(uuid.NewString(), forged, flowrun.ExitCode)
		if r.told.Load() != 0 || r.cloudRun.stopped != nil {
			t.Errorf("%v; %d proposals, stopped %v", err, r.told.Load(), r.cloudRun.stopped)
		}
	})
}
