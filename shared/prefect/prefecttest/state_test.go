package prefecttest_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// access holds who may call, and with what.
func access(t *testing.T, p *prefectServer) {
	p.rule(t, "the client is let in", func(t *testing.T) {
		p.newPool(t) // a change, so with a CSRF token where the server wants one
	})
	if p.authString == "" {
		return
	}
	for name, authString := range map[string]string{"a wrong auth string is refused": "admin:wrong", "no auth string is refused": ""} {
		p.rule(t, name, func(t *testing.T) {
			cfg := p.config()
			cfg.AuthString = authString
			c, err := prefect.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.WorkPool(t.Context(), "any")
			wantFault(t, err, flowrun.Refused)
		})
	}
	p.rule(t, "each client has a CSRF token of its own", func(t *testing.T) {
		other, err := prefect.New(p.config())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []*prefect.Client{other, p.Client, other, p.Client} {
			if _, err := c.CreateFlow(t.Context(), "flow "+uuid.NewString()); err != nil {
				t.Error(err)
			}
		}
	})
}

// races holds that of several launchers one wins, and that it recognises its own claim.
func races(t *testing.T, p *prefectServer) {
	const together = 6
	d := p.deploy(t, prefect.NewDeployment{})
	claims := func(t *testing.T, id func() string) map[prefect.Status]int {
		f := p.create(t, d.ID, prefect.NewFlowRun{})
		var (
			g  sync.WaitGroup
			mu sync.Mutex
		)
		answers := map[prefect.Status]int{}
		for range together {
			g.Go(func() {
				a, err := p.SetState(t.Context(), f.ID, prefect.Proposal{Type: pending, TransitionID: id()})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				answers[a.Status]++
			})
		}
		g.Wait()
		return answers
	}
	p.rule(t, "of several launchers one wins", func(t *testing.T) {
		if diff := cmp.Diff(map[prefect.Status]int{"ACCEPT": 1, "ABORT": together - 1}, claims(t, uuid.NewString)); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "the same claim made at once by several is all theirs", func(t *testing.T) {
		id := uuid.NewString()
		if diff := cmp.Diff(map[prefect.Status]int{"ACCEPT": 1, "REJECT": together - 1}, claims(t, func() string { return id })); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "another name over PENDING loses the claim's transition id", func(t *testing.T) {
		f := p.create(t, d.ID, prefect.NewFlowRun{})
		claim := prefect.Proposal{Type: pending, TransitionID: uuid.NewString()}
		p.set(t, f.ID, claim)
		renamed := p.set(t, f.ID, prefect.Proposal{Type: pending, Name: "Submitting"})
		if renamed.Status != prefect.StatusAccept { // see the table of differences
			return
		}
		if a := p.set(t, f.ID, claim); a.Status != prefect.StatusAbort || renamed.State.Details.TransitionID != "" {
			t.Errorf("the state has the transition id %q, and the claim repeated gets %s", renamed.State.Details.TransitionID, a.Status)
		}
	})
}

// suspended holds what may become of a flow run that waits for a person, without a container.
func suspended(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	suspend := func(t *testing.T) string {
		f := p.started(t, d.ID, pending, running)
		a := p.propose(t, f.ID, map[string]any{"type": "PAUSED", "name": "Suspended", "state_details": map[string]any{
			"pause_reschedule": true, "pause_key": "k", "pause_timeout": time.Now().Add(24 * time.Hour).UTC(),
		}})
		if a.Status != prefect.StatusAccept || !a.State.Details.PauseReschedule {
			t.Fatalf("suspended: %+v", a)
		}
		return f.ID
	}
	for name, tt := range map[string]struct {
		when flowrun.StateType
		want outcome
	}{
		"PENDING over Suspended is refused":    {pending, outcome{"REJECT", flowrun.StatePaused, "Suspended"}},
		"CRASHED over Suspended is accepted":   {crashed, outcome{"ACCEPT", crashed, "Crashed"}},
		"CANCELLED over Suspended is accepted": {cancelled, outcome{"ACCEPT", cancelled, "Cancelled"}},
		"CANCELLING of Suspended ends it":      {cancelling, outcome{"REJECT", cancelled, "Cancelled"}},
	} {
		p.rule(t, name, func(t *testing.T) {
			a := p.set(t, suspend(t), prefect.Proposal{Type: tt.when})
			if diff := cmp.Diff(tt.want, outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
	p.rule(t, "what is resumed is SCHEDULED, and keeps its infrastructure_pid", func(t *testing.T) {
		id := suspend(t)
		if err := p.UpdateFlowRun(t.Context(), id, map[string]any{"infrastructure_pid": "job"}); err != nil {
			t.Fatal(err)
		}
		p.done(t, http.MethodPost, "/flow_runs/"+id+"/resume", map[string]any{})
		f := p.read(t, id)
		if diff := cmp.Diff([]any{scheduled, "Resuming", "job", ""}, []any{f.StateType, f.StateName, f.InfrastructurePID, f.RetryType()}); diff != "" {
			t.Errorf("flow run (-want +got):\n%s", diff)
		}
	})
}

// retries holds who may run a flow run again.
func retries(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	f := p.create(t, d.ID, prefect.NewFlowRun{Name: "retried"})
	policy := func(t *testing.T, change map[string]any) {
		t.Helper()
		read := p.read(t, f.ID)
		for k, v := range change {
			read.EmpiricalPolicy[k] = v
		}
		if err := p.UpdateFlowRun(t.Context(), f.ID, map[string]any{"empirical_policy": read.EmpiricalPolicy}); err != nil {
			t.Fatal(err)
		}
	}
	p.rule(t, "FAILED with retries left is AwaitingRetry, in the same container", func(t *testing.T) {
		policy(t, map[string]any{"retries": 1, "retry_delay": 0})
		p.set(t, f.ID, prefect.Proposal{Type: pending})
		p.set(t, f.ID, prefect.Proposal{Type: running})
		a := p.set(t, f.ID, prefect.Proposal{Type: failed, Message: "boom"})
		if diff := cmp.Diff(outcome{"REJECT", scheduled, "AwaitingRetry"}, outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
		if got := p.read(t, f.ID).RetryType(); got != "in_process" {
			t.Errorf("retry type %q, want in_process", got)
		}
	})
	p.rule(t, "what its container retries is not offered to launchers", func(t *testing.T) {
		if diff := cmp.Diff([]string{}, p.startable(t, d.WorkPoolName)); diff != "" {
			t.Errorf("startable (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "empirical_policy written back as read, with retry_type changed, offers it", func(t *testing.T) {
		before := p.read(t, f.ID).EmpiricalPolicy
		policy(t, map[string]any{"retry_type": "reschedule"})
		if diff := cmp.Diff([]string{"retried"}, p.startable(t, d.WorkPoolName)); diff != "" {
			t.Errorf("startable (-want +got):\n%s", diff)
		}
		before["retry_type"] = "reschedule"
		if diff := cmp.Diff(before, p.read(t, f.ID).EmpiricalPolicy); diff != "" {
			t.Errorf("policy (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "a claim is not refused for a retry in the same container", func(t *testing.T) {
		policy(t, map[string]any{"retry_type": "in_process"})
		if a := p.set(t, f.ID, prefect.Proposal{Type: pending}); a.Status != prefect.StatusAccept {
			t.Errorf("got %s", a.Status)
		}
	})
	p.rule(t, "putting a started flow run back leaves its retry type", func(t *testing.T) {
		f := p.started(t, d.ID, pending, running)
		p.set(t, f.ID, prefect.Proposal{Type: scheduled, Name: "AwaitingRetry"})
		if got := p.read(t, f.ID).RetryType(); got != "" {
			t.Errorf("retry type %q", got)
		}
	})
	p.rule(t, "SCHEDULED over a final state is for a launcher", func(t *testing.T) {
		f := p.started(t, d.ID, pending, running, failed)
		p.set(t, f.ID, prefect.Proposal{Type: scheduled})
		if got := p.read(t, f.ID).RetryType(); got != "reschedule" {
			t.Errorf("retry type %q, want reschedule", got)
		}
	})
}

// history holds that all states are kept, with the transition id that says whose they are.
func history(t *testing.T, p *prefectServer) {
	claim := uuid.NewString()
	at := time.Now().Add(24 * time.Hour).UTC().Truncate(time.Second)
	f := p.create(t, p.deploy(t, prefect.NewDeployment{}).ID, prefect.NewFlowRun{ScheduledTime: &at})
	p.rule(t, "PENDING carries the claim's transition id and the scheduled time", func(t *testing.T) {
		details := p.set(t, f.ID, prefect.Proposal{Type: pending, TransitionID: claim}).State.Details
		if details.TransitionID != claim || details.ScheduledTime == nil || !details.ScheduledTime.Equal(at) {
			t.Errorf("got %+v, want %s and %s", details, claim, at)
		}
	})
	p.rule(t, "all states are kept in order", func(t *testing.T) {
		p.set(t, f.ID, prefect.Proposal{Type: crashed})
		p.set(t, f.ID, prefect.Proposal{Type: completed, Message: "done"})
		states, err := p.FlowRunStates(t.Context(), f.ID)
		if err != nil {
			t.Fatal(err)
		}
		var got [][3]string
		for _, s := range states {
			got = append(got, [3]string{string(s.Type), s.Details.TransitionID, s.Message})
		}
		want := [][3]string{{"SCHEDULED"}, {"PENDING", claim}, {"CRASHED"}, {"COMPLETED", "", "done"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("states (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "a deleted flow run has no states", func(t *testing.T) {
		p.done(t, http.MethodDelete, "/flow_runs/"+f.ID, nil)
		if states, err := p.FlowRunStates(t.Context(), f.ID); err != nil || len(states) != 0 {
			t.Errorf("states: %v and %v, want none", states, err)
		}
	})
	p.rule(t, "PENDING over a stored result is refused", func(t *testing.T) {
		f := p.create(t, p.deploy(t, prefect.NewDeployment{}).ID, prefect.NewFlowRun{})
		p.propose(t, f.ID, map[string]any{"type": "COMPLETED", "data": map[string]any{
			"type": "reference", "storage_key": "k", "storage_block_id": uuid.NewString(), "serializer_type": "json",
		}})
		if a := p.set(t, f.ID, prefect.Proposal{Type: pending}); a.Status != prefect.StatusReject || a.State.Type != completed {
			t.Errorf("got %s and %s, want REJECT and COMPLETED", a.Status, a.State.Type)
		}
	})
}

// lateness prepares flow runs that are due and not started, and returns what holds what Prefect
// makes of them 15 s later.
func lateness(t *testing.T, p *prefectServer) func(*testing.T, *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	plain, back := p.create(t, d.ID, prefect.NewFlowRun{}), p.started(t, d.ID, pending)
	p.set(t, back.ID, prefect.Proposal{Type: scheduled, Name: "AwaitingCapacity"})
	return func(t *testing.T, p *prefectServer) {
		if p.forward != nil {
			p.forward(16 * time.Second)
		}
		p.rule(t, "what is due and not claimed becomes Late", func(t *testing.T) {
			eventually(t, "it does not", func() bool { return p.read(t, plain.ID).StateName == "Late" })
		})
		p.rule(t, "what was put back does not become Late", func(t *testing.T) {
			if got := p.read(t, back.ID).StateName; got != "AwaitingCapacity" {
				t.Errorf("state %s", got)
			}
		})
	}
}
