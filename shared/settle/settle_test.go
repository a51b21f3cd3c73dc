package settle_test

import (
	"context"
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

// suspended is PAUSED with its container gone on purpose.
const suspended = flowrun.StateType("suspended")

// inProcess is SCHEDULED, to be run again by its own container.
const inProcess = flowrun.StateType("in process")

// bring brings a launched flow run to a state.
func (r *rig) bring(id string, to flowrun.StateType) {
	r.t.Helper()
	r.later(time.Second)
	switch to {
	case flowrun.StatePending:
	case flowrun.StateScheduled:
		r.set(id, flowrun.StateRunning, flowrun.StateFailed, flowrun.StateScheduled)
	case inProcess:
		r.must(r.people.UpdateFlowRun(r.t.Context(), id, map[string]any{"empirical_policy": map[string]any{"retries": 1, "retry_delay": 0}}))
		r.set(id, flowrun.StateRunning, flowrun.StateFailed)
	case flowrun.StatePaused, suspended:
		r.set(id, flowrun.StateRunning)
		r.send(http.MethodPost, "/flow_runs/"+id+"/set_state", map[string]any{"state": map[string]any{
			"type": "PAUSED", "state_details": map[string]any{"pause_reschedule": to == suspended, "pause_timeout": r.now().Add(time.Hour)},
		}})
	case flowrun.StateRunning:
		r.set(id, flowrun.StateRunning)
	default:
		r.set(id, flowrun.StateRunning, to)
	}
	want := map[flowrun.StateType]flowrun.StateType{inProcess: flowrun.StateScheduled, suspended: flowrun.StatePaused}[to]
	if want == "" {
		want = to
	}
	if got := r.state(id); got != want {
		r.t.Fatalf("the flow run is %s, want it brought to %s", got, to)
	}
	r.later(time.Second)
}

// TestEachEndBecomesItsTrueState_Prefect13053 holds what Prefect shows after an execution ended, by how it
// ended and what the flow run was; told by an event, and found by a look.
func TestEachEndBecomesItsTrueState_Prefect13053(t *testing.T) {
	outcomes := []flowrun.OutcomeKind{
		flowrun.ExitCode, flowrun.Signal, flowrun.OutOfMemory, flowrun.TimedOut, flowrun.Image, flowrun.Secret,
		flowrun.Permission, flowrun.Cancelled, flowrun.Deleted, flowrun.Platform, flowrun.Succeeded,
	}
	for _, tt := range []struct {
		was, becomes flowrun.StateType
		dispatched   bool
	}{
		{was: flowrun.StatePending, becomes: flowrun.StateCrashed},
		{was: flowrun.StateRunning, becomes: flowrun.StateCrashed},
		{was: flowrun.StatePaused, becomes: flowrun.StateCrashed},
		{was: flowrun.StateCancelling, becomes: flowrun.StateCancelled},
		{was: flowrun.StateCompleted, becomes: flowrun.StateCompleted},
		{was: flowrun.StateFailed, becomes: flowrun.StateFailed},
		{was: flowrun.StateCrashed, becomes: flowrun.StateCrashed},
		{was: flowrun.StateCancelled, becomes: flowrun.StateCancelled},
		{was: flowrun.StateScheduled, becomes: flowrun.StateScheduled},
		{was: inProcess, becomes: flowrun.StateScheduled, dispatched: true},
		{was: suspended, becomes: flowrun.StatePaused},
	} {
		t.Run(string(tt.was), func(t *testing.T) {
			r := newRig(t)
			for _, kind := range outcomes {
				for _, event := range []bool{true, false} {
					fr := r.flowRun()
					l := r.launch(fr.ID)
					r.bring(fr.ID, tt.was)
					before, at := r.read(fr.ID), r.now()
					r.cloudRun.end(l, kind, at)
					settled := func() error {
						if event {
							return r.endedAt(fr.ID, l, kind, at)
						}
						return r.look(fr.ID)
					}
					if kind == flowrun.Succeeded && (tt.was == flowrun.StatePending || tt.was == flowrun.StateRunning) {
						if err := settled(); !errors.Is(err, settle.ErrWait) || r.state(fr.ID) != tt.was {
							t.Fatalf("%s: %v, %s, want the flow left the time to report", kind, err, r.state(fr.ID))
						}
						r.later(grace)
					}
					r.messages.take()
					r.must(settled())
					now := r.read(fr.ID)
					if now.StateType != tt.becomes {
						t.Errorf("%s, told %t: %s, want %s", kind, event, now.StateType, tt.becomes)
					}
					if tt.becomes == before.StateType && now.StateID != before.StateID {
						t.Errorf("%s, told %t: the state was written anew", kind, event)
					}
					if now.StateID != before.StateID && !strings.Contains(now.State.Message, "https://console.cloud.google.com/") {
						t.Errorf("%s: the message has no link: %s", kind, now.State.Message)
					}
					want := []sent{{Freed: "etl"}}
					if tt.dispatched {
						want = []sent{{FlowRunID: fr.ID}, {Freed: "etl"}}
					}
					if diff := cmp.Diff(want, r.messages.take()); diff != "" {
						t.Errorf("%s, told %t: %s", kind, event, diff)
					}
					rec := r.record(fr.ID)
					if rec.Status != flowrun.StatusFinished || rec.Outcome != kind || rec.ReportedAt.IsZero() || rec.LeaseHolder != "" {
						t.Errorf("%s, told %t: the ledger has %s, %q, reported at %s, held by %q", kind, event, rec.Status, rec.Outcome, rec.ReportedAt, rec.LeaseHolder)
					}
					told := r.told.Load()
					r.must(r.endedAt(fr.ID, l, kind, at)) // the message may come again
					if r.told.Load() != told || r.read(fr.ID).StateID != now.StateID {
						t.Errorf("%s, told %t: it was told twice", kind, event)
					}
				}
			}
		})
	}
}

// TestWhatEndedBeforeItStarted_Prefect20485_22727 holds what is done about a launch that never came to an execution.
func TestWhatEndedBeforeItStarted_Prefect20485_22727(t *testing.T) {
	r := newRig(t)
	t.Run("an interrupted launch is resumed", func(t *testing.T) {
		r.t = t
		for name, before := range map[string]func(id string, l flowrun.Launch){
			"that tried nothing": func(string, flowrun.Launch) {},
			"that tried": func(id string, l flowrun.Launch) {
				r.apply(id, flowrun.Attempted{Holder: "launcher", LaunchID: l.LaunchID, Region: region, JobName: l.JobName})
			},
			"that the ledger lost": func(string, flowrun.Launch) { r.ledger.lose() },
		} {
			fr := r.flowRun()
			before(fr.ID, r.claimed(fr.ID))
			r.must(r.look(fr.ID))
			if diff := cmp.Diff([]sent{{FlowRunID: fr.ID}}, r.messages.take()); diff != "" || r.state(fr.ID) != flowrun.StatePending {
				t.Errorf("one %s: %s: %s", name, r.state(fr.ID), diff)
			}
		}
	})
	t.Run("a job that can never start crashes the flow run", func(t *testing.T) {
		r.t = t
		fr := r.flowRun()
		l := r.launch(fr.ID)
		failed := cloudrun.Job{Failure: &flowrun.Outcome{Kind: flowrun.Image, Text: "Image 'x' not found."}}
		r.cloudRun.unstarted(l, failed)
		r.must(r.look(fr.ID))
		if now := r.read(fr.ID); now.StateType != flowrun.StateCrashed || !strings.Contains(now.State.Message, "Image 'x' not found.") {
			t.Errorf("%s %q, want CRASHED with Cloud Run's words", now.StateType, now.State.Message)
		}
	})
	t.Run("a job that is being made is waited for", func(t *testing.T) {
		r.t = t
		fr := r.flowRun()
		r.cloudRun.unstarted(r.launch(fr.ID), cloudrun.Job{Reconciling: true})
		r.must(r.look(fr.ID))
		if rec := r.record(fr.ID); r.state(fr.ID) != flowrun.StatePending || rec.Status != flowrun.StatusLaunched || !rec.MissingSince.IsZero() {
			t.Errorf("%s, %s, missing since %s", r.state(fr.ID), rec.Status, rec.MissingSince)
		}
	})
	t.Run("somebody else's job of that name is not the launch's", func(t *testing.T) {
		r.t = t
		fr := r.flowRun()
		l := r.launch(fr.ID)
		x := r.cloudRun.executions[executionOf(l)]
		x.Labels, x.Outcome = map[string]string{cloudrun.LabelLaunch: "theirs"}, &flowrun.Outcome{Kind: flowrun.ExitCode}
		r.cloudRun.executions[executionOf(l)] = x
		another := r.flowRun()
		unstarted := r.launch(another.ID)
		r.cloudRun.jobs[executionOf(unstarted).JobName().String()].Labels[cloudrun.LabelLaunch] = "theirs"
		r.cloudRun.unstarted(unstarted, cloudrun.Job{Failure: &flowrun.Outcome{Kind: flowrun.Image}})
		for _, id := range []string{fr.ID, another.ID} {
			r.must(r.look(id))
			if rec := r.record(id); r.state(id) != flowrun.StatePending || rec.MissingSince.IsZero() {
				t.Errorf("%s, missing since %s: want it missing", r.state(id), rec.MissingSince)
			}
		}
	})
}

// TestAnOlderLaunchChangesNothing holds that its end is not reported over the present one.
func TestAnOlderLaunchChangesNothing(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	first := r.launch(fr.ID)
	r.bring(fr.ID, flowrun.StateScheduled)
	r.must(r.ended(fr.ID, first, flowrun.Cancelled))
	second := r.launch(fr.ID)
	r.bring(fr.ID, flowrun.StateRunning)
	for _, lost := range []bool{false, true} {
		if lost {
			r.ledger.lose()
		}
		r.must(r.ended(fr.ID, first, flowrun.ExitCode))
		if got := r.state(fr.ID); got != flowrun.StateRunning || r.told.Load() != 0 {
			t.Errorf("ledger lost %t: %s after %d proposals, want RUNNING untouched", lost, got, r.told.Load())
		}
		if rec := r.record(fr.ID); rec.LaunchID != second.LaunchID || rec.Status.Over() {
			t.Errorf("ledger lost %t: the ledger has %s %s, want the second launch under way", lost, rec.LaunchID, rec.Status)
		}
	}
}

// TestAVerdictThatPrefectMissedIsToldByTheNextLook holds that it is stored first, and told while
// the flow run is still what it is about.
func TestAVerdictThatPrefectMissedIsToldByTheNextLook(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(r *rig, id string)
		want      flowrun.StateType
		told      int32
	}{
		"nothing happened":         {func(*rig, string) {}, flowrun.StateCrashed, 2},
		"the flow reported itself": {func(r *rig, id string) { r.set(id, flowrun.StateCompleted) }, flowrun.StateCompleted, 1},
		"a person ran it again":    {func(r *rig, id string) { r.set(id, flowrun.StateScheduled) }, flowrun.StateScheduled, 1},
		"a worker took it": {func(r *rig, id string) {
			r.set(id, flowrun.StateScheduled)
			r.propose(id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
		}, flowrun.StatePending, 1},
		"a worker runs it": {func(r *rig, id string) {
			r.set(id, flowrun.StateScheduled)
			r.propose(id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
			r.set(id, flowrun.StateRunning)
		}, flowrun.StateRunning, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun()
			l := r.launch(fr.ID)
			r.bring(fr.ID, flowrun.StateRunning)
			r.down.Store(true)
			if err := r.ended(fr.ID, l, flowrun.ExitCode); !errors.Is(err, errDown) {
				t.Fatalf("%v, want the message delivered again", err)
			}
			if rec := r.record(fr.ID); !rec.Unreported() {
				t.Fatalf("the ledger has %s, want an unreported verdict", rec.Status)
			}
			r.down.Store(false)
			tt.meanwhile(r, fr.ID)
			r.later(lease)
			r.must(r.look(fr.ID))
			if got := r.state(fr.ID); got != tt.want || r.told.Load() != tt.told {
				t.Errorf("%s after %d proposals, want %s after %d", got, r.told.Load(), tt.want, tt.told)
			}
			if rec := r.record(fr.ID); rec.Unreported() {
				t.Error("the verdict is still to be told")
			}
			if diff := cmp.Diff([]sent{{Freed: "etl"}}, r.messages.take()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestWhatFollowsIsSentAgain holds that messages that could not be sent are sent by the next delivery.
func TestWhatFollowsIsSentAgain(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.launch(fr.ID)
	r.bring(fr.ID, inProcess)
	r.messages.fail = true
	if err := r.ended(fr.ID, l, flowrun.ExitCode); !errors.Is(err, errDown) {
		t.Fatalf("%v, want the message delivered again", err)
	}
	r.messages.fail = false
	r.later(lease)
	r.must(r.ended(fr.ID, l, flowrun.ExitCode))
	if diff := cmp.Diff([]sent{{FlowRunID: fr.ID}, {Freed: "etl"}}, r.messages.take()); diff != "" {
		t.Error(diff)
	}
}

// TestOneHandlerAtATime holds that who finds the flow run held comes again, and that a handler
// whose lease ended does not write.
func TestOneHandlerAtATime(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.launch(fr.ID)
	r.bring(fr.ID, flowrun.StateRunning)
	r.apply(fr.ID, flowrun.Taken{Lease: flowrun.Lease{Holder: "other", Until: r.now().Add(lease)}})
	if err := r.ended(fr.ID, l, flowrun.ExitCode); !errors.Is(err, flowrun.ErrBusy) {
		t.Errorf("told: %v, want %v", err, flowrun.ErrBusy)
	}
	if err := r.look(fr.ID); !errors.Is(err, flowrun.ErrBusy) {
		t.Errorf("looked: %v, want %v", err, flowrun.ErrBusy)
	}
	r.later(lease)
	r.prefect = stalling{r.prefect, func() {
		r.later(lease)
		r.apply(fr.ID, flowrun.Taken{Lease: flowrun.Lease{Holder: "other", Until: r.now().Add(lease)}})
	}}
	if err := r.ended(fr.ID, l, flowrun.ExitCode); !errors.Is(err, flowrun.ErrLost) {
		t.Errorf("stalled: %v, want %v", err, flowrun.ErrLost)
	}
	if got := r.state(fr.ID); got != flowrun.StateRunning || r.told.Load() != 0 {
		t.Errorf("%s after %d proposals, want RUNNING untouched", got, r.told.Load())
	}
}

// TestEveryCallEndsBeforeTheLease holds that a call that hangs is given up while nobody else may
// write yet, with time left for Prefect to drop it.
func TestEveryCallEndsBeforeTheLease(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun()
	l := r.launch(fr.ID)
	r.bring(fr.ID, flowrun.StateRunning)
	bounds := &bounded{Prefect: r.prefect}
	r.prefect = bounds
	r.must(r.ended(fr.ID, l, flowrun.ExitCode))
	if most := lease - callTimeout/2; bounds.longest <= 0 || bounds.longest > most {
		t.Errorf("calls may take %s, want %s at most", bounds.longest, most)
	}
}

// bounded notes how long a call may take.
type bounded struct {
	settle.Prefect
	longest time.Duration
}

func (b *bounded) note(ctx context.Context) {
	until, ok := ctx.Deadline()
	if !ok {
		until = time.Now().Add(time.Hour)
	}
	b.longest = max(b.longest, time.Until(until))
}

func (b *bounded) FlowRun(ctx context.Context, id string) (prefect.FlowRun, error) {
	b.note(ctx)
	return b.Prefect.FlowRun(ctx, id)
}

func (b *bounded) SetState(ctx context.Context, id string, p prefect.Proposal) (prefect.Answer, error) {
	b.note(ctx)
	return b.Prefect.SetState(ctx, id, p)
}

// stalling does something after it read the flow run.
type stalling struct {
	settle.Prefect
	do func()
}

func (s stalling) FlowRun(ctx context.Context, id string) (prefect.FlowRun, error) {
	fr, err := s.Prefect.FlowRun(ctx, id)
	s.do()
	return fr, err
}
