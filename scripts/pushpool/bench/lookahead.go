package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// lookAhead has the reconciler, alone in a process that has just started, set the timers of
// flow runs that are due soon: so many that a stand-in for Prefect's server has to hold them.
func lookAhead(ctx context.Context, b *bench) error {
	var each []float64
	counts := []int{1000, 5000, 10_000}
	for _, count := range counts {
		ms, err := lookAheadAt(ctx, b, count)
		if err != nil {
			return err
		}
		each = append(each, ms)
	}
	last := len(counts) - 1
	b.figure(fmt.Sprintf("%d flow runs due soon: processor time for each, compared with %d flow runs", counts[last], counts[0]), "ratio", each[last]/each[0])
	return nil
}

// lookAheadAt returns the milliseconds of processor time that the sweep took for each flow run.
func lookAheadAt(ctx context.Context, b *bench, count int) (each float64, err error) {
	s, err := b.start(ctx, func(o *local.Options) {
		o.Embedded = true
		o.SweepEvery = time.Hour // this benchmark's own sweep is the only one
	})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	s.Functions.Stop()
	port, err := local.FreePort(ctx)
	if err != nil {
		return 0, err
	}
	reconciler := s.Functions.Only("reconciler", fmt.Sprintf("127.0.0.1:%d", port))
	if err := s.waiting(ctx, count); err != nil {
		return 0, err
	}
	if err := reconciler.Start(ctx); err != nil {
		return 0, err
	}
	defer reconciler.Stop()
	sweep := make(chan error, 1)
	begin := time.Now()
	go func() { sweep <- post(ctx, reconciler.URL("reconciler")) }()
	most, err := residentUntil(ctx, reconciler.Pid(), sweep)
	took := time.Since(begin)
	if err != nil {
		return 0, err
	}
	if timed, err := s.timed(); err != nil || timed != count {
		return 0, errors.Join(err, fmt.Errorf("the sweep set timers for %d of %d flow runs", timed, count))
	}
	b.figure(fmt.Sprintf("%d flow runs due soon: sweep", count), "s", took.Seconds())
	reconciler.Stop()
	each = reconciler.CPU().Seconds() * 1000 / float64(count)
	b.figure(fmt.Sprintf("%d flow runs due soon: the process's own processor time, for each", count), "ms", each)
	b.figure(fmt.Sprintf("%d flow runs due soon: resident, at most", count), "MiB", most)
	return each, nil
}

// timed counts the flow runs that a timer dispatches. Beside those wait the timers that wake
// the pool: this sweep's, and that of the stack's own first one as long as it has not fired.
func (s *stack) timed() (int, error) {
	flowRuns := map[string]bool{}
	for _, body := range s.Tasks.Waiting() {
		var published struct {
			Messages []struct{ Data []byte }
		}
		if err := json.Unmarshal(body, &published); err != nil {
			return 0, err
		}
		for _, m := range published.Messages {
			decoded, err := message.Decode(m.Data, nil)
			if err != nil {
				return 0, err
			}
			if d, ok := decoded.(message.Dispatch); ok {
				flowRuns[d.FlowRunID] = true
			}
		}
	}
	return len(flowRuns), nil
}

// waiting creates flow runs that are due within the look-ahead.
func (s *stack) waiting(ctx context.Context, count int) error {
	parameters := map[string]any{"city": "Berlin", "comment": uuid.NewString()}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	due := time.Now().Add(140 * time.Second)
	for i := range count {
		g.Go(func() error {
			at := due.Add(time.Duration(i) * time.Millisecond / 2)
			_, _, err := s.Prefect.CreateFlowRun(ctx, s.guide.ID, prefect.NewFlowRun{ScheduledTime: &at, Parameters: parameters})
			return err
		})
	}
	return g.Wait()
}

func post(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
