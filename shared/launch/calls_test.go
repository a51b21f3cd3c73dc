package launch_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestAPlainFlowRunTakesFewCalls holds that a flow run costs seven calls to Prefect at most from its event to
// its end, the first of its flow too. What is known of a work pool and its queues is read for all of its flow
// runs together.
func TestAPlainFlowRunTakesFewCalls(t *testing.T) { newRig(t).takesFewCalls() }

// TestAPlainFlowRunTakesFewCallsOfRealServer counts them at the server that PUSHPOOL_TEST_PREFECT names.
func TestAPlainFlowRunTakesFewCallsOfRealServer(t *testing.T) {
	newRealRig(t).takesFewCalls()
}

func (r *rig) takesFewCalls() {
	event := func(fr prefect.FlowRun) error {
		return r.launcher.DispatchEvent(r.t.Context(), r.holder(), scheduled(fr), r.now())
	}
	created := func(fr prefect.FlowRun) error {
		err := r.launcher.DispatchCreated(r.t.Context(), r.holder(), fr, r.deployed)
		return errors.Join(err, event(fr)) // Prefect tells of its creation too
	}
	began, shared := time.Now(), int32(0)
	for _, tt := range []struct {
		name     string
		dispatch func(prefect.FlowRun) error
		before   int32 // calls before the dispatch: a request finds the deployment, and creates the flow run
		newFlow  bool
		want     int32 // at most, without those that are made for all flow runs of the pool together
	}{
		{name: "the first flow run that an instance launches", dispatch: event, newFlow: true, want: 7},
		{name: "the first of another flow", dispatch: event, newFlow: true, want: 7},
		{name: "the next", dispatch: event, want: 6},
		{name: "one that was asked for by a request, the first of its flow", dispatch: created, before: 2, newFlow: true, want: 7},
		{name: "the next of these", dispatch: created, before: 2, want: 6},
	} {
		if tt.newFlow {
			flow, err := r.people.CreateFlow(r.t.Context(), r.holder())
			r.must(err)
			r.deployed = r.deploy(prefect.NewDeployment{FlowID: flow.ID, Name: "prod", WorkPool: "etl"})
		}
		fr := r.flowRun(prefect.NewFlowRun{})
		r.calls.Store(tt.before)
		r.shared.Store(0)
		r.must(tt.dispatch(fr))
		r.set(fr.ID, flowrun.StateRunning, flowrun.StateCompleted)
		r.must(r.ended(fr.ID, flowrun.Outcome{Kind: flowrun.Succeeded}))
		if rec := r.record(fr.ID); rec.Status != flowrun.StatusFinished || rec.ReportedAt.IsZero() {
			r.t.Fatalf("%s: the ledger has %+v, want it finished", tt.name, rec.Launch)
		}
		if got := r.calls.Load() - r.shared.Load(); got > tt.want {
			r.t.Errorf("%s: %d calls, want at most %d", tt.name, got, tt.want)
		}
		shared += r.shared.Load()
		if most := 2 * (1 + int32(time.Since(began)/(10*time.Second))); shared > most {
			r.t.Errorf("%s: the pool and its queues were read %d times in %s, want at most %d: both once in 10 s", tt.name, shared, time.Since(began), most)
		}
	}
}

// scheduled is Prefect's event about the flow run's state.
func scheduled(fr prefect.FlowRun) message.PrefectEvent {
	return message.PrefectEvent{ID: fr.StateID, FlowRunID: fr.ID, StateType: string(fr.StateType)}
}

// TestAnEventOfALaunchUnderWayAsksPrefectNothing holds that an event is believed answered only where the ledger
// has the launch for its very state, and somebody is at it.
func TestAnEventOfALaunchUnderWayAsksPrefectNothing(t *testing.T) {
	for rule, tt := range map[string]struct {
		change func(*rig, prefect.FlowRun) message.PrefectEvent
		asks   bool
	}{
		"launched": {change: func(r *rig, fr prefect.FlowRun) message.PrefectEvent {
			r.must(r.dispatch(fr.ID))
			return scheduled(fr)
		}},
		"claimed by somebody who is at it": {change: func(r *rig, fr prefect.FlowRun) message.PrefectEvent {
			r.claimed(fr)
			return scheduled(fr)
		}},
		"claimed by somebody who is gone": {asks: true, change: func(r *rig, fr prefect.FlowRun) message.PrefectEvent {
			r.claimed(fr)
			r.later(2 * lease)
			return scheduled(fr)
		}},
		"of another state": {asks: true, change: func(r *rig, fr prefect.FlowRun) message.PrefectEvent {
			r.must(r.dispatch(fr.ID))
			e := scheduled(fr)
			e.ID = r.holder()
			return e
		}},
		"that nobody knows of": {asks: true, change: func(_ *rig, fr prefect.FlowRun) message.PrefectEvent { return scheduled(fr) }},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun(prefect.NewFlowRun{})
			e := tt.change(r, fr)
			r.calls.Store(0)
			r.must(r.launcher.DispatchEvent(t.Context(), r.holder(), e, r.now()))
			if got := r.calls.Load(); got > 0 != tt.asks {
				t.Errorf("%d calls to Prefect, want some: %t", got, tt.asks)
			}
			if tt.asks {
				r.launchedOnce(fr.ID)
			}
		})
	}
}

// claimed has somebody hold the launch for the flow run's state, who has not proposed it yet.
func (r *rig) claimed(fr prefect.FlowRun) {
	r.t.Helper()
	_, err := r.ledger.Update(r.t.Context(), fr.ID, func(rec flowrun.Record) (flowrun.Record, error) {
		return flowrun.Apply(rec, flowrun.Scheduled{
			Lease: flowrun.Lease{Holder: "somebody", Until: r.now().Add(lease)}, LaunchID: launchID(fr), StateAt: fr.State.Timestamp,
			WorkPool: fr.WorkPoolName, DeploymentID: fr.DeploymentID,
		}, r.now())
	})
	r.must(err)
}
