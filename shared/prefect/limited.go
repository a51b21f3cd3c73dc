package prefect

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// latelyAge is how old LimitedLately's answers may be.
const latelyAge = 5 * time.Minute

// LimitedLately is Limited with an answer that may be 5 minutes old: good enough to decide
// whether a free slot is to be told of, since the sweep wakes limited pools each minute anyway.
func (c *Client) LimitedLately(ctx context.Context, pool string) (bool, error) {
	return c.limited.get(ctx, "look for limits of work pool "+pool, pool, func(ctx context.Context) (bool, error) {
		return c.Limited(ctx, pool)
	})
}

// Limited reports whether a limit or a pause of the work pool, or of one of its work queues, is
// set: then only ScheduledFlowRuns tells which flow runs may start. The answer may be 10 s old.
func (c *Client) Limited(ctx context.Context, pool string) (bool, error) {
	// Both at once: whatever waits for the answer is a flow run that is due.
	var p WorkPool
	var queues []WorkQueue
	reads, ctx := errgroup.WithContext(ctx)
	reads.Go(func() (err error) { p, err = c.WorkPool(ctx, pool); return err })
	reads.Go(func() (err error) { queues, err = c.WorkQueues(ctx, pool); return err })
	if err := reads.Wait(); err != nil {
		return false, err
	}
	return p.IsPaused || p.ConcurrencyLimit != nil || slices.ContainsFunc(queues, func(q WorkQueue) bool {
		return q.IsPaused || q.ConcurrencyLimit != nil
	}), nil
}
