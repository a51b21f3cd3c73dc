package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// fastStart starts the real flow, with Prefect's own pull step, both ways, and cancels it both ways.
func fastStart(ctx context.Context, b *bench) error {
	s, err := b.start(ctx, func(o *local.Options) { o.LightFlow = false })
	if err != nil {
		return err
	}
	defer s.Close()
	for _, way := range []struct {
		name string
		fast bool
	}{{"prefect flow-run execute", false}, {"python -m prefect.engine", true}} {
		const warmUp, count = 1, 5
		var starts, takes, cancels []time.Duration
		for i := range warmUp + count {
			started, took, err := s.execute(ctx, way.fast)
			if err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
			if i >= warmUp {
				starts, takes = append(starts, started), append(takes, took)
			}
		}
		for range 3 {
			took, err := s.cancel(ctx, way.fast)
			if err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
			cancels = append(cancels, took)
		}
		b.spread(way.name+": container started → RUNNING", starts)
		b.spread(way.name+": container started → ended", takes)
		b.spread(way.name+": cancelled while RUNNING → CANCELLED", cancels)
	}
	return nil
}

func (s *stack) create(ctx context.Context, fast bool, pause float64) (string, error) {
	fr, _, err := s.Prefect.CreateFlowRun(ctx, s.guide.ID, prefect.NewFlowRun{
		JobVariables: map[string]any{"pushpool_fast_start": fast}, Parameters: map[string]any{"pause_seconds": pause},
	})
	return fr.ID, err
}

// execute takes a flow run to its end and returns how long after its container's start it was
// RUNNING, and how long the container lived.
func (s *stack) execute(ctx context.Context, fast bool) (running, took time.Duration, err error) {
	id, err := s.create(ctx, fast, 0)
	if err != nil {
		return 0, 0, err
	}
	if err := s.completed(ctx, id); err != nil {
		return 0, 0, err
	}
	states, err := s.Prefect.FlowRunStates(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	x, err := s.ended(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	for _, state := range states {
		if state.Type == flowrun.StateRunning {
			return state.Timestamp.Sub(x.Started), x.Completed.Sub(x.Started), nil
		}
	}
	return 0, 0, fmt.Errorf("flow run %s was never RUNNING", id)
}

// cancel cancels a flow run while it is RUNNING and returns how long it took to be CANCELLED.
func (s *stack) cancel(ctx context.Context, fast bool) (time.Duration, error) {
	id, err := s.create(ctx, fast, 120)
	if err != nil {
		return 0, err
	}
	if err := s.reaches(ctx, id, flowrun.StateRunning); err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := s.Prefect.SetState(ctx, id, prefect.Proposal{Type: flowrun.StateCancelling}); err != nil {
		return 0, err
	}
	err = s.reaches(ctx, id, flowrun.StateCancelled)
	return time.Since(start), err
}
