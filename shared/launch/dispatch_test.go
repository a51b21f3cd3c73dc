package launch_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

func TestADueFlowRunIsClaimedWithItsLaunchIDAndExecutedOnce(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{Name: "Sunny Day"})
	for range 3 { // a message may come again
		r.must(r.dispatch(fr.ID))
	}
	r.launchedOnce(fr.ID)
	now := r.read(fr.ID)
	if got := now.State.Details.TransitionID; got != string(launchID(fr)) {
		t.Errorf("transition id %s, want the launch id %s", got, launchID(fr))
	}
	if want := "pp-sunny-day-" + launchID(fr).Suffix(); now.InfrastructurePID != want {
		t.Errorf("infrastructure_pid %q, want %q", now.InfrastructurePID, want)
	}
}

func TestTenDispatchesAtOnceMakeOneJob(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	var g errgroup.Group
	for range 10 {
		g.Go(func() error { return r.dispatch(fr.ID) })
	}
	r.must(g.Wait())
	r.launchedOnce(fr.ID)
}

// TestWhatIsNotDueWaits holds that a timer is set within the look-ahead, and nothing done beyond it.
func TestWhatIsNotDueWaits(t *testing.T) {
	r := newRig(t)
	soon, far := r.now().Add(time.Minute).Truncate(time.Microsecond), r.now().Add(time.Hour)
	early := r.flowRun(prefect.NewFlowRun{ScheduledTime: &soon})
	r.must(r.dispatch(early.ID))
	r.must(r.dispatch(r.flowRun(prefect.NewFlowRun{ScheduledTime: &far}).ID))
	if diff := cmp.Diff([]sent{{FlowRunID: early.ID, At: soon.UTC(), Cause: "due"}}, r.messages.take()); diff != "" {
		t.Error(diff)
	}
	r.later(time.Minute)
	r.must(r.dispatch(early.ID))
	r.launchedOnce(early.ID)
	if got := len(r.emulator.Executions()); got != 1 {
		t.Errorf("%d executions, want that of the one that is due", got)
	}
}

// TestFlowRunsThatAreNotOursAreLeftAlone holds that nothing is written about what another pool,
// a worker or another installation has, nor about what is over.
func TestFlowRunsThatAreNotOursAreLeftAlone(t *testing.T) {
	r := newRig(t)
	r.must(r.people.CreateWorkPool(t.Context(), "other", "cloud-run-v2", template()))
	other := r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "other", WorkPool: "other"})
	claim := func(id flowrun.LaunchID) func(fr prefect.FlowRun) {
		return func(fr prefect.FlowRun) {
			_, err := r.people.SetState(t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(id)})
			r.must(err)
		}
	}
	states := func(s ...flowrun.StateType) func(prefect.FlowRun) {
		return func(fr prefect.FlowRun) { r.set(fr.ID, s...) }
	}
	for name, tt := range map[string]struct {
		deployment prefect.Deployment
		before     func(prefect.FlowRun)
	}{
		"SCHEDULED in another pool":       {deployment: other},
		"PENDING of a worker":             {before: claim(flowrun.LaunchID(uuid.NewString()))},
		"PENDING of nobody in particular": {before: states(flowrun.StatePending)},
		"PENDING of another installation": {before: func(fr prefect.FlowRun) { claim(flowrun.NewLaunchID("project/second", fr.ID, fr.StateID))(fr) }},
		"RUNNING":                         {before: states(flowrun.StatePending, flowrun.StateRunning)},
		"COMPLETED":                       {before: states(flowrun.StateCompleted)},
		"FAILED":                          {before: states(flowrun.StateFailed)},
		"CRASHED":                         {before: states(flowrun.StateCrashed)},
		"CANCELLED":                       {before: states(flowrun.StateCancelled)},
		"CANCELLING of a worker":          {before: states(flowrun.StatePending, flowrun.StateRunning, flowrun.StateCancelling)},
		"waiting for a retry in its worker's process": {before: func(fr prefect.FlowRun) {
			r.retries(fr.ID, 1)
			states(flowrun.StatePending, flowrun.StateRunning, flowrun.StateFailed)(fr)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			d := tt.deployment
			if d.ID == "" {
				d = r.deployed
			}
			fr, _, err := r.people.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{})
			r.must(err)
			if tt.before != nil {
				tt.before(r.read(fr.ID))
			}
			before := r.read(fr.ID)
			r.must(r.dispatch(fr.ID))
			if diff := cmp.Diff(before, r.read(fr.ID)); diff != "" {
				t.Error(diff)
			}
		})
	}
	r.t = t
	if got := len(r.emulator.Executions()); got != 0 {
		t.Errorf("%d executions, want none", got)
	}
}

// TestAFlowRunThatPrefectDoesNotKnow is delivered again while its message is young, and dropped after.
func TestAFlowRunThatPrefectDoesNotKnow(t *testing.T) {
	r := newRig(t)
	id := uuid.NewString()
	if err := r.launcher.Dispatch(t.Context(), "h", id, r.now()); flowrun.FaultOf(err) != flowrun.NotFound {
		t.Errorf("young: %v, want an error, so that it is delivered again", err)
	}
	if err := r.launcher.Dispatch(t.Context(), "h", id, r.now().Add(-time.Minute)); err != nil {
		t.Errorf("old: %v, want none", err)
	}
}

// meanwhile does something once, after a flow run was read for the given time.
type meanwhile struct {
	*prefect.Client
	read int
	do   func()
}

func (m *meanwhile) FlowRun(ctx context.Context, id string) (prefect.FlowRun, error) {
	fr, err := m.Client.FlowRun(ctx, id)
	if m.read--; m.read == 0 {
		m.do()
	}
	return fr, err
}

// TestAStateThatWasReplacedIsNotClaimed holds that PENDING is proposed over the state that was seen, or not at all.
func TestAStateThatWasReplacedIsNotClaimed(t *testing.T) {
	for name, tt := range map[string]struct {
		to    prefect.Proposal
		want  string
		again bool
	}{
		"renamed to Late: looked at again": {prefect.Proposal{Type: flowrun.StateScheduled, Name: "Late"}, "SCHEDULED/Late", true},
		"completed by hand":                {prefect.Proposal{Type: flowrun.StateCompleted}, "COMPLETED/Completed", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun(prefect.NewFlowRun{})
			r.flowRuns = &meanwhile{Client: r.prefect, read: 1, do: func() {
				_, err := r.people.SetState(t.Context(), fr.ID, tt.to)
				r.must(err)
			}}
			r.must(r.dispatch(fr.ID))
			if got := r.state(fr.ID); got != tt.want || len(r.executions(fr.ID)) != 0 {
				t.Fatalf("%s with %d executions, want %s with none", got, len(r.executions(fr.ID)), tt.want)
			}
			if rec := r.record(fr.ID); rec.Status != flowrun.StatusNone || rec.LeaseHolder != "" {
				t.Errorf("the ledger keeps a candidate %+v", rec)
			}
			if got := slices.Contains(r.messages.take(), sent{FlowRunID: fr.ID}); got != tt.again {
				t.Errorf("looked at again: %t, want %t", got, tt.again)
			}
			r.must(r.dispatch(fr.ID))
			if tt.again {
				r.launchedOnce(fr.ID)
			}
		})
	}
}

// TestWhoStoodStillReadsAgain holds that a flow run is not claimed by what was read of it long ago: its
// lease keeps no other worker from it.
func TestWhoStoodStillReadsAgain(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.flowRuns = &meanwhile{Client: r.prefect, read: 2, do: func() {
		_, err := r.people.SetState(t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StateCompleted})
		r.must(err)
		r.ahead.Add(int64(prefect.FreshFor))
	}}
	r.must(r.dispatch(fr.ID))
	if got := r.state(fr.ID); got != "COMPLETED/Completed" || len(r.executions(fr.ID)) != 0 {
		t.Errorf("%s with %d executions, want COMPLETED/Completed with none", got, len(r.executions(fr.ID)))
	}
}

// TestAnEarlierProposalThatComesLateIsOurs holds that Prefect's refusal that shows our own launch is a claim.
func TestAnEarlierProposalThatComesLateIsOurs(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.flowRuns = &meanwhile{Client: r.prefect, read: 2, do: func() {
		_, err := r.people.SetState(t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(launchID(fr))})
		r.must(err)
	}}
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
}

// TestAStalledHandlerNeverWrites holds that who lost the lease while it stood still neither claims nor creates.
func TestAStalledHandlerNeverWrites(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	ctx, cancel := context.WithCancel(t.Context())
	stalled := r.holder()
	r.flowRuns = &meanwhile{Client: r.prefect, read: 2, do: func() {
		// The lease ends while the handler stands between reading and writing; the other one
		// launches, and the flow completes.
		r.flowRuns = r.prefect
		r.later(lease)
		r.must(r.dispatch(fr.ID))
		r.set(fr.ID, flowrun.StateRunning, flowrun.StateCompleted)
		cancel() // as the deadline of the fence does
	}}
	if err := r.launcher.Dispatch(ctx, stalled, fr.ID, r.now()); err == nil {
		t.Error("the stalled handler's message was acknowledged")
	}
	if got := r.state(fr.ID); got != "COMPLETED/Completed" || len(r.executions(fr.ID)) != 1 {
		t.Errorf("%s with %d executions, want COMPLETED with the other handler's", got, len(r.executions(fr.ID)))
	}
}

// fenced returns what it read once the caller's time is over.
type fenced struct{ *prefect.Client }

func (f fenced) FlowRun(ctx context.Context, id string) (prefect.FlowRun, error) {
	fr, err := f.Client.FlowRun(ctx, id)
	if _, under := ctx.Deadline(); under {
		<-ctx.Done()
	}
	return fr, err
}

// TestEveryCallEndsBeforeItsLease holds that a handler's calls are bounded by its lease, not by its message.
func TestEveryCallEndsBeforeItsLease(t *testing.T) {
	r := newRig(t, shortLease)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.flowRuns = fenced{r.prefect}
	if err := r.launcher.Dispatch(context.WithoutCancel(t.Context()), r.holder(), fr.ID, r.now()); err == nil {
		t.Error("the message was acknowledged")
	}
	if got := r.state(fr.ID); got != "SCHEDULED/Scheduled" {
		t.Errorf("%s, want SCHEDULED as before", got)
	}
}

// TestLabelsAreSetLast_Prefect21119 holds that no job variable can change whose an execution is.
func TestLabelsAreSetLast_Prefect21119(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{JobVariables: map[string]any{"labels": map[string]any{
		cloudrun.LabelFlowRun: "mine", cloudrun.LabelLaunch: "mine", cloudrun.LabelInstall: "mine", "team": "data",
	}}})
	r.must(r.dispatch(fr.ID))
	x := r.executions(fr.ID)
	if len(x) != 1 {
		t.Fatalf("%d executions carry the flow run's id, want one", len(x))
	}
	got := map[string]string{}
	for _, k := range []string{cloudrun.LabelFlowRun, cloudrun.LabelLaunch, cloudrun.LabelInstall} {
		got[k] = x[0].Labels[k]
	}
	want := map[string]string{cloudrun.LabelFlowRun: fr.ID, cloudrun.LabelLaunch: string(launchID(fr)), cloudrun.LabelInstall: "pushpool"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	job, err := r.cloudRun.Job(t.Context(), cloudrun.JobName{Project: project, Region: region, Job: r.read(fr.ID).InfrastructurePID})
	r.must(err)
	if job.Labels["team"] != "data" || job.Labels["prefect-io-version"] != "3-8-8" {
		t.Errorf("the job has labels %v, want the job variable's and those of Prefect's worker too", job.Labels)
	}
}

// TestADeploymentsLimitIsPrefects holds that a flow run for which the deployment has no slot is left to Prefect.
func TestADeploymentsLimitIsPrefects(t *testing.T) {
	r := newRig(t)
	one := 1
	r.deployed = r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "one", WorkPool: "etl", ConcurrencyLimit: &one})
	first, second := r.flowRun(prefect.NewFlowRun{}), r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(first.ID))
	r.must(r.dispatch(second.ID))
	r.launchedOnce(first.ID)
	if got := r.state(second.ID); got != "SCHEDULED/AwaitingConcurrencySlot" || len(r.executions(second.ID)) != 0 {
		t.Fatalf("the second is %s with %d executions, want AwaitingConcurrencySlot with none", got, len(r.executions(second.ID)))
	}
	if rec := r.record(second.ID); rec.Status != flowrun.StatusNone || rec.LeaseHolder != "" {
		t.Errorf("the ledger keeps its candidate: %+v", rec.Launch)
	}
	before := r.read(second.ID)
	r.must(r.dispatch(second.ID)) // Prefect's event about the new state
	if diff := cmp.Diff(before, r.read(second.ID)); diff != "" {
		t.Errorf("it was proposed again before its time: %s", diff)
	}
	r.set(first.ID, flowrun.StateRunning, flowrun.StateCompleted)
	r.later(time.Minute)
	r.must(r.dispatch(second.ID))
	r.launchedOnce(second.ID)
}

// TestWhatAFlowRunWasMadeFromIsReadWhileItIsClaimed holds that the claim does not wait for the deployment, nor the job for
// a read that could have begun earlier.
func TestWhatAFlowRunWasMadeFromIsReadWhileItIsClaimed(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	claimed := make(chan struct{})
	r.strikePrefect(func(_ http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		switch {
		case strings.HasSuffix(req.URL.Path, "/set_state"):
			close(claimed)
		case strings.Contains(req.URL.Path, "/deployments/"):
			select { // answered once the claim is on its way, which therefore may not wait for the answer
			case <-claimed:
			case <-time.After(20 * time.Second):
				t.Error("the flow run is not claimed while its deployment is being read")
			}
		}
		return false
	})
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
}
