package sweep

import (
	"context"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
)

// readyAgain is half of the Scheduler's interval. Prefect shows queues and deployments Not
// Ready 60 s after somebody last asked what is scheduled: asked each minute they flap, asked
// half-way between too they do not (measured on 3.8.8: 65 s flaps, 55 s does not).
const readyAgain = 30 * time.Second

// ready keeps the pool READY in Prefect, and its queues and deployments, as a worker does.
func (s *Sweeper) ready(ctx context.Context, pool string) error {
	now := s.cfg.Now()
	if s.cfg.Readiness {
		if _, err := s.pools.ScheduledFlowRuns(ctx, pool, now, 1); err != nil {
			return err
		}
		if err := s.messages.WakeAt(ctx, message.Wake{WorkPool: pool, Ready: true}, now.Add(readyAgain), "ready"); err != nil {
			return err
		}
	}
	p, err := s.ledger.UpdatePool(ctx, pool, func(p flowrun.Pool) (flowrun.Pool, error) { return p, nil })
	if err != nil || now.Before(p.HeartbeatAt.Add(heartbeatEvery/2)) {
		return err
	}
	if err := s.pools.Heartbeat(ctx, pool, "pushpool "+s.cfg.Name, heartbeatEvery); err != nil {
		return err
	}
	_, err = s.ledger.UpdatePool(ctx, pool, func(p flowrun.Pool) (flowrun.Pool, error) {
		p.HeartbeatAt = now
		return p, nil
	})
	return err
}
