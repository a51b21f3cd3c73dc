package settle_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

// finished returns the lines about ends that were logged, without what every line has.
func (r *rig) finished() []map[string]any {
	r.t.Helper()
	var all []map[string]any
	for line := range strings.Lines(r.log.String()) {
		var l map[string]any
		r.must(json.Unmarshal([]byte(line), &l))
		if message, _ := l["message"].(string); strings.HasSuffix(message, " finished") {
			for _, key := range []string{"time", "severity", "logging.googleapis.com/operation", "logging.googleapis.com/labels"} {
				delete(l, key)
			}
			for key, value := range l { // Prefect keeps states a microsecond apart
				if text, ok := value.(string); ok && strings.HasSuffix(key, "_at") {
					at, err := time.Parse(time.RFC3339Nano, text)
					r.must(err)
					l[key] = at.Truncate(time.Second).Format(time.RFC3339)
				}
			}
			all = append(all, l)
		}
	}
	return all
}

// TestOneLineTellsALaunchFromItsRequestToItsEnd holds what log-based metrics and the operator's
// command are made of: each time that the ledger has, in a line of its own, and what follows of it.
func TestOneLineTellsALaunchFromItsRequestToItsEnd(t *testing.T) {
	type m = map[string]any
	const requested, due, claimed, launched, started, running, ended, told = 0, 5, 6, 8, 10, 13, 73, 76
	for rule, tt := range map[string]struct {
		states []flowrun.StateType // that the flow told
		kind   flowrun.OutcomeKind
		ran    bool // the container did
		change m    // to the line of a flow run that exited with a code; nil: not in it
	}{
		"the flow did not tell its end": {states: []flowrun.StateType{flowrun.StateRunning}, kind: flowrun.ExitCode, ran: true},
		"the flow told its end": {states: []flowrun.StateType{flowrun.StateRunning, flowrun.StateCompleted}, kind: flowrun.Succeeded, ran: true, change: m{
			"outcome": "succeeded", "state_type": "COMPLETED", "final_at": running, "end_to_final_s": 0.0,
		}},
		"it is launched again": {kind: flowrun.Platform, ran: true, change: m{
			"message": "launch finished", "outcome": "platform", "state_type": "SCHEDULED", "retry": "platform", "retry_number": 1.0,
			"running_at": nil, "start_delay_s": nil, "final_at": nil, "end_to_final_s": nil,
		}},
		"it never ran": {kind: flowrun.Deleted, change: m{
			"outcome": "deleted", "started_at": nil, "running_at": nil, "start_delay_s": nil, "duration_s": nil, "vcpu_s": nil, "gib_s": nil, "cost_usd_estimate": nil,
		}},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t, budgets)
			fr := r.flowRun()
			begin := r.now()
			l := flowrun.Launch{LaunchID: flowrun.NewLaunchID(install, fr.ID, fr.StateID)}
			l.JobName = jobtemplate.JobID(fr.Name, l.LaunchID)
			at := func(second time.Duration) time.Time { return begin.Add(second * time.Second) }
			until := func(second time.Duration) { r.later(at(second).Sub(r.now())) }
			until(claimed)
			r.apply(fr.ID, flowrun.Scheduled{
				Lease: flowrun.Lease{Holder: "launcher", Until: at(launched)}, LaunchID: l.LaunchID, StateAt: fr.State.Timestamp,
				WorkPool: "etl", DeploymentID: "d", RequestedAt: at(requested), DueAt: at(due),
			})
			r.propose(fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(l.LaunchID)})
			r.apply(fr.ID, flowrun.Attempted{
				Holder: "launcher", LaunchID: l.LaunchID, Region: region, JobName: l.JobName, Retries: &flowrun.Retries{Budget: all},
				Resources: flowrun.Resources{MilliCPU: 2000, MemoryBytes: 1 << 30},
			})
			until(launched)
			r.apply(fr.ID, flowrun.Launched{Holder: "launcher", LaunchID: l.LaunchID, ExecutionName: executionOf(l).String()})
			until(running)
			r.set(fr.ID, tt.states...)
			until(told)
			e := settle.Ending{LaunchID: l.LaunchID, Execution: executionOf(l), Outcome: flowrun.Outcome{Kind: tt.kind}, EndedAt: at(ended)}
			if tt.ran {
				e.StartedAt = at(started)
			}
			for range 2 { // it is told once, though its message comes twice
				r.must(r.settler.Ended(t.Context(), "finalizer", fr.ID, e))
			}
			want := m{
				"message": "flow run finished", "flow_run_id": fr.ID, "deployment_id": "d", "work_pool": "etl",
				"execution": executionOf(l).String(), "region": region, "launch_id": string(l.LaunchID), "outcome": "exit_code", "state_type": "CRASHED",
				"requested_at": requested, "due_at": due, "claimed_at": claimed, "launched_at": launched,
				"started_at": started, "running_at": running, "ended_at": ended, "final_at": told,
				"queue_delay_s": 3.0, "start_delay_s": 5.0, "duration_s": 63.0, "end_to_final_s": 3.0,
				"vcpu_s": 126.0, "gib_s": 63.0, "cost_usd_estimate": 126*0.000018 + 63*0.000002,
			}
			for key, value := range tt.change {
				if want[key] = value; value == nil {
					delete(want, key)
				}
			}
			for key, value := range want {
				if second, ok := value.(int); ok {
					want[key] = at(time.Duration(second)).Format(time.RFC3339)
				}
			}
			if diff := cmp.Diff([]m{want}, r.finished(), cmpopts.EquateApprox(1e-5, 0)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			rec := r.record(fr.ID)
			for key, stored := range map[string]time.Time{
				"requested_at": rec.RequestedAt, "due_at": rec.DueAt, "claimed_at": rec.ClaimedAt, "launched_at": rec.LaunchedAt,
				"started_at": rec.StartedAt, "running_at": rec.RunningAt, "ended_at": rec.FinishedAt, "final_at": rec.FinalAt,
			} {
				got := ""
				if !stored.IsZero() {
					got = stored.Truncate(time.Second).Format(time.RFC3339)
				}
				if in, _ := want[key].(string); got != in {
					t.Errorf("the ledger has %s %q, the line %q", key, got, in)
				}
			}
		})
	}
}
