package prefect

import "context"

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
