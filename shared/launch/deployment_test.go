package launch_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/followup"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// deploymentLimit gives the rig's deployment a concurrency limit; nil takes it away.
func (r *rig) deploymentLimit(n any, strategy string) {
	r.t.Helper()
	fields := map[string]any{"concurrency_limit": n}
	if strategy != "" {
		fields["concurrency_options"] = map[string]any{"collision_strategy": strategy}
	}
	r.patch("/deployments/"+r.deployed.ID, fields)
}

// waiting creates n flow runs, dispatches each, and returns their ids, oldest first.
func (r *rig) waiting(n int) (ids []string) {
	r.t.Helper()
	for range n {
		ids = append(ids, r.flowRun(prefect.NewFlowRun{}).ID)
		r.must(r.dispatch(ids[len(ids)-1]))
	}
	return ids
}

// complete ends a flow run as its flow does, and does what the dispatcher does about the event.
func (r *rig) complete(id string) {
	r.t.Helper()
	r.set(id, flowrun.StateRunning, flowrun.StateCompleted)
	r.freed()
}

func (r *rig) freed() {
	r.t.Helper()
	w, err := followup.New(nil, nil, r.ledger, r.now).Waiting(r.t.Context(), "etl", r.deployed.ID)
	r.must(err)
	r.must(r.launcher.Wake(r.t.Context(), r.holder(), w))
}

// states counts the states that each flow run has had.
func (r *rig) refusals(id string) (n int) {
	r.t.Helper()
	states, err := r.people.FlowRunStates(r.t.Context(), id)
	r.must(err)
	for _, s := range states {
		if s.Name == prefect.AwaitingSlot {
			n++
		}
	}
	return n
}

func TestAFreeSlotOfADeploymentTakesTheOldestAtOnce(t *testing.T) {
	r := newRig(t)
	r.deploymentLimit(1, "")
	ids := r.waiting(4)
	for _, id := range ids[1:] {
		if got := r.state(id); got != "SCHEDULED/AwaitingConcurrencySlot" {
			t.Errorf("a flow run without a slot is %s", got)
		}
	}
	for i := range ids {
		if diff := cmp.Diff([]int{i}, r.pending(ids)); diff != "" {
			t.Fatalf("PENDING, by index: %s", diff)
		}
		r.launchedOnce(ids[i])
		r.complete(ids[i]) // which takes the next
	}
	// None was proposed again before it was its turn: each refusal writes a state and an event.
	var refused []int
	for _, id := range ids {
		refused = append(refused, r.refusals(id))
	}
	if diff := cmp.Diff([]int{0, 1, 1, 1}, refused); diff != "" {
		t.Errorf("refused: %s", diff)
	}
}

// Prefect sets the time of who was refused 30 s ahead, which the flow would wait for.
func TestWhoGetsASlotSoonerStartsSooner(t *testing.T) {
	r := newRig(t)
	r.deploymentLimit(1, "")
	ids := r.waiting(2)
	r.complete(ids[0])
	answer, err := r.people.SetState(t.Context(), ids[1], prefect.Proposal{Type: flowrun.StateRunning})
	r.must(err)
	if answer.Status != prefect.StatusAccept {
		t.Errorf("RUNNING is answered with %s, %s", answer.Status, answer.Delay)
	}
}

// faster has something happen just before each proposal.
type faster struct {
	*prefect.Client
	happens func()
}

func (f faster) SetState(ctx context.Context, id string, p prefect.Proposal) (prefect.Answer, error) {
	f.happens()
	return f.Client.SetState(ctx, id, p)
}

// Each refusal writes a state and an event: of two slots that others take at once, the second
// is no reason to propose once more who was refused the first.
func TestWhoIsRefusedInVainIsLeftAloneForAWhile(t *testing.T) {
	r := newRig(t)
	r.deploymentLimit(1, "")
	ids := r.waiting(2)
	waits := ids[1]
	ahead := r.now().Add(time.Hour)
	last := ids[0]
	for range 2 {
		next := r.flowRun(prefect.NewFlowRun{ScheduledTime: &ahead}).ID
		r.flowRuns = faster{r.prefect, func() { r.set(next, flowrun.StatePending) }}
		r.complete(last)
		r.set(next, flowrun.StatePending) // where nobody was proposed
		last = next
	}
	if got, n := r.state(waits), r.refusals(waits); got != "SCHEDULED/AwaitingConcurrencySlot" || n != 2 {
		t.Errorf("it is %s, refused %d times; want AwaitingConcurrencySlot, once when it came and once in vain", got, n)
	}
	r.flowRuns = r.prefect
	r.set(last, flowrun.StateRunning, flowrun.StateCompleted)
	timers := r.messages.take()
	if len(timers) != 1 || timers[0].FlowRunID != waits || timers[0].Cause != "slot" {
		t.Fatalf("timers: %v", timers)
	}
	r.later(timers[0].At.Sub(r.now()))
	r.must(r.dispatch(waits))
	r.launchedOnce(waits)
}

func TestSlotsOfADeploymentGoByThePriorityOfQueues(t *testing.T) {
	r := newRig(t)
	r.deploymentLimit(1, "")
	first := r.waiting(1)[0]
	var ids []string
	for _, queue := range []string{"", "", "urgent", "urgent"} {
		ids = append(ids, r.flowRun(prefect.NewFlowRun{WorkQueue: queue}).ID)
		r.must(r.dispatch(ids[len(ids)-1]))
	}
	r.patch("/work_pools/etl/queues/urgent", map[string]any{"priority": 1})
	last := first
	for _, next := range []int{2, 3, 0, 1} {
		r.complete(last)
		if diff := cmp.Diff([]int{next}, r.pending(ids)); diff != "" {
			t.Fatalf("PENDING, by index: %s", diff)
		}
		last = ids[next]
	}
}

func TestAllSlotsOfADeploymentAreTaken(t *testing.T) {
	r := newRig(t)
	r.deploymentLimit(1, "")
	ids := r.waiting(6)
	r.deploymentLimit(3, "")
	r.freed() // as the sweep does
	if diff := cmp.Diff([]int{0, 1, 2}, r.pending(ids)); diff != "" {
		t.Errorf("PENDING at a limit of 3, by index: %s", diff)
	}
	r.deploymentLimit(nil, "")
	r.must(r.launcher.Wake(t.Context(), r.holder(), message.Wake{DeploymentID: r.deployed.ID}))
	if diff := cmp.Diff([]int{0, 1, 2, 3, 4, 5}, r.pending(ids)); diff != "" {
		t.Errorf("PENDING without a limit, by index: %s", diff)
	}
	d, err := r.ledger.UpdateDeployment(t.Context(), r.deployed.ID, func(d flowrun.Deployment) (flowrun.Deployment, error) { return d, nil })
	r.must(err)
	if diff := cmp.Diff(flowrun.Deployment{ID: r.deployed.ID}, d); diff != "" {
		t.Errorf("the ledger has somebody wait: %s", diff)
	}
}

func TestADeploymentThatCancelsNewFlowRuns(t *testing.T) {
	r := newRig(t)
	r.deploymentLimit(1, "CANCEL_NEW")
	ids := r.waiting(3)
	got := []string{r.state(ids[0]), r.state(ids[1]), r.state(ids[2])}
	if diff := cmp.Diff([]string{"PENDING/Pending", "CANCELLED/Cancelled", "CANCELLED/Cancelled"}, got); diff != "" {
		t.Error(diff)
	}
	r.complete(ids[0])
	if id := r.waiting(1)[0]; r.state(id) != "PENDING/Pending" {
		t.Errorf("with a slot left it is %s", r.state(id))
	}
}

// Never more than the limit are PENDING or RUNNING, none twice, and none is forgotten, however
// many dispatchers hear of the flow runs and of their ends.
func TestConcurrentDispatchersKeepTheLimitOfADeployment(t *testing.T) {
	const count, limit = 24, 3
	r := newRig(t)
	r.deploymentLimit(limit, "")
	var ids []string
	for range count {
		ids = append(ids, r.flowRun(prefect.NewFlowRun{}).ID)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range ids {
				_ = r.dispatch(ids[(i*7+j)%count])
			}
		})
	}
	wg.Wait()
	for done := map[int]bool{}; len(done) < count; {
		pending := r.pending(ids)
		if len(pending) == 0 || len(pending) > limit {
			t.Fatalf("%d are PENDING after %d ended, want 1 to %d", len(pending), len(done), limit)
		}
		if left := count - len(done); len(pending) < min(limit, left) {
			t.Fatalf("%d are PENDING while %d wait", len(pending), left)
		}
		for _, i := range pending {
			done[i] = true
			wg.Go(func() { r.complete(ids[i]) })
		}
		wg.Wait()
	}
	for _, id := range ids {
		if n := len(r.executions(id)); n != 1 {
			t.Errorf("%d executions of one flow run", n)
		}
	}
}

// What 200 flow runs of one deployment cost that wait: nothing for a flow run of another
// deployment, and a few calls for each slot that comes free.
func TestWaitingFlowRunsOfADeploymentDoNotDelayAnother(t *testing.T) {
	for name, limited := range map[string]bool{"in a pool without limit": false, "in a pool with a limit": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			other := r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "other", WorkPool: "etl"})
			r.deploymentLimit(1, "")
			if limited {
				r.limit(5)
			}
			var ids []string
			for range 200 {
				ids = append(ids, r.flowRun(prefect.NewFlowRun{}).ID)
			}
			r.must(r.dispatch(ids[0])) // one message, as the sweep sends for a pool with a limit
			if !limited {
				for _, id := range ids[1:] {
					r.must(r.dispatch(id))
				}
			}
			calls := func(do func()) int {
				before := r.calls.Load()
				do()
				return int(r.calls.Load() - before)
			}
			fr, _, err := r.people.CreateFlowRun(t.Context(), other.ID, prefect.NewFlowRun{})
			r.must(err)
			// 5 are a launch's own; in a pool with a limit that many more find out whose turn it is.
			if n := calls(func() { r.must(r.dispatch(fr.ID)) }); n > 15 {
				t.Errorf("a flow run of another deployment took %d calls to Prefect", n)
			}
			r.launchedOnce(fr.ID)
			if n := calls(func() { r.complete(ids[0]) }); n > 20 {
				t.Errorf("a slot that came free took %d calls to Prefect", n)
			}
			if got := r.pending(ids); !slices.Equal(got, []int{1}) {
				t.Errorf("PENDING, by index: %v", got)
			}
		})
	}
}

// A pool's limit holds as well for those that wait for a slot of their deployment.
func TestASlotOfADeploymentIsNoSlotOfItsPool(t *testing.T) {
	r := newRig(t)
	other := r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "other", WorkPool: "etl"})
	r.deploymentLimit(1, "")
	r.limit(1)
	ids := r.waiting(3)
	fr, _, err := r.people.CreateFlowRun(t.Context(), other.ID, prefect.NewFlowRun{})
	r.must(err)
	r.must(r.dispatch(fr.ID))
	for i, id := range ids {
		if got := append(r.pending(ids), len(r.pending([]string{fr.ID}))); fmt.Sprint(got) != fmt.Sprint([]int{i, 0}) {
			t.Fatalf("PENDING, by index: %v", got)
		}
		r.complete(id)
	}
	r.launchedOnce(fr.ID)
}
