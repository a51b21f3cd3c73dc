package settle_test

import (
	"encoding/json"
	"fmt"
	"net/http"
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

// TestEachFlowRunThatEndsHasOneLine holds that it has, whichever way it ends, once more looks and
// deliveries than it takes have been made.
func TestEachFlowRunThatEndsHasOneLine(t *testing.T) {
	running := func(r *rig, id string, then ...flowrun.StateType) flowrun.Launch {
		l := r.launch(id)
		r.bring(id, flowrun.StateRunning)
		r.set(id, then...)
		return l
	}
	// exits ends the execution, of which an event tells.
	exits := func(r *rig, id string, l flowrun.Launch, kind flowrun.OutcomeKind) {
		r.cloudRun.end(l, kind, r.now())
		_ = r.ended(id, l, kind)
	}
	remove := func(r *rig, id string) { r.send(http.MethodDelete, "/flow_runs/"+id, nil) }
	for rule, tt := range map[string]struct {
		end            func(r *rig, id string)
		state, outcome string
	}{
		"the flow told its end": {func(r *rig, id string) {
			exits(r, id, running(r, id, flowrun.StateCompleted), flowrun.Succeeded)
		}, "COMPLETED", "succeeded"},
		"the flow told its end, and the ledger was lost": {func(r *rig, id string) {
			l := running(r, id, flowrun.StateFailed)
			r.ledger.lose()
			exits(r, id, l, flowrun.Succeeded)
		}, "FAILED", "succeeded"},
		"the flow told its end while we told another": {func(r *rig, id string) {
			l := running(r, id)
			p := r.prefect
			r.prefect = stalling{p, func() { r.set(id, flowrun.StateCompleted); r.prefect = p }}
			exits(r, id, l, flowrun.ExitCode)
		}, "COMPLETED", "exit_code"},
		"its container did not": {func(r *rig, id string) { exits(r, id, running(r, id), flowrun.Signal) }, "CRASHED", "signal"},
		"its container did not, and Prefect was down": {func(r *rig, id string) {
			l := running(r, id)
			r.down.Store(true)
			exits(r, id, l, flowrun.Signal)
			r.down.Store(false)
			r.later(lease)
		}, "CRASHED", "signal"},
		"its execution is gone": {func(r *rig, id string) {
			r.cloudRun.vanish(running(r, id))
			r.must(r.look(id))
		}, "CRASHED", "deleted"},
		"its job cannot be made": {func(r *rig, id string) {
			r.claimed(id)
			r.apply(id, flowrun.Rejected{Holder: "launcher", Report: &flowrun.Report{Type: flowrun.StateCrashed}})
		}, "CRASHED", "rejected"},
		"it was cancelled while it ran": {func(r *rig, id string) {
			l := running(r, id, flowrun.StateCancelling)
			r.must(r.look(id))
			exits(r, id, l, flowrun.Cancelled)
		}, "CANCELLED", "cancelled"},
		"it was cancelled before it started": {func(r *rig, id string) {
			r.claimed(id)
			r.set(id, flowrun.StateCancelling)
		}, "CANCELLED", "cancelled"},
		"it was cancelled while it waited for its next launch": {func(r *rig, id string) {
			exits(r, id, r.launch(id), flowrun.Platform)
			if got := r.state(id); got != flowrun.StateScheduled {
				r.t.Fatalf("%s, want it to wait for its retry", got)
			}
			r.set(id, flowrun.StateCancelling)
		}, "CANCELLED", "cancelled"},
		"it was deleted while it ran": {func(r *rig, id string) {
			l := running(r, id)
			remove(r, id)
			r.must(r.look(id))
			exits(r, id, l, flowrun.Cancelled)
		}, "DELETED", "cancelled"},
		"it was deleted before its end was told": {func(r *rig, id string) {
			l := running(r, id)
			r.down.Store(true)
			exits(r, id, l, flowrun.ExitCode)
			remove(r, id)
			r.later(lease)
		}, "DELETED", "exit_code"},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t, budgets)
			fr := r.flowRun()
			tt.end(r, fr.ID)
			for range 3 {
				r.later(grace)
				r.must(r.look(fr.ID))
			}
			var got []string
			for _, line := range r.finished() {
				if line["message"] != "flow run finished" {
					continue
				}
				got = append(got, fmt.Sprint(line["state_type"], " ", line["outcome"]))
				if line["flow_run_id"] != fr.ID || line["work_pool"] != "etl" {
					t.Errorf("a line about flow run %v of work pool %v", line["flow_run_id"], line["work_pool"])
				}
			}
			if diff := cmp.Diff([]string{tt.state + " " + tt.outcome}, got); diff != "" {
				t.Errorf("flow runs finished (-want +got):\n%s", diff)
			}
		})
	}
}
