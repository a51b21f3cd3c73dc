package bench

import (
	"context"
	"fmt"
	"os"
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
	for _, on := range []struct {
		name     string
		postgres bool
		clients  int
	}{
		{"SQLite", false, 8}, // which mostly wait for the database
		{"PostgreSQL", true, 1},
		{"PostgreSQL, eight at once", true, 8},
	} {
		if err := burstOn(ctx, b, on.name, on.postgres, on.clients); err != nil {
			return err
		}
	}
	return nil
}

// burstOn creates the flow runs from so many clients at once.
func burstOn(ctx context.Context, b *bench, name string, postgres bool, clients int) error {
	s, err := b.start(ctx, func(o *local.Options) { o.Postgres = postgres })
	if err != nil {
		return err
	}
	defer s.Close()
	const count = burstCount
	ids := make([]string, count)
	created := make([]time.Time, count)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(clients)
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
	b.figure(name+": creating 200 flow runs", "s", last.Sub(start).Seconds())
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
			if fr.StateType != flowrun.StateCompleted && fr.State != nil {
				fmt.Fprintf(os.Stderr, "flow run %s ended %s: %s\n", id, fr.StateType, fr.State.Message)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	accepted := s.accepted()
	var waits, prefects, ours []time.Duration
	var latest time.Time
	for i, id := range ids {
		at, ok := accepted[id]
		if !ok {
			continue
		}
		parts := s.parts(id, created[i], at)
		waits = append(waits, parts.whole)
		if parts.prefect > 0 { // else its event came after what else found it
			prefects, ours = append(prefects, parts.prefect), append(ours, parts.ours)
		}
		if at.After(latest) {
			latest = at
		}
	}
	b.spread(name+": flow run created → CreateJob accepted", waits)
	b.spread(name+": of it Prefect: created → webhook called", prefects)
	b.spread(name+": webhook called → CreateJob accepted", ours)
	b.figure(name+": last flow run created → last CreateJob accepted", "s", latest.Sub(last).Seconds())
	b.figure(name+": accepted", "flow runs", float64(len(waits)))
	b.figure(name+": executions beyond one for each flow run", "executions", float64(len(s.CloudRun.Executions())-len(accepted)))
	b.figure(name+": completed", "flow runs", float64(states[flowrun.StateCompleted]))
	b.figure(name+": crashed", "flow runs", float64(states[flowrun.StateCrashed]))
	return nil
}
