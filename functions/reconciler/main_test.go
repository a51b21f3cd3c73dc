package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/lookahead"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

func TestMain(m *testing.M) {
	// A client library that wire.go imports starts this one and never ends it: one per process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// world is all that a sweep works with.
type world struct {
	mu       sync.Mutex
	flowRuns []prefect.FlowRun
	limited  map[string]bool
	fail     map[string]error         // by work pool, what listing its flow runs fails with
	looking  map[string]error         // by flow run, what looking at it fails with
	takes    map[string]time.Duration // by what is done, how long it takes
	done     []string
	holders  map[string]int
	atOnce   int
	most     int // that were ever done at once
	*ledger.Memory
}

func newWorld() *world {
	return &world{
		limited: map[string]bool{}, fail: map[string]error{}, looking: map[string]error{}, takes: map[string]time.Duration{},
		holders: map[string]int{}, Memory: ledger.NewMemory(),
	}
}

// add adds a flow run; due, if it is not negative, is when it is to start from now.
func (w *world) add(id, pool string, state flowrun.StateType, due time.Duration) {
	w.flowRuns = append(w.flowRuns, prefect.FlowRun{ID: id, WorkPoolName: pool, StateType: state, StateID: "first state of " + id})
	if state == flowrun.StateScheduled {
		at := time.Now().Add(due)
		w.flowRuns[len(w.flowRuns)-1].NextScheduledStartTime = &at
	}
}

func (w *world) note(ctx context.Context, what string) error {
	w.mu.Lock()
	w.done = append(w.done, what)
	w.atOnce++
	w.most = max(w.most, w.atOnce)
	takes := w.takes[strings.Fields(what)[0]]
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.atOnce--
	}()
	select {
	case <-time.After(takes): // of synctest's clock
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// did returns what was done since the last call, in any order.
func (w *world) did() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	done := w.done
	w.done = nil
	slices.Sort(done)
	return done
}

func (w *world) FlowRuns(_ context.Context, f prefect.Filter) ([]prefect.FlowRun, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fail[f.WorkPools[0]]; err != nil {
		return nil, err
	}
	var found []prefect.FlowRun
	for _, fr := range w.flowRuns {
		if slices.Contains(f.WorkPools, fr.WorkPoolName) && slices.Contains(f.StateTypes, fr.StateType) &&
			(f.ScheduledBefore.IsZero() || !fr.NextScheduledStartTime.After(f.ScheduledBefore)) &&
			(f.ScheduledFrom.IsZero() || !fr.NextScheduledStartTime.Before(f.ScheduledFrom)) {
			found = append(found, fr)
		}
	}
	if f.Sort == prefect.SoonestFirst {
		slices.SortStableFunc(found, func(a, b prefect.FlowRun) int { return a.NextScheduledStartTime.Compare(*b.NextScheduledStartTime) })
	}
	return found[min(f.Offset, len(found)):min(f.Offset+prefect.MaxPage, len(found))], nil
}

func (w *world) Limited(_ context.Context, pool string) (bool, error) { return w.limited[pool], nil }

func (w *world) Heartbeat(ctx context.Context, pool, worker string, every time.Duration) error {
	return w.note(ctx, fmt.Sprintf("heartbeat %s %s %s", pool, worker, every))
}

func (w *world) Look(ctx context.Context, holder, id string) error {
	err := w.note(ctx, "look "+id)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holders[holder]++
	return errors.Join(err, w.looking[id])
}

func (w *world) Dispatch(ctx context.Context, id string) error { return w.note(ctx, "dispatch "+id) }

func (w *world) DispatchAt(ctx context.Context, id string, at time.Time, cause string) error {
	return w.note(ctx, fmt.Sprintf("timer %s in %s %s", id, time.Until(at), cause))
}

func (w *world) Wake(ctx context.Context, m message.Wake) error {
	return w.note(ctx, "wake "+m.WorkPool+m.DeploymentID)
}

// sweeper sweeps the pools. Heartbeats, where they are not the subject, were sent just now.
func (w *world) sweeper(t *testing.T, heartbeats bool, pools ...string) *Reconciler {
	t.Helper()
	if !heartbeats {
		for _, pool := range pools {
			if _, err := w.UpdatePool(t.Context(), pool, func(p flowrun.Pool) (flowrun.Pool, error) {
				p.HeartbeatAt = time.Now()
				return p, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return newReconciler(w, w, w, lookahead.New(w, w, w, 150*time.Second, time.Now), options{
		pools: pools, worker: "pushpool", lookAtMost: 5 * time.Minute,
		unreportedAfter: 30 * time.Second, maxLooks: 300, now: time.Now,
	})
}

func swept(t *testing.T, r *Reconciler) report {
	t.Helper()
	rep, err := r.sweep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rep
}
