package prefect

import (
	"cmp"
	"context"
	"math"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Limited reports whether a limit or a pause of the work pool, or of one of its work queues, is
// set: then only ScheduledFlowRuns tells which flow runs may start. The answer may be 10 s old.
func (c *Client) Limited(ctx context.Context, pool string) (bool, error) {
	// Both at once: whatever waits for the answer is a flow run that is due.
	var p WorkPool
	var queues []WorkQueue
	var reads errgroup.Group
	reads.Go(func() (err error) { p, err = c.WorkPool(ctx, pool); return err })
	reads.Go(func() (err error) { queues, err = c.WorkQueues(ctx, pool); return err })
	if err := reads.Wait(); err != nil {
		return false, err
	}
	return p.IsPaused || p.ConcurrencyLimit != nil || slices.ContainsFunc(queues, func(q WorkQueue) bool {
		return q.IsPaused || q.ConcurrencyLimit != nil
	}), nil
}

// Slots are the slots that a work pool and its queues have left.
type Slots struct {
	pool   int
	queues map[string]queueSlots // by id
}

type queueSlots struct{ free, priority int }

// FreeSlots reads how many slots the pool and its queues have left; a pause leaves none, and
// so does a server that does not count those taken (2.20, where no deployment has a limit).
func (c *Client) FreeSlots(ctx context.Context, pool string) (Slots, error) {
	var p WorkPool
	if _, err := c.do(ctx, readPool(pool), &p); err != nil {
		return Slots{}, err
	}
	queues, err := c.workQueues(ctx, pool)
	s := Slots{pool: left(p.IsPaused, p.ConcurrencyLimit, p.ActiveSlots), queues: map[string]queueSlots{}}
	for _, q := range queues {
		s.queues[q.ID] = queueSlots{left(q.IsPaused, q.ConcurrencyLimit, q.ActiveSlots), q.Priority}
	}
	return s, err
}

func left(paused bool, limit, active *int) int {
	switch {
	case paused:
		return 0
	case limit == nil:
		return math.MaxInt
	case active == nil:
		return 0
	}
	return max(0, *limit-*active)
}

// Take returns those of the flow runs for which there are slots, by the priority of their
// queues and else in the order given.
func (s Slots) Take(flowRuns []FlowRun) []FlowRun {
	byPriority := slices.Clone(flowRuns)
	slices.SortStableFunc(byPriority, func(a, b FlowRun) int {
		return cmp.Compare(s.queues[a.WorkQueueID].priority, s.queues[b.WorkQueueID].priority)
	})
	taken := map[string]int{} // by queue
	return slices.DeleteFunc(byPriority, func(fr FlowRun) bool {
		if taken[fr.WorkQueueID] >= s.queues[fr.WorkQueueID].free || taken[""] >= s.pool {
			return true
		}
		taken[fr.WorkQueueID]++
		taken[""]++
		return false
	})
}
