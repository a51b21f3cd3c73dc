// Package reconciler finds each minute what no event told, and repairs it.
package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/lookahead"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

const (
	// sweepTimeout is below the Scheduler's interval, so that sweeps do not pile up.
	sweepTimeout = 55 * time.Second
	// leaveTimeout bounds giving back a pool's lease, after the sweep's own time may be over.
	leaveTimeout = 4 * time.Second
	// heartbeatEvery tells Prefect to hold the pool for served for three days; one is sent each half of it.
	heartbeatEvery = 24 * time.Hour
	// firstLook is when a flow run is looked at again after the first time; the interval doubles.
	firstLook = 10 * time.Second
	// atOnce bounds what is done at the same time for one pool: one after the other,
	// hundreds of calls would not fit a sweep.
	atOnce = 16
	// maxErrors bounds the errors that the sweep's line names.
	maxErrors = 10
)

// Prefect is what the sweep asks of Prefect.
type Prefect interface {
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
	Heartbeat(ctx context.Context, pool, workerName string, every time.Duration) error
}

// Ledger is what the sweep asks of the ledger.
type Ledger interface {
	Unreported(ctx context.Context, before time.Time, limit int) ([]flowrun.Record, error)
	UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error)
}

// Settler settles flow runs.
type Settler interface {
	Look(ctx context.Context, holder, flowRunID string) error
}

// Ahead has what is due dispatched.
type Ahead interface {
	Look(ctx context.Context, pool string, start func(send func() error)) (lookahead.Done, error)
}

type options struct {
	pools                       []string
	worker                      string
	lookAtMost, unreportedAfter time.Duration
	// maxLooks bounds the looks at flow runs of one pool in one sweep; the rest is looked at in the next.
	maxLooks int
	now      func() time.Time
}

// Reconciler sweeps the work pools.
type Reconciler struct {
	prefect Prefect
	ledger  Ledger
	settler Settler
	ahead   Ahead
	options

	mu sync.Mutex
	// looks is when each flow run under way is looked at next, by pool and flow run. An
	// instance that starts anew looks at all of them once: that costs calls, no more.
	looks map[string]map[string]look
}

// look is about one state of a flow run: another state is looked at anew.
type look struct {
	stateID string
	next    time.Time
	after   time.Duration
}

func newReconciler(p Prefect, l Ledger, s Settler, a Ahead, o options) *Reconciler {
	return &Reconciler{prefect: p, ledger: l, settler: s, ahead: a, options: o, looks: map[string]map[string]look{}}
}

// endpoint answers Cloud Scheduler: 204, or 500 with the error, after which it calls again in a minute.
func endpoint(sweep func(context.Context) (report, error), log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "method "+req.Method+": use POST", http.StatusMethodNotAllowed)
			return
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(req.Context(), sweepTimeout)
		defer cancel()
		rep, err := sweep(ctx)
		attrs := []any{"function", "reconciler", "sweep", rep, "took", time.Since(start).Seconds()}
		if err != nil {
			log.ErrorContext(ctx, "the sweep was not complete; the next one starts over", append(attrs, "error", err)...)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		log.InfoContext(ctx, "swept", attrs...)
		w.WriteHeader(http.StatusNoContent)
	})
}

// sweep goes through all pools, and what the ledger says is unreported, all at the same
// time: what fails or hangs for one does not keep the others from being swept.
func (r *Reconciler) sweep(ctx context.Context) (report, error) {
	var mu sync.Mutex
	var total report
	var errs []error
	add := func(w *work) {
		rep, err := w.wait()
		mu.Lock()
		defer mu.Unlock()
		total, errs = total.plus(rep), append(errs, err)
	}
	var parts sync.WaitGroup
	for _, pool := range r.pools {
		parts.Go(func() { add(r.pool(ctx, pool)) })
	}
	parts.Go(func() { add(r.unreported(ctx)) })
	parts.Wait()
	return total, errors.Join(errs...)
}

// pool sweeps one pool, unless another sweep is at it.
func (r *Reconciler) pool(ctx context.Context, pool string) *work {
	w := newWork()
	holder := "reconciler/" + uuid.NewString()
	granted := false
	p, err := r.ledger.UpdatePool(ctx, pool, func(p flowrun.Pool) (flowrun.Pool, error) {
		p, granted = p.Sweep(holder, r.now().Add(sweepTimeout), r.now())
		return p, nil
	})
	if err != nil || !granted {
		w.failed(err)
		return w
	}
	w.start(func() error { return r.heartbeat(ctx, p) })
	w.failed(r.scheduled(ctx, pool, w))
	w.failed(r.underWay(ctx, holder, pool, w))
	w.finish()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	_, err = r.ledger.UpdatePool(ctx, pool, func(p flowrun.Pool) (flowrun.Pool, error) {
		return p.Swept(holder), nil
	})
	w.failed(err)
	return w
}

// heartbeat keeps the pool READY in Prefect.
func (r *Reconciler) heartbeat(ctx context.Context, p flowrun.Pool) error {
	now := r.now()
	if now.Before(p.HeartbeatAt.Add(heartbeatEvery / 2)) {
		return nil
	}
	if err := r.prefect.Heartbeat(ctx, p.Name, r.worker, heartbeatEvery); err != nil {
		return err
	}
	_, err := r.ledger.UpdatePool(ctx, p.Name, func(p flowrun.Pool) (flowrun.Pool, error) {
		p.HeartbeatAt = now
		return p, nil
	})
	return err
}

// scheduled has what is due dispatched.
func (r *Reconciler) scheduled(ctx context.Context, pool string, w *work) error {
	done, err := r.ahead.Look(ctx, pool, w.start)
	w.Dispatched, w.Timers, w.Wakes = done.Dispatched, done.Timers, done.Wakes
	return err
}

// underWay looks at the flow runs that are PENDING, RUNNING, CANCELLING or PAUSED. Whether
// they are ours the settler finds out.
func (r *Reconciler) underWay(ctx context.Context, holder, pool string, w *work) error {
	found := map[string]string{} // ids of states by flow run
	err := r.list(ctx, prefect.Filter{
		WorkPools: []string{pool}, Sort: prefect.OldestFirst,
		StateTypes: []prefect.StateType{flowrun.StatePending, flowrun.StateRunning, flowrun.StateCancelling, flowrun.StatePaused},
	}, func(fr prefect.FlowRun) {
		// The container of a suspended flow run has left on purpose; resumed, it is SCHEDULED.
		if fr.State == nil || !fr.State.Details.PauseReschedule {
			found[fr.ID] = fr.StateID
		}
	})
	if err != nil {
		return err
	}
	for i, id := range r.take(pool, found) {
		w.Looks++
		w.start(func() error {
			err := r.settler.Look(ctx, fmt.Sprintf("%s/%d", holder, i), id)
			if err != nil {
				r.forget(pool, id)
			}
			return w.looked(id, err)
		})
	}
	return nil
}

// list calls each for every flow run of the filter once.
func (r *Reconciler) list(ctx context.Context, f prefect.Filter, each func(prefect.FlowRun)) error {
	seen := map[string]bool{} // pages overlap when flow runs change between them
	for ; ; f.Offset += prefect.MaxPage {
		page, err := r.prefect.FlowRuns(ctx, f)
		if err != nil {
			return err
		}
		for _, fr := range page {
			if !seen[fr.ID] {
				seen[fr.ID] = true
				each(fr)
			}
		}
		if len(page) < prefect.MaxPage {
			break
		}
	}
	return nil
}

// take returns the flow runs that it is time to look at, the longest overdue first, and
// sets their next time. found has the pool's flow runs under way; the others are forgotten.
func (r *Reconciler) take(pool string, found map[string]string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	looks := map[string]look{}
	for id, stateID := range found {
		l, known := r.looks[pool][id]
		if !known || l.stateID != stateID {
			l = look{stateID: stateID, after: firstLook}
		}
		looks[id] = l
	}
	r.looks[pool] = looks
	due := slices.DeleteFunc(slices.Sorted(maps.Keys(looks)), func(id string) bool { return now.Before(looks[id].next) })
	slices.SortStableFunc(due, func(a, b string) int { return looks[a].next.Compare(looks[b].next) })
	due = due[:min(len(due), r.maxLooks)]
	for _, id := range due {
		l := looks[id]
		l.next, l.after = now.Add(l.after), min(2*l.after, r.lookAtMost)
		looks[id] = l
	}
	return due
}

// forget has the next sweep look at the flow run again: this look came to nothing.
func (r *Reconciler) forget(pool, flowRunID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.looks[pool], flowRunID)
}

// unreported has verdicts told that Prefect was not told.
func (r *Reconciler) unreported(ctx context.Context) *work {
	w := newWork()
	records, err := r.ledger.Unreported(ctx, r.now().Add(-r.unreportedAfter), r.maxLooks)
	w.failed(err)
	for _, rec := range records {
		w.Looks++
		w.start(func() error {
			return w.looked(rec.FlowRunID, r.settler.Look(ctx, "reconciler/"+uuid.NewString(), rec.FlowRunID))
		})
	}
	return w
}

// report counts what a sweep did, by kind.
type report struct{ Dispatched, Timers, Wakes, Looks, Busy int }

func (r report) plus(o report) report {
	return report{r.Dispatched + o.Dispatched, r.Timers + o.Timers, r.Wakes + o.Wakes, r.Looks + o.Looks, r.Busy + o.Busy}
}

func (r report) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("dispatched", r.Dispatched), slog.Int("timers", r.Timers), slog.Int("wakes", r.Wakes),
		slog.Int("looks", r.Looks), slog.Int("busy", r.Busy))
}

// work is one part of a sweep. Its calls run at the same time; who starts them counts them.
type work struct {
	report
	group errgroup.Group
	busy  atomic.Int32

	mu   sync.Mutex
	errs []error
}

func newWork() *work {
	w := &work{}
	w.group.SetLimit(atOnce)
	return w
}

// start runs a call beside the others. It waits while too many are under way.
func (w *work) start(call func() error) {
	w.group.Go(func() error {
		w.failed(call())
		return nil // one failure does not end the others
	})
}

func (w *work) failed(err error) {
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// looked words the end of a look. That somebody else is at the flow run, or that its
// execution is being stopped, is as it should be.
func (w *work) looked(flowRunID string, err error) error {
	switch {
	case errors.Is(err, flowrun.ErrBusy), errors.Is(err, settle.ErrWait):
		w.busy.Add(1)
		return nil
	case err != nil:
		return fmt.Errorf("look at flow run %s: %w", flowRunID, err)
	}
	return nil
}

// finish waits for the calls under way.
func (w *work) finish() { _ = w.group.Wait() }

// wait returns what was done and what failed, once all of it has ended.
func (w *work) wait() (report, error) {
	w.finish()
	w.Busy = int(w.busy.Load())
	if n := len(w.errs); n > maxErrors {
		w.errs = append(w.errs[:maxErrors], fmt.Errorf("and %d more errors", n-maxErrors))
	}
	return w.report, errors.Join(w.errs...)
}
