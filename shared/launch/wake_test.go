package launch_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// limit gives the work pool a concurrency limit.
func (r *rig) limit(n int) {
	r.t.Helper()
	r.patch("/work_pools/etl", map[string]any{"concurrency_limit": n})
}

// pending returns which of the flow runs, by index, are PENDING.
func (r *rig) pending(ids []string) (all []int) {
	r.t.Helper()
	for i, id := range ids {
		if r.read(id).StateType == flowrun.StatePending {
			all = append(all, i)
		}
	}
	return all
}

// TestALimitedPoolLaunchesWhatPrefectReturns holds that limit and priority are Prefect's, and
// that each slot that comes free takes the next.
func TestALimitedPoolLaunchesWhatPrefectReturns(t *testing.T) {
	r := newRig(t)
	r.limit(1)
	var ids []string
	for i := range 5 {
		n := prefect.NewFlowRun{Name: fmt.Sprint(i)}
		if i >= 3 {
			n.WorkQueue = "urgent"
		}
		ids = append(ids, r.flowRun(n).ID)
	}
	r.patch("/work_pools/etl/queues/urgent", map[string]any{"priority": 1})
	for _, id := range ids {
		r.must(r.dispatch(id))
	}
	if diff := cmp.Diff([]int{3}, r.pending(ids)); diff != "" {
		t.Fatalf("launched, by index: %s", diff)
	}
	for _, next := range []int{4, 0, 1, 2} {
		last := r.pending(ids)[0]
		r.set(ids[last], flowrun.StateRunning, flowrun.StateCompleted)
		r.messages.take()
		r.must(r.ended(ids[last], flowrun.Outcome{Kind: flowrun.Succeeded}))
		if diff := cmp.Diff([]sent{{Freed: "etl"}}, r.messages.take()); diff != "" {
			t.Error(diff)
		}
		r.must(r.wake())
		if diff := cmp.Diff([]int{next}, r.pending(ids)); diff != "" {
			t.Fatalf("launched after %d, by index: %s", last, diff)
		}
	}
	for _, id := range ids {
		if got := len(r.executions(id)); got != 1 {
			t.Errorf("%d executions of %s, want one", got, id)
		}
	}
}

func TestAPausedPoolLaunchesNothing(t *testing.T) {
	r := newRig(t)
	r.patch("/work_pools/etl", map[string]any{"is_paused": true})
	fr := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(fr.ID))
	r.must(r.wake())
	if got := r.state(fr.ID); got != "SCHEDULED/Scheduled" || len(r.emulator.Executions()) != 0 {
		t.Errorf("%s with %d executions, want it left alone", got, len(r.emulator.Executions()))
	}
	r.must(r.launcher.Wake(t.Context(), r.holder(), message.Wake{WorkPool: "another"}))
}

// pool reads the work pool's state in the ledger.
func (r *rig) pool() flowrun.Pool {
	r.t.Helper()
	p, err := r.ledger.UpdatePool(r.t.Context(), "etl", func(p flowrun.Pool) (flowrun.Pool, error) { return p, nil })
	r.must(err)
	return p
}

// asking does something whenever Prefect was asked what may start.
type asking struct {
	*prefect.Client
	asked int
	do    func(asked int) error
}

func (a *asking) ScheduledFlowRuns(ctx context.Context, pool string, before time.Time, limit int) ([]prefect.FlowRun, error) {
	runs, err := a.Client.ScheduledFlowRuns(ctx, pool, before, limit)
	a.asked++
	return runs, errors.Join(err, a.do(a.asked))
}

// TestOneHandlerAsksForAllThatComeMeanwhile holds that whoever finds the pool taken leaves at
// once, and that the holder asks again for it, whatever becomes of its lease.
func TestOneHandlerAsksForAllThatComeMeanwhile(t *testing.T) {
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		do   func(r *rig, asked int) error
		want error
		sent []sent
		asks int
	}{
		"nobody came":                  {func(*rig, int) error { return nil }, nil, nil, 1},
		"somebody came: asked again":   {func(r *rig, n int) error { return r.come(n <= 2) }, nil, nil, 3},
		"the lease is nearly over":     {func(r *rig, n int) error { r.later(lease - callTimeout); return r.come(true) }, nil, []sent{{Freed: "etl"}}, 1},
		"asking failed":                {func(*rig, int) error { return broken }, broken, nil, 1},
		"asking failed, somebody came": {func(r *rig, n int) error { return errors.Join(broken, r.come(true)) }, broken, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.limit(1)
			a := &asking{Client: r.prefect, do: func(n int) error { return tt.do(r, n) }}
			r.flowRuns = a
			if err := r.wake(); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if a.asked != tt.asks {
				t.Errorf("asked %d times, want %d", a.asked, tt.asks)
			}
			if diff := cmp.Diff(tt.sent, r.messages.take()); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(flowrun.Pool{Name: "etl", Gate: flowrun.Gate{Waits: true}}, r.pool()); diff != "" {
				t.Errorf("the admission was not given back: %s", diff)
			}
		})
	}
}

// TestToShowAPoolReadyPrefectIsAskedOnce holds that nothing else is where nothing waits, and that
// what waits is launched, unless its event is about to do that.
func TestToShowAPoolReadyPrefectIsAskedOnce(t *testing.T) {
	r := newRig(t)
	a := &asking{Client: r.prefect, do: func(int) error { return nil }}
	r.flowRuns = a
	before := r.calls.Load()
	ready := func() error {
		return r.launcher.Wake(t.Context(), r.holder(), message.Wake{WorkPool: "etl", Ready: true})
	}
	r.must(ready())
	if calls := r.calls.Load() - before; calls != 1 || a.asked != 1 || r.pool().Gate != (flowrun.Gate{}) {
		t.Errorf("%d calls, asked %d times, and the ledger has %+v", calls, a.asked, r.pool().Gate)
	}
	fr := r.flowRun(prefect.NewFlowRun{})
	before = r.calls.Load()
	r.must(ready())
	if calls := r.calls.Load() - before; calls != 1 {
		t.Errorf("%d calls about a flow run that was created a moment ago, want the one that shows the pool ready", calls)
	}
	r.later(3 * time.Second)
	r.must(ready())
	if got := r.pending([]string{fr.ID}); len(got) != 1 {
		t.Error("what waited was not launched")
	}
}

// come wakes the pool as another handler does while the first holds it.
func (r *rig) come(really bool) error {
	if !really {
		return nil
	}
	_, err := r.ledger.UpdatePool(r.t.Context(), "etl", func(p flowrun.Pool) (flowrun.Pool, error) {
		gate, granted := p.Admit("other", r.now().Add(lease), r.now())
		if p.Gate = gate; granted {
			return p, errors.New("the pool was not held")
		}
		return p, nil
	})
	return err
}

// TestAFlowRunThatFailsDoesNotKeepTheOthers holds that of what may start each is tried, and the
// message is delivered again for those that failed.
func TestAFlowRunThatFailsDoesNotKeepTheOthers(t *testing.T) {
	r := newRig(t)
	r.limit(10)
	ids := []string{r.flowRun(prefect.NewFlowRun{}).ID, r.flowRun(prefect.NewFlowRun{}).ID, r.flowRun(prefect.NewFlowRun{}).ID}
	slices.SortFunc(ids, func(a, b string) int {
		return r.read(a).NextScheduledStartTime.Compare(*r.read(b).NextScheduledStartTime)
	})
	r.strikePrefect(func(_ http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		if strings.HasSuffix(req.URL.Path, ids[0]+"/set_state") {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	if err := r.wake(); err == nil {
		t.Error("the message was acknowledged")
	}
	if diff := cmp.Diff([]int{1, 2}, r.pending(ids)); diff != "" {
		t.Errorf("launched, by index: %s", diff)
	}
	r.strikePrefect(nil)
	r.later(lease)
	r.must(r.wake())
	if diff := cmp.Diff([]int{0, 1, 2}, r.pending(ids)); diff != "" {
		t.Errorf("launched, by index: %s", diff)
	}
}
