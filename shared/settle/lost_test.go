package settle_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// TestTheLedgerMayBeLostAtAnyMoment holds that a flow run comes to the same end without it, by event and by look.
func TestTheLedgerMayBeLostAtAnyMoment(t *testing.T) {
	for was, becomes := range map[flowrun.StateType]flowrun.StateType{
		flowrun.StatePending: flowrun.StateCrashed, flowrun.StateRunning: flowrun.StateCrashed, flowrun.StateCancelling: flowrun.StateCancelled,
		flowrun.StateCompleted: flowrun.StateCompleted, flowrun.StateFailed: flowrun.StateFailed, flowrun.StateCrashed: flowrun.StateCrashed,
		flowrun.StateCancelled: flowrun.StateCancelled, inProcess: flowrun.StateScheduled, suspended: flowrun.StatePaused,
	} {
		for _, event := range []bool{true, false} {
			if !event && was.Terminal() {
				continue // nobody looks at these
			}
			t.Run(string(was)+map[bool]string{true: ", told", false: ", found"}[event], func(t *testing.T) {
				r := newRig(t)
				fr := r.flowRun()
				l := r.launch(fr.ID)
				r.bring(fr.ID, was)
				r.cloudRun.end(l, flowrun.ExitCode, r.now())
				r.ledger.lose()
				if event {
					r.must(r.ended(fr.ID, l, flowrun.ExitCode))
				} else {
					r.must(r.look(fr.ID))
				}
				if got := r.state(fr.ID); got != becomes {
					t.Errorf("%s, want %s", got, becomes)
				}
				got := r.messages.take()
				if len(got) == 0 || got[len(got)-1] != (sent{Freed: "etl"}) {
					t.Errorf("sent %v, want that a slot came free", got)
				}
			})
		}
	}
}

// TestWithoutLedgerAJobOfAnyNameIsFoundByItsLabels holds that a flow run is not declared crashed
// because its job's name is not known.
func TestWithoutLedgerAJobOfAnyNameIsFoundByItsLabels(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.claimed(fr.ID)
	l.JobName = "pp-named-by-the-template-" + l.LaunchID.Suffix()
	r.cloudRun.start(l)
	r.set(fr.ID, flowrun.StateRunning)
	r.ledger.lose()
	for range 3 {
		r.must(r.look(fr.ID))
		r.later(grace)
	}
	if got := r.state(fr.ID); got != flowrun.StateRunning {
		t.Fatalf("%s, want RUNNING: it is", got)
	}
	if rec := r.record(fr.ID); rec.Region != region || rec.JobName != l.JobName {
		t.Errorf("the ledger has %s/%s, want %s/%s", rec.Region, rec.JobName, region, l.JobName)
	}
	r.must(r.ended(fr.ID, l, flowrun.ExitCode))
	if got := r.state(fr.ID); got != flowrun.StateCrashed {
		t.Errorf("%s after its end, want CRASHED", got)
	}
}

// TestWithoutLedgerAJobIsFoundByTheFlowRunsName_Prefect11447 holds that it is stopped where nobody recorded its name or region.
func TestWithoutLedgerAJobIsFoundByTheFlowRunsName_Prefect11447(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.claimed(fr.ID)
	r.cloudRun.start(l)
	r.set(fr.ID, flowrun.StateCancelling)
	r.ledger.lose()
	r.must(r.look(fr.ID))
	if diff := cmp.Diff([]string{"cancel " + executionOf(l).Execution}, r.cloudRun.stopped); diff != "" {
		t.Error(diff)
	}
	if rec := r.record(fr.ID); rec.Region != region || rec.JobName != l.JobName {
		t.Errorf("the ledger has %s/%s, want %s/%s", rec.Region, rec.JobName, region, l.JobName)
	}
}

// TestGoneIsSeenTwice_Prefect11499 holds that one look that finds nothing is not believed.
func TestGoneIsSeenTwice_Prefect11499(t *testing.T) {
	for name, tt := range map[string]struct {
		was, becomes flowrun.StateType
		lost         bool
		untold       bool // Prefect was never told the job's name
	}{
		"RUNNING":                                    {flowrun.StateRunning, flowrun.StateCrashed, false, false},
		"CANCELLING":                                 {flowrun.StateCancelling, flowrun.StateCancelled, false, false},
		"PENDING, the ledger lost":                   {flowrun.StatePending, flowrun.StateCrashed, true, false}, // the flow run tells that its job was made
		"RUNNING, the ledger lost":                   {flowrun.StateRunning, flowrun.StateCrashed, true, false},
		"CANCELLING, the ledger lost":                {flowrun.StateCancelling, flowrun.StateCancelled, true, false},
		"RUNNING, the ledger lost, its job not told": {flowrun.StateRunning, flowrun.StateCrashed, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			l := r.launch(fr.ID)
			if tt.untold {
				r.must(r.people.UpdateFlowRun(t.Context(), fr.ID, map[string]any{"infrastructure_pid": ""}))
			}
			r.bring(fr.ID, tt.was)
			r.cloudRun.vanish(l)
			if tt.lost {
				r.ledger.lose()
			}
			again := sent{FlowRunID: fr.ID, At: r.now().Add(grace), Cause: "missing"}
			for range 2 {
				r.must(r.look(fr.ID))
				if diff := cmp.Diff([]sent{again}, r.messages.take()); diff != "" || r.state(fr.ID) != tt.was {
					t.Fatalf("%s: %s", r.state(fr.ID), diff)
				}
				r.later(grace / 3)
			}
			r.later(grace)
			r.must(r.look(fr.ID))
			if got := r.state(fr.ID); got != tt.becomes {
				t.Errorf("%s, want %s", got, tt.becomes)
			}
		})
	}
}

// TestAClaimThatPrefectNeverHadIsDropped holds that a launcher which died between its claim in the
// ledger and Prefect's PENDING leaves nothing that keeps the flow run from being launched.
func TestAClaimThatPrefectNeverHadIsDropped(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	scheduled := flowrun.Scheduled{
		Lease: flowrun.Lease{Holder: "launcher", Until: r.now()}, LaunchID: flowrun.NewLaunchID(install, fr.ID, fr.StateID), StateAt: fr.State.Timestamp, WorkPool: "etl",
	}
	r.apply(fr.ID, scheduled)
	r.later(lease)
	r.must(r.look(fr.ID))
	if diff := cmp.Diff([]sent{{FlowRunID: fr.ID}}, r.messages.take()); diff != "" {
		t.Error(diff)
	}
	scheduled.Lease = flowrun.Lease{Holder: "another", Until: r.now().Add(lease)}
	r.apply(fr.ID, scheduled)
	if got := r.record(fr.ID).Status; got != flowrun.StatusClaimed {
		t.Errorf("%q, want it claimed again", got)
	}
}
