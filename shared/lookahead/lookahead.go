// Package lookahead has what is due dispatched and what is due soon dispatched by a timer.
package lookahead

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

const (
	// maxWaiting bounds the waiting flow runs that one sweep reads of a pool, the soonest first:
	// more timers do not fit in a sweep.
	maxWaiting = 20_000
	// maxInLine bounds those of a pool with a limit that are due: one of them is enough.
	maxInLine = prefect.MaxPage
)

// Prefect is what looking ahead asks of Prefect.
type Prefect interface {
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
	Limited(ctx context.Context, pool string) (bool, error)
}

// Ledger knows the leads of deployments.
type Ledger interface {
	UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error)
}

// Messages sends what is found to the dispatcher.
type Messages interface {
	Dispatch(ctx context.Context, flowRunID string) error
	DispatchAt(ctx context.Context, flowRunID string, at time.Time, cause string) error
	Wake(ctx context.Context, w message.Wake) error
}

// Ahead looks ahead in work pools. It is safe for concurrent use, one call for a pool at a time.
type Ahead struct {
	prefect  Prefect
	ledger   Ledger
	messages Messages
	by       time.Duration
	now      func() time.Time

	mu sync.Mutex
	// timers are those that were set, by pool and flow run.
	timers map[string]map[string]time.Time
}

// New returns an Ahead that looks ahead by the time given.
func New(p Prefect, l Ledger, m Messages, by time.Duration, now func() time.Time) *Ahead {
	return &Ahead{prefect: p, ledger: l, messages: m, by: by, now: now, timers: map[string]map[string]time.Time{}}
}

// Done counts what was sent, and flow runs that are Overdue: due for so long that they should have
// been launched, and nothing that is known of them says what they wait for. Those of a pool with a limit
// or a pause wait for that, as far as anybody can tell, and are not among them.
type Done struct{ Dispatched, Timers, Wakes, Overdue int }

// overdueAfter is two sweeps: what the first finds the dispatcher has had time for.
const overdueAfter = 2 * time.Minute

// Look has what is due in the pool dispatched now, and what is due soon by a timer, its
// deployment's lead before it is due. In a limited pool one message does for all that wait,
// and one for those that wait for a slot of a deployment. What is sent is sent by start, which
// may call it later.
func (a *Ahead) Look(ctx context.Context, pool string, start func(send func() error)) (done Done, err error) {
	limited, err := a.prefect.Limited(ctx, pool)
	if err != nil {
		return done, err
	}
	now := a.now()
	due := false
	deployments := map[string]bool{} // with flow runs that wait for a slot of it
	overdue := map[string]int{}      // flow runs, by deployment
	leads := map[string]flowrun.Lead{}
	before, keep := a.newTimers(pool)
	each := func(fr prefect.FlowRun) error {
		at := now
		if fr.NextScheduledStartTime != nil {
			at = *fr.NextScheduledStartTime
		}
		if at.After(now) && !limited && prefect.MayStartEarly(fr) {
			lead, err := a.lead(ctx, fr.DeploymentID, leads)
			if err != nil {
				return err
			}
			at = lead.Before(at)
		}
		switch {
		case fr.StateName == prefect.AwaitingSlot && fr.RetryType() != prefect.RetryInProcess:
			deployments[fr.DeploymentID] = true
		case at.After(now.Add(a.by)):
			// A sweep to come finds it.
		case at.After(now):
			if before[fr.ID].Equal(at) {
				keep(fr.ID, at)
				return nil
			}
			done.Timers++
			start(func() error {
				err := a.messages.DispatchAt(ctx, fr.ID, at, "due")
				if err == nil {
					keep(fr.ID, at)
				}
				return err
			})
		case prefect.Announced(fr, now):
			// Where its event is lost, the next sweep finds it.
		case limited && fr.RetryType() != prefect.RetryInProcess:
			due = true
		default: // also where its container should have run it again: Prefect tells a wake of no such flow run
			if at.Before(now.Add(-overdueAfter)) && fr.StateName != flowrun.AwaitingCapacity && fr.RetryType() != prefect.RetryInProcess {
				overdue[fr.DeploymentID]++
			}
			done.Dispatched++
			start(func() error { return a.messages.Dispatch(ctx, fr.ID) })
		}
		return nil
	}
	f := prefect.Filter{
		WorkPools: []string{pool}, StateTypes: []prefect.StateType{flowrun.StateScheduled},
		ScheduledBefore: now.Add(a.by + flowrun.MaxLead), Sort: prefect.SoonestFirst,
	}
	if limited {
		inLine := f
		inLine.ScheduledBefore, f.ScheduledFrom = now, now
		if err := a.soonest(ctx, maxInLine, inLine, each); err != nil {
			return done, err
		}
	}
	err = a.soonest(ctx, maxWaiting, f, each)
	wake := func(m message.Wake) {
		done.Wakes++
		start(func() error { return a.messages.Wake(ctx, m) })
	}
	if due {
		wake(message.Wake{WorkPool: pool})
	}
	for _, id := range slices.Sorted(maps.Keys(deployments)) {
		wake(message.Wake{DeploymentID: id})
		delete(overdue, id) // they wait behind those
	}
	for _, n := range overdue {
		done.Overdue += n
	}
	return done, err
}

// soonest calls each for the flow runs of the filter, the soonest first, once for each and for
// about most at most. It goes on from the last time seen: what was launched meanwhile is no longer
// in the list, and would have others fall between two pages.
func (a *Ahead) soonest(ctx context.Context, most int, f prefect.Filter, each func(prefect.FlowRun) error) error {
	seen := map[string]bool{}
	for len(seen) < most {
		page, err := a.prefect.FlowRuns(ctx, f)
		if err != nil {
			return err
		}
		for _, fr := range page {
			if seen[fr.ID] {
				continue
			}
			seen[fr.ID] = true
			if err := each(fr); err != nil {
				return err
			}
		}
		if len(page) < prefect.MaxPage {
			break
		}
		last := page[len(page)-1].NextScheduledStartTime
		if last == nil || last.Equal(f.ScheduledFrom) {
			f.Offset += prefect.MaxPage // a whole page of one time
		} else {
			f.ScheduledFrom, f.Offset = *last, 0
		}
	}
	return nil
}

// lead reads the lead of the deployment, once in a sweep.
func (a *Ahead) lead(ctx context.Context, deploymentID string, known map[string]flowrun.Lead) (flowrun.Lead, error) {
	lead, ok := known[deploymentID]
	if ok || deploymentID == "" {
		return lead, nil
	}
	d, err := a.ledger.UpdateDeployment(ctx, deploymentID, func(d flowrun.Deployment) (flowrun.Deployment, error) { return d, nil })
	if err != nil {
		return 0, err
	}
	if !d.Waits {
		lead = d.Lead
	}
	known[deploymentID] = lead
	return lead, nil
}

// newTimers returns the timers that the last sweep of the pool set, which Cloud Tasks need not be
// asked for again, and what keeps those of this one. An instance that starts anew sets all of
// them once more, which changes nothing.
func (a *Ahead) newTimers(pool string) (before map[string]time.Time, keep func(flowRunID string, at time.Time)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, timers := a.timers[pool], map[string]time.Time{}
	a.timers[pool] = timers
	return before, func(id string, at time.Time) {
		a.mu.Lock()
		defer a.mu.Unlock()
		timers[id] = at
	}
}
