package launch

import (
	"context"
	"errors"
	"fmt"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Wake launches what Prefect says may start in the work pool now. One caller at a time
// does it for a pool; the others leave a note that it has to be done again.
func (l *Launcher) Wake(ctx context.Context, holder, pool string) error {
	if !l.pools[pool] {
		return nil
	}
	until := l.cfg.Now().Add(l.cfg.Lease)
	granted := false
	_, err := l.ledger.UpdatePool(ctx, pool, func(p flowrun.Pool) (flowrun.Pool, error) {
		p, granted = p.Admit(holder, until, l.cfg.Now())
		return p, nil
	})
	if err != nil || !granted {
		return err
	}
	for {
		if until.Sub(l.cfg.Now()) < 2*l.cfg.CallTimeout {
			// The lease is nearly over: somebody goes on with a new one, which is refused while
			// this one is held.
			if err := l.leave(ctx, pool, func(p flowrun.Pool) flowrun.Pool { return p.Release(holder) }); err != nil {
				return err
			}
			return l.messages.Freed(ctx, pool)
		}
		fctx, cancel := context.WithTimeout(ctx, until.Sub(l.cfg.Now())-l.cfg.CallTimeout)
		failed := l.admitted(fctx, holder, pool)
		cancel()
		left := true
		err := l.leave(ctx, pool, func(p flowrun.Pool) flowrun.Pool {
			if failed != nil { // the redelivered message asks again
				return p.Release(holder)
			}
			p, left = p.Leave(holder)
			return p
		})
		if err := errors.Join(failed, err); err != nil || left {
			return err
		}
	}
}

// leave gives the admission lease back, even where the message's time is over: until it ran
// out nobody else could ask.
func (l *Launcher) leave(ctx context.Context, pool string, give func(flowrun.Pool) flowrun.Pool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.CallTimeout)
	defer cancel()
	_, err := l.ledger.UpdatePool(ctx, pool, func(p flowrun.Pool) (flowrun.Pool, error) { return give(p), nil })
	return err
}

// admitted launches the flow runs that Prefect returns as startable, in its order.
func (l *Launcher) admitted(ctx context.Context, holder, pool string) error {
	const most = 50
	runs, err := l.flowRuns.ScheduledFlowRuns(ctx, pool, l.cfg.Now(), most)
	if err != nil {
		return err
	}
	var failed []error
	for i, fr := range runs {
		// Prefect leaves the state out here, whose time orders launches.
		fr, err := l.flowRuns.FlowRun(ctx, fr.ID)
		switch {
		case err != nil && flowrun.FaultOf(err) == flowrun.NotFound:
			err = nil // deleted
		case err == nil && fr.StateType == flowrun.StateScheduled:
			err = acknowledge(l.claim(ctx, fmt.Sprintf("%s/%d", holder, i), fr))
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed...)
}
