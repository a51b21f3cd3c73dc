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

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// benchmarks by name. Each starts what it needs with start.
var benchmarks = map[string]func(context.Context, *bench) error{
	"dispatch":   dispatch,
	"burst":      burst,
	"calls":      calls,
	"overhead":   overhead,
	"finalize":   finalize,
	"process":    process,
	"look-ahead": lookAhead,
	"fast-start": fastStart,
	"throttle":   throttle,
	"requests":   requests,
	"sustained":  sustained,
}

// bench is a benchmark that is being run.
type bench struct {
	name    string
	out     io.Writer
	options local.Options
	// figures that were written; of one that was written again, that which is further from its bar.
	figures map[string]float64
}

// stack is a stack that a benchmark measures.
type stack struct {
	*local.Stack
	guide        prefect.Deployment
	calls        atomic.Int64 // to Cloud Run
	prefectCalls callCounter  // of the functions
}

// Run runs the benchmarks of the names given, or all, and writes one JSON object in a line
// for each figure. The error names the bars that were not met.
func Run(ctx context.Context, out io.Writer, o local.Options, names []string) error {
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(benchmarks))
	}
	for _, name := range names {
		if benchmarks[name] == nil {
			return fmt.Errorf("there is no benchmark %q; write one of %v", name, slices.Sorted(maps.Keys(benchmarks)))
		}
	}
	var missed []error
	for _, name := range names {
		b := &bench{name: name, out: out, options: o, figures: map[string]float64{}}
		if err := benchmarks[name](ctx, b); err != nil {
			return errors.Join(append(missed, fmt.Errorf("benchmark %s: %w", name, err))...)
		}
		missed = append(missed, b.held())
	}
	return errors.Join(missed...)
}

// start starts a stack with a real Prefect server on SQLite and the stand-in flow, which starts
// in milliseconds, unless change says otherwise. The caller closes it.
func (b *bench) start(ctx context.Context, change func(*local.Options)) (*stack, error) {
	o := b.options
	o.LightFlow = true
	o.SweepEvery = time.Minute // as when deployed
	s := &stack{}
	o.OnPrefectCall, o.OnPrefectAnswer = s.prefectCalls.add, s.prefectCalls.answered
	if change != nil {
		change(&o)
	}
	var err error
	if s.Stack, err = local.Start(ctx, o); err != nil {
		return nil, err
	}
	s.OnCall(func(_ string, phase cloudruntest.Phase) error {
		if phase == cloudruntest.Before {
			s.calls.Add(1)
		}
		return nil
	})
	if s.guide, err = s.Prefect.DeploymentByName(ctx, "weather/guide"); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// figure writes one figure, and whether it meets its bar, if it has one.
func (b *bench) figure(name, unit string, value float64) {
	line := map[string]any{"benchmark": b.name, "figure": name, "unit": unit, "value": value}
	if at, ok := bars[b.name][name]; ok {
		line["bar"], line["ok"] = at.String(), at.holds(value)
		if before, again := b.figures[name]; again && !at.holds(before) {
			value = before
		}
	}
	b.figures[name] = value
	_ = json.NewEncoder(b.out).Encode(line)
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

// foreign creates a flow run that nobody dispatches, for a round trip to be measured with.
func (s *stack) foreign(ctx context.Context) (string, error) {
	later := time.Now().Add(24 * time.Hour)
	fr, _, err := s.Prefect.CreateFlowRun(ctx, s.guide.ID, prefect.NewFlowRun{ScheduledTime: &later})
	return fr.ID, err
}

// roundTrip measures one proposal of PENDING, as a worker would make it.
func (s *stack) roundTrip(ctx context.Context, id string) (time.Duration, error) {
	start := time.Now()
	_, err := s.Prefect.SetState(ctx, id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
	return time.Since(start), err
}

// accepted returns when Cloud Run accepted the job of each flow run.
func (s *stack) accepted() map[string]time.Time {
	at := map[string]time.Time{}
	for _, x := range s.CloudRun.Executions() {
		at[x.Labels[cloudrun.LabelFlowRun]] = x.JobCreated
	}
	return at
}

func (s *stack) completed(ctx context.Context, id string) error {
	fr, err := s.final(ctx, id)
	if err == nil && fr.StateType != flowrun.StateCompleted {
		err = fmt.Errorf("flow run %s ended %s", id, fr.StateType)
	}
	return err
}

// final waits until the flow run has ended.
func (s *stack) final(ctx context.Context, id string) (prefect.FlowRun, error) {
	return s.until(ctx, id, flowrun.StateType.Terminal)
}

// reaches waits until the flow run is in a state, which can come after its end: an engine that
// is stopped says CRASHED, and whoever stopped it CANCELLED.
func (s *stack) reaches(ctx context.Context, id string, state flowrun.StateType) error {
	_, err := s.until(ctx, id, func(t flowrun.StateType) bool { return t == state })
	return err
}

func (s *stack) until(ctx context.Context, id string, reached func(flowrun.StateType) bool) (prefect.FlowRun, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		fr, err := s.Prefect.FlowRun(ctx, id)
		if err == nil && reached(fr.StateType) {
			return fr, nil
		}
		select {
		case <-ctx.Done():
			return fr, errors.Join(fmt.Errorf("flow run %s does not go on; it is %s", id, fr.StateType), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ended waits until the flow run's execution has ended, which is after its flow told its end.
func (s *stack) ended(ctx context.Context, id string) (cloudruntest.Execution, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		for _, x := range s.CloudRun.Executions() {
			if x.Labels[cloudrun.LabelFlowRun] == id && !x.Completed.IsZero() {
				return x, nil
			}
		}
		select {
		case <-ctx.Done():
			return cloudruntest.Execution{}, fmt.Errorf("the execution of flow run %s did not end", id)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
