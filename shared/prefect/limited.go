package prefect

import (
	"cmp"
	"context"
	"math"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/flowrun"
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

// FreeSlots reads how many slots the pool and its queues have left; a pause leaves none. Those
// taken are counted by their flow runs where the server does not tell them: before 3.6.
func (c *Client) FreeSlots(ctx context.Context, pool string) (Slots, error) {
	var p WorkPool
	if _, err := c.do(ctx, readPool(pool), &p); err != nil {
		return Slots{}, err
	}
	queues, err := c.workQueues(ctx, pool)
	if err != nil {
		return Slots{}, err
	}
	var taken map[string]int
	if untold(p.ConcurrencyLimit, p.ActiveSlots) || slices.ContainsFunc(queues, func(q WorkQueue) bool { return untold(q.ConcurrencyLimit, q.ActiveSlots) }) {
		if taken, err = c.taken(ctx, pool); err != nil {
			return Slots{}, err
		}
	}
	s := Slots{pool: left(p.IsPaused, p.ConcurrencyLimit, p.ActiveSlots, taken[""]), queues: map[string]queueSlots{}}
	for _, q := range queues {
		s.queues[q.ID] = queueSlots{left(q.IsPaused, q.ConcurrencyLimit, q.ActiveSlots, taken[q.ID]), q.Priority}
	}
	return s, nil
}

// untold reports whether a limit is set and the server does not tell how much of it is taken.
func untold(limit, active *int) bool { return limit != nil && active == nil }

// taken counts the flow runs that take a slot of the pool, under "", and of its queues, by id.
func (c *Client) taken(ctx context.Context, pool string) (map[string]int, error) {
	f := Filter{WorkPools: []string{pool}, StateTypes: []StateType{flowrun.StatePending, flowrun.StateRunning}, Sort: OldestFirst}
	n := map[string]int{}
	for fr, err := range EachFlowRun(ctx, c.FlowRuns, f) {
		if err != nil {
			return nil, err
		}
		n[""]++
		n[fr.WorkQueueID]++
	}
	return n, nil
}

func left(paused bool, limit, active *int, counted int) int {
	switch {
	case paused:
		return 0
	case limit == nil:
		return math.MaxInt
	case active == nil:
		active = &counted
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
