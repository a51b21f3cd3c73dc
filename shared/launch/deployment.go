package launch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

const (
	// slotWait is longer than Prefect sets such a flow run's time ahead (30 s).
	slotWait = 35 * time.Second
	// vainFor is how long after a proposal in vain whoever was refused lately is left alone.
	vainFor = 30 * time.Second
)

// errInLine: the flow run waits for a slot of its deployment; whose turn it is, wakeDeployment decides.
var errInLine = errors.New("the flow run waits for a slot of its deployment")

// wakeDeployment launches as many flow runs of the deployment as it has slots left, by the
// priority of their queues and the oldest first. The limit is Prefect's to enforce; what is
// read here of it spares those who wait a proposal, which would write a state and an event
// for each. A flow run that nobody proposed yet is proposed all the same: Prefect then shows
// what it waits for, or cancels it, as the deployment's collision strategy says.
func (l *Launcher) wakeDeployment(ctx context.Context, holder, id string) error {
	var vain time.Time
	g := gate{deploymentID: id, update: func(ctx context.Context, change func(flowrun.Gate) flowrun.Gate) error {
		_, err := l.ledger.UpdateDeployment(ctx, id, func(d flowrun.Deployment) (flowrun.Deployment, error) {
			d.Gate = change(d.Gate)
			if vain.Before(d.RefusedAt) {
				vain = d.RefusedAt
			}
			d.RefusedAt = vain
			return d, nil
		})
		return err
	}}
	pass := 0
	return l.alone(ctx, holder, g, func(ctx context.Context) (bool, error) {
		pass++
		return l.nextOf(ctx, fmt.Sprintf("%s/%s/%d", holder, id, pass), id, &vain)
	})
}

// nextOf is one pass of wakeDeployment; waits tells whether flow runs are left waiting. vain is
// the deployment's RefusedAt.
func (l *Launcher) nextOf(ctx context.Context, holder, id string, vain *time.Time) (waits bool, err error) {
	d, err := l.catalog.Deployment(ctx, id)
	if err != nil && flowrun.FaultOf(err) == flowrun.NotFound {
		return false, l.cancelWaiting(ctx, holder, id)
	}
	if err != nil || !l.pools[d.WorkPoolName] {
		return false, err
	}
	limited, err := l.queue.Limited(ctx, d.WorkPoolName)
	if err != nil {
		return true, err
	}
	runs, err := l.waiting(ctx, []string{d.WorkPoolName}, id)
	if err != nil || len(runs) == 0 {
		return err != nil, err
	}
	slots, err := l.queue.FreeSlots(ctx, d.WorkPoolName)
	if err != nil {
		return true, err
	}
	var refused, inVain atomic.Bool
	propose := func(kind string, of *atomic.Bool) func(int, prefect.FlowRun) error {
		return func(i int, fr prefect.FlowRun) error {
			err := l.next(ctx, fmt.Sprintf("%s/%s%d", holder, kind, i), fr, &d)
			if errors.Is(err, errInLine) {
				of.Store(true)
				return nil
			}
			return err
		}
	}
	now := l.cfg.Now()
	first := slots.Take(slices.DeleteFunc(slices.Clone(runs), func(fr prefect.FlowRun) bool {
		return now.Sub(*vain) < vainFor && !isDue(fr, now)
	}))
	first = first[:min(len(first), free(d))]
	err = each(ctx, first, propose("f", &inVain))
	if inVain.Load() {
		// Others were faster, and may be again: who was refused lately is not proposed for a while.
		*vain = l.cfg.Now()
		err = errors.Join(err, l.messages.DispatchAt(ctx, first[0].ID, vain.Add(vainFor), "slot"))
	}
	if err != nil {
		return true, err
	}
	rest := slices.DeleteFunc(runs, func(fr prefect.FlowRun) bool {
		return slices.ContainsFunc(first, func(f prefect.FlowRun) bool { return f.ID == fr.ID })
	})
	unseen := slices.DeleteFunc(slices.Clone(rest), func(fr prefect.FlowRun) bool {
		// Where the pool has a limit, it may be that what they wait for.
		return fr.StateName == prefect.AwaitingSlot || limited && !d.CancelsNew()
	})
	err = each(ctx, unseen, propose("r", &refused))
	return inVain.Load() || refused.Load() || len(rest) > len(unseen), err
}

// cancelWaiting claims the flow runs that wait for a slot of a deployment that is gone, which cancels
// them: Prefect deletes with a deployment only those that never were refused one.
func (l *Launcher) cancelWaiting(ctx context.Context, holder, id string) error {
	runs, err := l.waiting(ctx, slices.Sorted(maps.Keys(l.pools)), id)
	return errors.Join(err, each(ctx, runs, func(i int, fr prefect.FlowRun) error {
		return acknowledge(l.claim(ctx, fmt.Sprintf("%s/d%d", holder, i), fr, nil, true))
	}))
}

// free is how many slots the deployment has left.
func free(d prefect.Deployment) int {
	switch {
	case d.GlobalConcurrencyLimit != nil:
		return max(0, d.GlobalConcurrencyLimit.Limit-d.GlobalConcurrencyLimit.ActiveSlots)
	case d.ConcurrencyLimit != nil:
		return 1 // a server that does not tell: one is tried
	}
	return math.MaxInt
}

// waiting returns the deployment's flow runs that wait for a slot, oldest first: those that
// are due, and those refused lately, whose time Prefect set ahead.
func (l *Launcher) waiting(ctx context.Context, pools []string, id string) ([]prefect.FlowRun, error) {
	now := l.cfg.Now()
	runs, err := l.queue.FlowRuns(ctx, prefect.Filter{
		WorkPools: pools, DeploymentIDs: []string{id}, StateTypes: []prefect.StateType{flowrun.StateScheduled},
		ScheduledBefore: now.Add(slotWait), Sort: prefect.OldestFirst,
	})
	return slices.DeleteFunc(runs, func(fr prefect.FlowRun) bool {
		return !isDue(fr, now) && fr.StateName != prefect.AwaitingSlot || fr.RetryType() == prefect.RetryInProcess
	}), err
}
