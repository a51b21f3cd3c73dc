package launch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// atOnce bounds the flow runs that one wake launches at the same time. They begin in order.
const atOnce = 8

// Wake launches what may start in the work pool and what waits for a slot of the deployment.
// For each of them one caller at a time does it; the others leave a note that it has to be done again.
func (l *Launcher) Wake(ctx context.Context, holder string, w message.Wake) error {
	var errs []error
	if w.DeploymentID != "" {
		errs = append(errs, l.wakeDeployment(ctx, holder, w.DeploymentID))
	}
	if l.pools[w.WorkPool] {
		wake := l.wakePool
		if w.Ready {
			wake = l.showReady
		}
		errs = append(errs, wake(ctx, holder, w.WorkPool))
	}
	return errors.Join(errs...)
}

// showReady asks Prefect what is scheduled in the pool, by which it sees that it is served, and
// wakes the pool where something is: there is no other call to Prefect where nothing is, or where
// that is about to be launched.
func (l *Launcher) showReady(ctx context.Context, holder, pool string) error {
	runs, err := l.queue.ScheduledFlowRuns(ctx, pool, l.cfg.Now(), 1)
	if err != nil || len(runs) == 0 || prefect.Announced(runs[0], l.cfg.Now()) {
		return err
	}
	return l.wakePool(ctx, holder, pool)
}

// gate is where somebody waits for a slot.
type gate struct {
	workPool, deploymentID string
	update                 func(ctx context.Context, change func(flowrun.Gate) flowrun.Gate) error
}

// alone calls pass as the only one at the gate, again and again as long as somebody comes
// meanwhile. pass tells whether flow runs may still be waiting.
func (l *Launcher) alone(ctx context.Context, holder string, g gate, pass func(context.Context) (waits bool, err error)) error {
	until := l.cfg.Now().Add(l.cfg.Lease)
	granted := false
	err := g.update(ctx, func(g flowrun.Gate) flowrun.Gate {
		g, granted = g.Admit(holder, until, l.cfg.Now())
		// Before Prefect is asked: who ends a flow run from now on knows of those that wait.
		g.Waits = true
		return g
	})
	if err != nil || !granted {
		return err
	}
	for {
		if until.Sub(l.cfg.Now()) < 2*l.cfg.CallTimeout {
			// The lease is nearly over: somebody goes on with a new one, which is refused while
			// this one is held.
			if err := l.leave(ctx, g, func(g flowrun.Gate) flowrun.Gate { return g.Release(holder) }); err != nil {
				return err
			}
			return l.messages.Freed(ctx, g.workPool, g.deploymentID)
		}
		fctx, cancel := context.WithTimeout(ctx, until.Sub(l.cfg.Now())-l.cfg.CallTimeout)
		waits, failed := pass(fctx)
		cancel()
		left := true
		err := l.leave(ctx, g, func(g flowrun.Gate) flowrun.Gate {
			if failed != nil { // the redelivered message asks again
				return g.Release(holder)
			}
			if g, left = g.Leave(holder); left {
				g.Waits = waits
			}
			return g
		})
		if err := errors.Join(failed, err); err != nil || left {
			return err
		}
	}
}

// leave gives the admission lease back, even where the message's time is over: until it ran
// out nobody else could ask.
func (l *Launcher) leave(ctx context.Context, g gate, give func(flowrun.Gate) flowrun.Gate) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.CallTimeout)
	defer cancel()
	return g.update(ctx, give)
}

// wakePool launches what Prefect says may start in the work pool now.
func (l *Launcher) wakePool(ctx context.Context, holder, pool string) error {
	g := gate{workPool: pool, update: func(ctx context.Context, change func(flowrun.Gate) flowrun.Gate) error {
		_, err := l.ledger.UpdatePool(ctx, pool, func(p flowrun.Pool) (flowrun.Pool, error) {
			p.Gate = change(p.Gate)
			return p, nil
		})
		return err
	}}
	return l.alone(ctx, holder, g, func(ctx context.Context) (bool, error) {
		if err := l.admitted(ctx, holder, pool); err != nil {
			return true, err
		}
		return l.queue.Limited(ctx, pool)
	})
}

// admitted launches the flow runs that Prefect returns as startable, in its order. Those whose
// deployment has no slot left take the place of others there, which are looked for then.
func (l *Launcher) admitted(ctx context.Context, holder, pool string) error {
	const most = 50
	runs, err := l.queue.ScheduledFlowRuns(ctx, pool, l.cfg.Now(), most)
	if err != nil {
		return err
	}
	deployments, err := l.deployments(ctx, runs)
	if err != nil {
		return err
	}
	var limited []string
	for id, d := range deployments {
		if d.Limited() {
			limited = append(limited, id)
		}
	}
	launch := func(kind string) func(int, prefect.FlowRun) error {
		return func(i int, fr prefect.FlowRun) error {
			err := l.next(ctx, fmt.Sprintf("%s/%s%d", holder, kind, i), fr, deployments[fr.DeploymentID])
			if errors.Is(err, errInLine) { // limited since a moment
				return l.wakeDeployment(ctx, holder, fr.DeploymentID)
			}
			return err
		}
	}
	isLimited := func(fr prefect.FlowRun) bool { return slices.Contains(limited, fr.DeploymentID) }
	err = each(ctx, slices.DeleteFunc(runs, isLimited), launch("p"))
	if len(limited) == 0 {
		return err
	}
	slices.Sort(limited)
	for _, id := range limited {
		err = errors.Join(err, l.wakeDeployment(ctx, holder, id))
	}
	others, oerr := l.others(ctx, pool, isLimited)
	return errors.Join(err, oerr, each(ctx, others, launch("o")))
}

// deployments reads the deployments of the flow runs; one that is gone is left out.
func (l *Launcher) deployments(ctx context.Context, runs []prefect.FlowRun) (map[string]*prefect.Deployment, error) {
	found := map[string]*prefect.Deployment{"": nil}
	for _, fr := range runs {
		if _, ok := found[fr.DeploymentID]; ok {
			continue
		}
		d, err := l.catalog.Deployment(ctx, fr.DeploymentID)
		switch {
		case err == nil:
			found[fr.DeploymentID] = &d
		case flowrun.FaultOf(err) != flowrun.NotFound:
			return nil, err
		}
	}
	delete(found, "")
	return found, nil
}

// others returns the flow runs that are due, do not wait for a slot of their deployment, and
// for which the pool has slots. It goes through the oldest maxBehind.
func (l *Launcher) others(ctx context.Context, pool string, wait func(prefect.FlowRun) bool) ([]prefect.FlowRun, error) {
	const maxBehind = 1000
	var due []prefect.FlowRun
	f := prefect.Filter{
		WorkPools: []string{pool}, StateTypes: []prefect.StateType{flowrun.StateScheduled},
		ScheduledBefore: l.cfg.Now(), Sort: prefect.OldestFirst,
	}
	looked := 0
	for fr, err := range prefect.EachFlowRun(ctx, l.queue.FlowRuns, f) {
		if err != nil {
			return nil, err
		}
		if !wait(fr) && fr.RetryType() != prefect.RetryInProcess {
			due = append(due, fr)
		}
		if looked++; looked == maxBehind {
			break
		}
	}
	if len(due) == 0 {
		return nil, nil
	}
	free, err := l.queue.FreeSlots(ctx, pool)
	return free.Take(due), err
}

// next claims a flow run that was listed. Where Prefect left out its state, whose time orders
// launches, the flow run is read.
func (l *Launcher) next(ctx context.Context, holder string, fr prefect.FlowRun, turn *prefect.Deployment) error {
	if fr.State == nil {
		var err error
		fr, err = l.flowRuns.FlowRun(ctx, fr.ID)
		switch {
		case err != nil && flowrun.FaultOf(err) == flowrun.NotFound:
			return nil // deleted
		case err != nil || fr.StateType != flowrun.StateScheduled:
			return err
		}
	}
	return acknowledge(l.claim(ctx, holder, fr, turn, turn != nil))
}

// each calls do for the flow runs, in order and some at a time, and returns all that failed.
func each(ctx context.Context, runs []prefect.FlowRun, do func(i int, fr prefect.FlowRun) error) error {
	failed := make([]error, len(runs))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, fr := range runs {
		if ctx.Err() != nil {
			failed[i] = ctx.Err()
			break
		}
		g.Go(func() error {
			failed[i] = do(i, fr)
			return nil // one failure does not end the others
		})
	}
	_ = g.Wait()
	return errors.Join(failed...)
}

// isDue reports whether the flow run may start at the time given, as far as its own time goes.
func isDue(fr prefect.FlowRun, at time.Time) bool { return !fr.Due().After(at) }
