package prefect

import (
	"context"
	"time"
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
	p, err := c.WorkPool(ctx, pool)
	if err != nil || p.IsPaused || p.ConcurrencyLimit != nil {
		return err == nil, err
	}
	queues, err := c.WorkQueues(ctx, pool)
	for _, q := range queues {
		if q.IsPaused || q.ConcurrencyLimit != nil {
			return err == nil, err
		}
	}
	return false, err
}
