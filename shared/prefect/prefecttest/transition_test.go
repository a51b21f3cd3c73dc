package prefecttest_test

import (
	"net/http"
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

// transitions holds the outcome of each proposal that we make, and of those that we must not make.
func transitions(t *testing.T, p *prefectServer) {
	claim, other := uuid.NewString(), uuid.NewString()
	later := time.Now().Add(time.Hour)
	d := p.deploy(t, prefect.NewDeployment{})
	for name, tt := range map[string]struct {
		due    *time.Time
		pid    string
		before []prefect.Proposal
		when   prefect.Proposal
		want   outcome
		v2     outcome // where 2.20 differs
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
			want: outcome{"ABORT", cancelled, "Cancelled"}, v2: outcome{"REJECT", cancelled, "Cancelled"},
		},
		"PENDING over CANCELLING is refused": {
			before: []prefect.Proposal{{Type: pending}, {Type: cancelling}}, when: prefect.Proposal{Type: pending}, want: outcome{"REJECT", cancelling, "Cancelling"},
		},
		"another name over PENDING": {
			before: []prefect.Proposal{{Type: pending}}, when: prefect.Proposal{Type: pending, Name: "Submitting"},
			want: outcome{"ACCEPT", pending, "Submitting"}, v2: outcome{"ABORT", pending, "Pending"},
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
			want: outcome{"ACCEPT", scheduled, "Scheduled"}, v2: outcome{"REJECT", cancelled, "Cancelled"},
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
		t.Run(name, func(t *testing.T) {
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
			a := p.set(t, f.ID, tt.when)
			want := tt.want
			if p.v2 && tt.v2.Status != "" {
				want = tt.v2
			}
			if a.State == nil {
				t.Fatal("the answer has no state")
			}
			if diff := cmp.Diff(want, outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if (a.Reason == "") != (a.Status == prefect.StatusAccept) || (a.Delay > 50*time.Minute) != (a.Status == prefect.StatusWait) {
				t.Errorf("%s has the reason %q and the delay %s", a.Status, a.Reason, a.Delay)
			}
			if tt.when.TransitionID == claim && a.State.Details.TransitionID != claim {
				t.Errorf("the state has the transition id %q, want the claim's, %q", a.State.Details.TransitionID, claim)
			}
			read, err := p.FlowRun(t.Context(), f.ID)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]any{want.Type, want.Name, a.State.ID}, []any{read.StateType, read.StateName, read.StateID}); diff != "" {
				t.Errorf("flow run afterwards (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("PENDING over a stored result is refused", func(t *testing.T) {
		f := p.create(t, d.ID, prefect.NewFlowRun{})
		data := map[string]any{"type": "reference", "storage_key": "k", "storage_block_id": uuid.NewString(), "serializer_type": "json"}
		p.propose(t, f.ID, map[string]any{"state": map[string]any{"type": "COMPLETED", "data": data}})
		if a := p.set(t, f.ID, prefect.Proposal{Type: pending}); a.Status != prefect.StatusReject || a.State.Type != completed {
			t.Errorf("got %s and %s, want REJECT and COMPLETED", a.Status, a.State.Type)
		}
	})
}

// inProcessRetry holds that a container's own retry is not offered to launchers until its policy is changed.
func inProcessRetry(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	f := p.create(t, d.ID, prefect.NewFlowRun{Name: "retried"})
	policy := func(change map[string]any) {
		t.Helper()
		read, err := p.FlowRun(t.Context(), f.ID)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range change {
			read.EmpiricalPolicy[k] = v
		}
		if err := p.UpdateFlowRun(t.Context(), f.ID, map[string]any{"empirical_policy": read.EmpiricalPolicy}); err != nil {
			t.Fatal(err)
		}
	}
	policy(map[string]any{"retries": 1, "retry_delay": 0})
	p.set(t, f.ID, prefect.Proposal{Type: pending})
	p.set(t, f.ID, prefect.Proposal{Type: running})
	a := p.set(t, f.ID, prefect.Proposal{Type: failed, Message: "boom"})
	if diff := cmp.Diff(outcome{"REJECT", scheduled, "AwaitingRetry"}, outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
		t.Errorf("FAILED with retries left (-want +got):\n%s", diff)
	}
	read, err := p.FlowRun(t.Context(), f.ID)
	if err != nil {
		t.Fatal(err)
	}
	if read.RetryType() != "in_process" {
		t.Errorf("retry type %q, want in_process", read.RetryType())
	}
	if diff := cmp.Diff([]string{}, p.startable(t, d.WorkPoolName)); diff != "" {
		t.Errorf("startable while the container retries (-want +got):\n%s", diff)
	}
	policy(map[string]any{"retry_type": "reschedule"})
	if diff := cmp.Diff([]string{"retried"}, p.startable(t, d.WorkPoolName)); diff != "" {
		t.Errorf("startable once rescheduled (-want +got):\n%s", diff)
	}
}

// history holds that all states are kept, with the transition id that says whose they are.
func history(t *testing.T, p *prefectServer) {
	claim := uuid.NewString()
	f := p.create(t, p.deploy(t, prefect.NewDeployment{}).ID, prefect.NewFlowRun{})
	p.set(t, f.ID, prefect.Proposal{Type: pending, TransitionID: claim})
	p.set(t, f.ID, prefect.Proposal{Type: running})
	p.set(t, f.ID, prefect.Proposal{Type: completed, Message: "done"})
	states, err := p.FlowRunStates(t.Context(), f.ID)
	if err != nil {
		t.Fatal(err)
	}
	var got [][3]string
	for _, s := range states {
		got = append(got, [3]string{string(s.Type), s.Details.TransitionID, s.Message})
	}
	want := [][3]string{{"SCHEDULED"}, {"PENDING", claim}, {"RUNNING"}, {"COMPLETED", "", "done"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	if p.admin(t, http.MethodDelete, "/flow_runs/"+f.ID, nil, nil) != http.StatusNoContent {
		t.Error("the flow run is not deleted")
	}
	if states, err := p.FlowRunStates(t.Context(), f.ID); err != nil || len(states) != 0 {
		t.Errorf("states of a deleted flow run: %v and %v, want none", states, err)
	}
}
