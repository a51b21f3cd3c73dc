// Package bench measures the local stack.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// benchmarks by name. Each is run on a stack of its own, with a real Prefect server on SQLite
// and the stand-in flow, which starts in milliseconds.
var benchmarks = map[string]func(context.Context, *bench) error{
	"dispatch": dispatch,
	"burst":    burst,
}

type bench struct {
	*local.Stack
	name         string
	out          io.Writer
	guide        prefect.Deployment
	calls        atomic.Int64 // to Cloud Run
	prefectCalls *atomic.Int64
}

// Run runs the benchmarks of the names given, or all, and writes one JSON object in a line
// for each figure.
func Run(ctx context.Context, out io.Writer, o local.Options, names []string) error {
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(benchmarks))
	}
	for _, name := range names {
		if benchmarks[name] == nil {
			return fmt.Errorf("there is no benchmark %q; write one of %v", name, slices.Sorted(maps.Keys(benchmarks)))
		}
	}
	for _, name := range names {
		if err := run(ctx, out, o, name); err != nil {
			return fmt.Errorf("benchmark %s: %w", name, err)
		}
	}
	return nil
}

func run(ctx context.Context, out io.Writer, o local.Options, name string) error {
	o.LightFlow = true
	o.SweepEvery = time.Minute // as when deployed
	var prefectCalls atomic.Int64
	o.OnPrefectCall = func() { prefectCalls.Add(1) }
	stack, err := local.Start(ctx, o)
	if err != nil {
		return err
	}
	defer stack.Close()
	b := &bench{Stack: stack, name: name, out: out, prefectCalls: &prefectCalls}
	stack.OnCall(func(_ string, phase cloudruntest.Phase) error {
		if phase == cloudruntest.Before {
			b.calls.Add(1)
		}
		return nil
	})
	if b.guide, err = stack.Prefect.DeploymentByName(ctx, "weather/guide"); err != nil {
		return err
	}
	return benchmarks[name](ctx, b)
}

// figure writes one figure.
func (b *bench) figure(name, unit string, value float64) {
	_ = json.NewEncoder(b.out).Encode(map[string]any{"benchmark": b.name, "figure": name, "unit": unit, "value": value})
}

// spread writes the median, the 95th percentile and the largest of durations.
func (b *bench) spread(name string, all []time.Duration) (median time.Duration) {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	median = all[len(all)/2]
	b.figure(name+" p50", "s", median.Seconds())
	b.figure(name+" p95", "s", all[len(all)*95/100].Seconds())
	b.figure(name+" max", "s", all[len(all)-1].Seconds())
	return median
}

// dispatch takes flow runs one after the other, on a warm stack, and measures a set_state
// round trip beside each to compare with.
func dispatch(ctx context.Context, b *bench) error {
	const warmUp, count = 3, 30
	var whole, prefects, topics, ours, trips []time.Duration
	var before, prefectBefore int64
	for i := range warmUp + count {
		if i == warmUp {
			before, prefectBefore = b.calls.Load(), b.prefectCalls.Load()
		}
		other, err := b.foreign(ctx)
		if err != nil {
			return err
		}
		created := time.Now()
		fr, _, err := b.Prefect.CreateFlowRun(ctx, b.guide.ID, prefect.NewFlowRun{})
		if err != nil {
			return err
		}
		if err := b.completed(ctx, fr.ID); err != nil {
			return err
		}
		if i < warmUp {
			continue
		}
		trip, err := b.roundTrip(ctx, other)
		if err != nil {
			return err
		}
		trips = append(trips, trip)
		accepted := b.accepted()[fr.ID]
		whole = append(whole, accepted.Sub(created))
		for _, l := range b.Functions.Lines(fr.ID) {
			began := l.Time.Add(-time.Duration(l.Took * float64(time.Second)))
			switch {
			case l.Function == "webhook" && began.Before(accepted):
				prefects = append(prefects, began.Sub(created))
				ours = append(ours, accepted.Sub(began))
			case l.Function == "dispatcher" && began.Before(accepted) && len(topics) < len(prefects):
				topics = append(topics, began.Sub(created)-prefects[len(prefects)-1])
			}
		}
	}
	b.spread("flow run created → CreateJob accepted", whole)
	b.spread("of it Prefect: created → webhook called", prefects)
	b.spread("of it webhook called → dispatcher called", topics)
	median := b.spread("webhook called → CreateJob accepted", ours)
	trip := b.spread("one set_state round trip", trips)
	b.figure("webhook called → CreateJob accepted, in set_state round trips", "ratio", median.Seconds()/trip.Seconds())
	b.figure("calls to Cloud Run for each flow run", "calls", float64(b.calls.Load()-before)/count)
	// Sweeps are among them, and events about the flow runs that a round trip is measured with.
	b.figure("calls to Prefect for each flow run", "calls", float64(b.prefectCalls.Load()-prefectBefore)/count)
	return nil
}

// burst creates 200 flow runs as fast as Prefect takes them.
func burst(ctx context.Context, b *bench) error {
	const count = 200
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
				fr, _, err := b.Prefect.CreateFlowRun(gctx, b.guide.ID, n)
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
	b.figure("creating 200 flow runs", "s", time.Since(start).Seconds())
	states := map[flowrun.StateType]int{}
	for _, id := range ids {
		fr, err := b.final(ctx, id)
		if err != nil {
			return err
		}
		states[fr.StateType]++
	}
	accepted := b.accepted()
	var waits []time.Duration
	for i, id := range ids {
		if at, ok := accepted[id]; ok {
			waits = append(waits, at.Sub(created[i]))
		}
	}
	b.spread("flow run created → CreateJob accepted", waits)
	b.figure("accepted", "flow runs", float64(len(waits)))
	b.figure("executions beyond one for each flow run", "executions", float64(len(b.CloudRun.Executions())-len(accepted)))
	b.figure("completed", "flow runs", float64(states[flowrun.StateCompleted]))
	b.figure("crashed", "flow runs", float64(states[flowrun.StateCrashed]))
	return nil
}

// foreign creates a flow run that nobody dispatches, for a round trip to be measured with.
func (b *bench) foreign(ctx context.Context) (string, error) {
	later := time.Now().Add(24 * time.Hour)
	fr, _, err := b.Prefect.CreateFlowRun(ctx, b.guide.ID, prefect.NewFlowRun{ScheduledTime: &later})
	return fr.ID, err
}

// roundTrip measures one proposal of PENDING, as a worker would make it.
func (b *bench) roundTrip(ctx context.Context, id string) (time.Duration, error) {
	start := time.Now()
	_, err := b.Prefect.SetState(ctx, id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
	return time.Since(start), err
}

// accepted returns when Cloud Run accepted the job of each flow run.
func (b *bench) accepted() map[string]time.Time {
	at := map[string]time.Time{}
	for _, x := range b.CloudRun.Executions() {
		at[x.Labels[cloudrun.LabelFlowRun]] = x.JobCreated
	}
	return at
}

func (b *bench) completed(ctx context.Context, id string) error {
	fr, err := b.final(ctx, id)
	if err == nil && fr.StateType != flowrun.StateCompleted {
		err = fmt.Errorf("flow run %s ended %s", id, fr.StateType)
	}
	return err
}

// final waits until the flow run has ended.
func (b *bench) final(ctx context.Context, id string) (prefect.FlowRun, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		fr, err := b.Prefect.FlowRun(ctx, id)
		if err == nil && fr.StateType.Terminal() {
			return fr, nil
		}
		select {
		case <-ctx.Done():
			return fr, errors.Join(fmt.Errorf("flow run %s did not end; it is %s", id, fr.StateType), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
