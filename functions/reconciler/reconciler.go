// Package reconciler finds each minute what no event told, and repairs it.
package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

const (
	// sweepTimeout is below the Scheduler's interval, so that sweeps do not pile up.
	sweepTimeout = 55 * time.Second
	// heartbeatEvery tells Prefect to hold the pool for served for three days; one is sent each half of it.
	heartbeatEvery = 24 * time.Hour
	// maxLooks bounds the looks at flow runs in one sweep; the rest is looked at in the next.
	maxLooks = 500
	// firstLook is when a flow run is looked at again after the first time; the interval doubles.
	firstLook = 10 * time.Second
)

// Prefect is what the sweep asks of Prefect.
type Prefect interface {
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
	Limited(ctx context.Context, pool string) (bool, error)
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

// Messages sends what the sweep finds to the dispatcher.
type Messages interface {
	Dispatch(ctx context.Context, flowRunID string) error
	DispatchAt(ctx context.Context, flowRunID string, at time.Time, cause string) error
	Wake(ctx context.Context, workPool string) error
}

type options struct {
	pools                                         []string
	worker                                        string
	lookAhead, lease, lookAtMost, unreportedAfter time.Duration
	now                                           func() time.Time
}

// Reconciler sweeps the work pools.
type Reconciler struct {
	prefect  Prefect
	ledger   Ledger
	settler  Settler
	messages Messages
	log      *slog.Logger
	options

	mu sync.Mutex
	// looks is when each flow run under way is looked at next. An instance that starts anew
	// looks at all of them once: that costs calls, no more.
	looks map[string]look
}

// look is about one state of a flow run: another state is looked at anew.
type look struct {
	stateID string
	next    time.Time
	after   time.Duration
}

func newReconciler(p Prefect, l Ledger, s Settler, m Messages, log *slog.Logger, o options) *Reconciler {
	return &Reconciler{prefect: p, ledger: l, settler: s, messages: m, log: log, options: o, looks: map[string]look{}}
}

// report counts what a sweep did, by kind.
type report struct{ Dispatched, Timers, Wakes, Looks, Busy int }

func (r report) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("dispatched", r.Dispatched), slog.Int("timers", r.Timers), slog.Int("wakes", r.Wakes),
		slog.Int("looks", r.Looks), slog.Int("busy", r.Busy))
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

// sweep goes through all pools. What fails for one does not keep the others from being swept.
func (r *Reconciler) sweep(ctx context.Context) (report, error) {
	var rep report
	var errs []error
	for _, pool := range r.pools {
		holder := "reconciler/" + uuid.NewString()
		granted := false
		p, err := r.ledger.UpdatePool(ctx, pool, func(p flowrun.Pool) (flowrun.Pool, error) {
			p, granted = p.Sweep(holder, r.now().Add(sweepTimeout), r.now())
			return p, nil
		})
		if err != nil || !granted {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, r.pool(ctx, holder, p, &rep))
		_, err = r.ledger.UpdatePool(context.WithoutCancel(ctx), pool, func(p flowrun.Pool) (flowrun.Pool, error) {
			return p.Swept(holder), nil
		})
		errs = append(errs, err)
	}
	errs = append(errs, r.unreported(ctx, &rep))
	return rep, errors.Join(errs...)
}

// pool sweeps one pool.
func (r *Reconciler) pool(ctx context.Context, holder string, p flowrun.Pool, rep *report) error {
	return errors.Join(
		r.heartbeat(ctx, p),
		r.scheduled(ctx, p.Name, rep),
		r.underWay(ctx, holder, p.Name, rep),
	)
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

// scheduled has what is due dispatched now, and what is due soon by a timer. In a limited
// pool one message does for all that wait.
func (r *Reconciler) scheduled(ctx context.Context, pool string, rep *report) error {
	limited, err := r.prefect.Limited(ctx, pool)
	if err != nil {
		return err
	}
	now := r.now()
	waiting, err := r.prefect.FlowRuns(ctx, prefect.Filter{
		WorkPools: []string{pool}, StateTypes: []prefect.StateType{flowrun.StateScheduled},
		ScheduledBefore: now.Add(r.lookAhead), Sort: prefect.SoonestFirst,
	})
	if err != nil {
		return err
	}
	var errs []error
	due := 0
	for _, fr := range waiting {
		at := now
		if fr.NextScheduledStartTime != nil {
			at = *fr.NextScheduledStartTime
		}
		switch {
		case at.After(now):
			errs = append(errs, r.messages.DispatchAt(ctx, fr.ID, at, "due"))
			rep.Timers++
		case limited:
			due++
		default:
			errs = append(errs, r.messages.Dispatch(ctx, fr.ID))
			rep.Dispatched++
		}
	}
	if due > 0 {
		errs = append(errs, r.messages.Wake(ctx, pool))
		rep.Wakes++
	}
	return errors.Join(errs...)
}

// underWay looks at the flow runs that are PENDING, RUNNING or CANCELLING. Whether they are
// ours the settler finds out.
func (r *Reconciler) underWay(ctx context.Context, holder, pool string, rep *report) error {
	states := []prefect.StateType{flowrun.StatePending, flowrun.StateRunning, flowrun.StateCancelling}
	seen := map[string]bool{}
	var errs []error
	for offset := 0; ; offset += prefect.MaxPage {
		page, err := r.prefect.FlowRuns(ctx, prefect.Filter{
			WorkPools: []string{pool}, StateTypes: states, Sort: prefect.OldestFirst, Offset: offset,
		})
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, fr := range page {
			seen[fr.ID] = true
			if rep.Looks >= maxLooks || !r.take(fr) {
				continue
			}
			rep.Looks++
			errs = append(errs, r.look(ctx, fmt.Sprintf("%s/%d", holder, rep.Looks), fr.ID, rep))
		}
		if len(page) < prefect.MaxPage || ctx.Err() != nil {
			break
		}
	}
	r.forget(seen)
	return errors.Join(errs...)
}

// take reports whether it is time to look at the flow run, and sets the next time.
func (r *Reconciler) take(fr prefect.FlowRun) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	l, known := r.looks[fr.ID]
	if !known || l.stateID != fr.StateID {
		l = look{stateID: fr.StateID, after: firstLook}
	} else if now.Before(l.next) {
		return false
	}
	l.next = now.Add(l.after)
	l.after = min(2*l.after, r.lookAtMost)
	r.looks[fr.ID] = l
	return true
}

// forget drops the flow runs that are not under way any more; those of other pools are kept
// until their time has long passed.
func (r *Reconciler) forget(seen map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, l := range r.looks {
		if !seen[id] && r.now().After(l.next.Add(r.lookAtMost)) {
			delete(r.looks, id)
		}
	}
}

// unreported has verdicts told that Prefect was not told.
func (r *Reconciler) unreported(ctx context.Context, rep *report) error {
	records, err := r.ledger.Unreported(ctx, r.now().Add(-r.unreportedAfter), maxLooks)
	errs := []error{err}
	for _, rec := range records {
		rep.Looks++
		errs = append(errs, r.look(ctx, "reconciler/"+uuid.NewString(), rec.FlowRunID, rep))
	}
	return errors.Join(errs...)
}

// look has the settler look at a flow run. That somebody else is at it, or that its
// execution is being stopped, is as it should be.
func (r *Reconciler) look(ctx context.Context, holder, flowRunID string, rep *report) error {
	err := r.settler.Look(ctx, holder, flowRunID)
	if errors.Is(err, flowrun.ErrBusy) || errors.Is(err, settle.ErrWait) {
		rep.Busy++
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at flow run %s: %w", flowRunID, err)
	}
	return nil
}
