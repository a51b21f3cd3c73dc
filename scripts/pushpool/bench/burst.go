package bench

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

const burstCount = 200

// burst creates 200 flow runs as fast as Prefect takes them, on each kind of server.
func burst(ctx context.Context, b *bench) error {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		if err := burstOn(ctx, b, database); err != nil {
			return err
		}
	}
	return nil
}

func burstOn(ctx context.Context, b *bench, database string) error {
	s, err := b.start(ctx, func(o *local.Options) { o.Postgres = database == "PostgreSQL" })
	if err != nil {
		return err
	}
	defer s.Close()
	const count = burstCount
	ids := make([]string, count)
	created := make([]time.Time, count)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	start := time.Now()
	for i := range count {
		g.Go(func() error {
			// A server on SQLite refuses many of them while it writes; with a key, again is safe.
			n := prefect.NewFlowRun{IdempotencyKey: uuid.NewString()}
			for {
				fr, _, err := s.Prefect.CreateFlowRun(gctx, s.guide.ID, n)
				ids[i], created[i] = fr.ID, time.Now()
				if err == nil || gctx.Err() != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	last := time.Now()
	b.figure(database+": creating 200 flow runs", "s", last.Sub(start).Seconds())
	var mu sync.Mutex
	states := map[flowrun.StateType]int{}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(2) // the server is busy enough
	for _, id := range ids {
		g.Go(func() error {
			fr, err := s.final(gctx, id)
			mu.Lock()
			defer mu.Unlock()
			states[fr.StateType]++
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	accepted := s.accepted()
	var waits []time.Duration
	var latest time.Time
	for i, id := range ids {
		at, ok := accepted[id]
		if !ok {
			continue
		}
		waits = append(waits, at.Sub(created[i]))
		if at.After(latest) {
			latest = at
		}
	}
	b.spread(database+": flow run created → CreateJob accepted", waits)
	b.figure(database+": last flow run created → last CreateJob accepted", "s", latest.Sub(last).Seconds())
	b.figure(database+": accepted", "flow runs", float64(len(waits)))
	b.figure(database+": executions beyond one for each flow run", "executions", float64(len(s.CloudRun.Executions())-len(accepted)))
	b.figure(database+": completed", "flow runs", float64(states[flowrun.StateCompleted]))
	b.figure(database+": crashed", "flow runs", float64(states[flowrun.StateCrashed]))
	return nil
}
