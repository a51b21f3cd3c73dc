package prefecttest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

const (
	scheduled  = flowrun.StateScheduled
	pending    = flowrun.StatePending
	running    = flowrun.StateRunning
	completed  = flowrun.StateCompleted
	failed     = flowrun.StateFailed
	crashed    = flowrun.StateCrashed
	cancelled  = flowrun.StateCancelled
	cancelling = flowrun.StateCancelling
)

// outcome is what becomes of a proposal; Type and Name are the flow run's afterwards.
type outcome struct {
	Status prefect.Status
	Type   flowrun.StateType
	Name   string
}

func (o outcome) String() string { return fmt.Sprintf("%s: %s", o.Status, o.Name) }

// proposals holds the outcome of each proposal that we make, and of those that we must not make.
func proposals(t *testing.T, p *prefectServer) {
	claim, other := uuid.NewString(), uuid.NewString()
	later := time.Now().Add(24 * time.Hour)
	d := p.deploy(t, prefect.NewDeployment{})
	for name, tt := range map[string]struct {
		due    *time.Time
		pid    string
		before []prefect.Proposal
		when   prefect.Proposal
		want   outcome // of the table of differences, if empty
	}{
		"a claim of a scheduled flow run is accepted":   {when: prefect.Proposal{Type: pending, TransitionID: claim}, want: outcome{"ACCEPT", pending, "Pending"}},
		"a claim before the scheduled time is accepted": {due: &later, when: prefect.Proposal{Type: pending}, want: outcome{"ACCEPT", pending, "Pending"}},
		"a claim repeated is recognised": {
			before: []prefect.Proposal{{Type: pending, TransitionID: claim}},
			when:   prefect.Proposal{Type: pending, TransitionID: claim}, want: outcome{"REJECT", pending, "Pending"},
		},
		"somebody else's claim is aborted": {
			before: []prefect.Proposal{{Type: pending, TransitionID: claim}},
			when:   prefect.Proposal{Type: pending, TransitionID: other}, want: outcome{"ABORT", pending, "Pending"},
		},
		"PENDING over RUNNING is aborted": {
			before: []prefect.Proposal{{Type: pending}, {Type: running}},
			when:   prefect.Proposal{Type: pending}, want: outcome{"ABORT", running, "Running"},
		},
		"PENDING over COMPLETED runs it again": {
			before: []prefect.Proposal{{Type: completed}}, when: prefect.Proposal{Type: pending}, want: outcome{"ACCEPT", pending, "Pending"},
		},
		"PENDING over CRASHED runs it again": {
			before: []prefect.Proposal{{Type: crashed}}, when: prefect.Proposal{Type: pending}, want: outcome{"ACCEPT", pending, "Pending"},
		},
		"PENDING over CANCELLED is refused": {
			before: []prefect.Proposal{{Type: cancelled}}, when: prefect.Proposal{Type: pending},
		},
		"PENDING over CANCELLING is refused": {
			before: []prefect.Proposal{{Type: pending}, {Type: cancelling}}, when: prefect.Proposal{Type: pending}, want: outcome{"REJECT", cancelling, "Cancelling"},
		},
		"another name over PENDING": {
			before: []prefect.Proposal{{Type: pending}}, when: prefect.Proposal{Type: pending, Name: "Submitting"},
		},
		"a flow run is put back": {
			before: []prefect.Proposal{{Type: pending}}, when: prefect.Proposal{Type: scheduled, Name: "AwaitingCapacity", ScheduledTime: &later},
			want: outcome{"ACCEPT", scheduled, "AwaitingCapacity"},
		},
		"a started flow run is put back": {
			before: []prefect.Proposal{{Type: pending}, {Type: running}}, when: prefect.Proposal{Type: scheduled, Name: "AwaitingRetry"},
			want: outcome{"ACCEPT", scheduled, "AwaitingRetry"},
		},
		"SCHEDULED over CANCELLING is refused": {
			before: []prefect.Proposal{{Type: pending}, {Type: cancelling}}, when: prefect.Proposal{Type: scheduled}, want: outcome{"REJECT", cancelling, "Cancelling"},
		},
		"SCHEDULED over CANCELLED": {
			before: []prefect.Proposal{{Type: cancelled}}, when: prefect.Proposal{Type: scheduled},
		},
		"RUNNING before the scheduled time waits": {
			due: &later, before: []prefect.Proposal{{Type: pending}}, when: prefect.Proposal{Type: running}, want: outcome{"WAIT", pending, "Pending"},
		},
		"RUNNING twice is accepted": {
			before: []prefect.Proposal{{Type: pending}, {Type: running}}, when: prefect.Proposal{Type: running}, want: outcome{"ACCEPT", running, "Running"},
		},
		"a late report wins over CRASHED": {
			before: []prefect.Proposal{{Type: pending}, {Type: running}, {Type: crashed}}, when: prefect.Proposal{Type: completed}, want: outcome{"ACCEPT", completed, "Completed"},
		},
		"CRASHED over PENDING is accepted": {
			before: []prefect.Proposal{{Type: pending}}, when: prefect.Proposal{Type: crashed}, want: outcome{"ACCEPT", crashed, "Crashed"},
		},
		"CRASHED over RUNNING is accepted": {
			before: []prefect.Proposal{{Type: pending}, {Type: running}}, when: prefect.Proposal{Type: crashed}, want: outcome{"ACCEPT", crashed, "Crashed"},
		},
		"CRASHED over COMPLETED is aborted": {before: []prefect.Proposal{{Type: completed}}, when: prefect.Proposal{Type: crashed}, want: outcome{"ABORT", completed, "Completed"}},
		"CRASHED over FAILED is aborted":    {before: []prefect.Proposal{{Type: failed}}, when: prefect.Proposal{Type: crashed}, want: outcome{"ABORT", failed, "Failed"}},
		"CRASHED over CRASHED is aborted":   {before: []prefect.Proposal{{Type: crashed}}, when: prefect.Proposal{Type: crashed}, want: outcome{"ABORT", crashed, "Crashed"}},
		"CRASHED over CANCELLED is aborted": {before: []prefect.Proposal{{Type: cancelled}}, when: prefect.Proposal{Type: crashed}, want: outcome{"ABORT", cancelled, "Cancelled"}},
		"CRASHED over CANCELLING is refused": {
			before: []prefect.Proposal{{Type: pending}, {Type: cancelling}}, when: prefect.Proposal{Type: crashed}, want: outcome{"REJECT", cancelling, "Cancelling"},
		},
		"CANCELLED over CANCELLING is accepted": {
			before: []prefect.Proposal{{Type: pending}, {Type: cancelling}}, when: prefect.Proposal{Type: cancelled}, want: outcome{"ACCEPT", cancelled, "Cancelled"},
		},
		"CANCELLED over COMPLETED overwrites it": {
			before: []prefect.Proposal{{Type: completed}}, when: prefect.Proposal{Type: cancelled}, want: outcome{"ACCEPT", cancelled, "Cancelled"},
		},
		"PENDING over FAILED runs it again": {
			before: []prefect.Proposal{{Type: failed}}, when: prefect.Proposal{Type: pending}, want: outcome{"ACCEPT", pending, "Pending"},
		},
		"SCHEDULED over COMPLETED runs it again": {
			before: []prefect.Proposal{{Type: completed}}, when: prefect.Proposal{Type: scheduled}, want: outcome{"ACCEPT", scheduled, "Scheduled"},
		},
		"SCHEDULED over CRASHED runs it again": {
			before: []prefect.Proposal{{Type: crashed}}, when: prefect.Proposal{Type: scheduled}, want: outcome{"ACCEPT", scheduled, "Scheduled"},
		},
		"RUNNING over CRASHED revives it": {
			before: []prefect.Proposal{{Type: pending}, {Type: crashed}}, when: prefect.Proposal{Type: running}, want: outcome{"ACCEPT", running, "Running"},
		},
		"RUNNING over CANCELLED":               {before: []prefect.Proposal{{Type: pending}, {Type: cancelled}}, when: prefect.Proposal{Type: running}},
		"COMPLETED over CANCELLED":             {before: []prefect.Proposal{{Type: pending}, {Type: cancelled}}, when: prefect.Proposal{Type: completed}},
		"CRASHED over SCHEDULED is accepted":   {when: prefect.Proposal{Type: crashed}, want: outcome{"ACCEPT", crashed, "Crashed"}},
		"CANCELLED over SCHEDULED is accepted": {when: prefect.Proposal{Type: cancelled}, want: outcome{"ACCEPT", cancelled, "Cancelled"}},
		"CANCELLED over PENDING is accepted": {
			before: []prefect.Proposal{{Type: pending}}, when: prefect.Proposal{Type: cancelled}, want: outcome{"ACCEPT", cancelled, "Cancelled"},
		},
		"CANCELLED over RUNNING is accepted": {
			before: []prefect.Proposal{{Type: pending}, {Type: running}}, when: prefect.Proposal{Type: cancelled}, want: outcome{"ACCEPT", cancelled, "Cancelled"},
		},
		"CANCELLED over CRASHED is accepted": {
			before: []prefect.Proposal{{Type: pending}, {Type: running}, {Type: crashed}}, when: prefect.Proposal{Type: cancelled}, want: outcome{"ACCEPT", cancelled, "Cancelled"},
		},
		"CANCELLED over FAILED overwrites it": {
			before: []prefect.Proposal{{Type: failed}}, when: prefect.Proposal{Type: cancelled}, want: outcome{"ACCEPT", cancelled, "Cancelled"},
		},
		"CANCELLING of a started flow run": {
			before: []prefect.Proposal{{Type: pending}, {Type: running}}, when: prefect.Proposal{Type: cancelling}, want: outcome{"ACCEPT", cancelling, "Cancelling"},
		},
		"CANCELLING over CRASHED is aborted": {
			before: []prefect.Proposal{{Type: crashed}}, when: prefect.Proposal{Type: cancelling}, want: outcome{"ABORT", crashed, "Crashed"},
		},
		"CANCELLING of what never started ends it": {when: prefect.Proposal{Type: cancelling}, want: outcome{"REJECT", cancelled, "Cancelled"}},
		"CANCELLING of what had infrastructure": {
			pid: "job", when: prefect.Proposal{Type: cancelling}, want: outcome{"ACCEPT", cancelling, "Cancelling"},
		},
		"CANCELLING of a claimed flow run": {
			before: []prefect.Proposal{{Type: pending}}, when: prefect.Proposal{Type: cancelling}, want: outcome{"ACCEPT", cancelling, "Cancelling"},
		},
		"CANCELLING over COMPLETED is aborted": {
			before: []prefect.Proposal{{Type: completed}}, when: prefect.Proposal{Type: cancelling}, want: outcome{"ABORT", completed, "Completed"},
		},
	} {
		p.rule(t, name, func(t *testing.T) {
			f := p.create(t, d.ID, prefect.NewFlowRun{ScheduledTime: tt.due})
			if tt.pid != "" {
				if err := p.UpdateFlowRun(t.Context(), f.ID, map[string]any{"infrastructure_pid": tt.pid}); err != nil {
					t.Fatal(err)
				}
			}
			for _, b := range tt.before {
				if a := p.set(t, f.ID, b); a.Status != prefect.StatusAccept {
					t.Fatalf("%s before: %+v", b.Type, a)
				}
			}
			want := tt.want
			if want.Status == "" {
				want = expected[outcome](p, name)
			}
			a := p.set(t, f.ID, tt.when)
			if diff := cmp.Diff(want, outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if (a.Reason == "") != (a.Status == prefect.StatusAccept) || (a.Delay > 12*time.Hour) != (a.Status == prefect.StatusWait) {
				t.Errorf("%s has the reason %q and the delay %s", a.Status, a.Reason, a.Delay)
			}
			if tt.when.TransitionID == claim && a.State.Details.TransitionID != claim {
				t.Errorf("the state has the transition id %q, want the claim's, %q", a.State.Details.TransitionID, claim)
			}
			read := p.read(t, f.ID)
			if diff := cmp.Diff([]any{want.Type, want.Name, a.State.ID}, []any{read.StateType, read.StateName, read.StateID}); diff != "" {
				t.Errorf("flow run afterwards (-want +got):\n%s", diff)
			}
		})
	}
}
