package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/prefect"
)

// callCounter keeps the calls that the functions made to Prefect.
type callCounter struct {
	mu     sync.Mutex
	sweeps int
	calls  []string // method, path and caller, but for the sweeps'
	// refused are those that a busy server did not take, and that were made again.
	refused []string
}

func (c *callCounter) add(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.Contains(r.UserAgent(), "(reconciler)") {
		c.sweeps++
		return
	}
	c.calls = append(c.calls, call(r))
}

func (c *callCounter) answered(resp *http.Response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := resp.Request; resp.StatusCode == http.StatusServiceUnavailable && !strings.Contains(r.UserAgent(), "(reconciler)") {
		c.refused = append(c.refused, call(r))
	}
}

func call(r *http.Request) string { return r.Method + " " + r.URL.Path + " by " + r.UserAgent() }

// take returns the calls since it was last called.
func (c *callCounter) take() (sweeps int, calls, refused []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sweeps, calls, refused = c.sweeps, c.calls, c.refused
	c.sweeps, c.calls, c.refused = 0, nil, nil
	return sweeps, calls, refused
}

// calls counts what flow runs cost: many short ones, asked for both ways, and one long enough
// for sweeps to see it. Each is of a flow and a deployment of its own, as the costliest are,
// so that the paths of the calls tell which flow run they are for. The server is on PostgreSQL:
// on SQLite a call that waited too long for others to write is made again, or its message is.
func calls(ctx context.Context, b *bench) error {
	s, err := b.start(ctx, func(o *local.Options) { o.Postgres = true })
	if err != nil {
		return err
	}
	defer s.Close()
	for _, c := range []struct {
		name          string
		count, atOnce int
		seconds       int
		begin         func(context.Context, prefect.Deployment, int) (flowRunID string, err error)
	}{
		{"a flow run of 2 s, created in Prefect", 30, 3, 2, s.begin},
		{"a flow run of 2 s, asked for on the topic", 30, 3, 2, s.request},
		{"a flow run of 150 s, created in Prefect", 1, 1, 150, s.begin},
	} {
		deployments := make([]prefect.Deployment, c.count)
		for i := range deployments {
			if deployments[i], err = s.deploy(ctx); err != nil {
				return err
			}
		}
		run := s.calls.Load()
		s.prefectCalls.take()
		ids := make([]string, c.count)
		var g errgroup.Group
		g.SetLimit(c.atOnce)
		for i, d := range deployments {
			g.Go(func() (err error) {
				if ids[i], err = c.begin(ctx, d, c.seconds); err != nil {
					return err
				}
				return s.completed(ctx, ids[i])
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		time.Sleep(s.EntryDelay + 2*time.Second) // the ends of the last ones are still to be told
		b.figure("calls to Cloud Run for "+c.name+", the sweep's among them", "calls", float64(s.calls.Load()-run)/float64(c.count))
		sweeps, all, refused := s.prefectCalls.take()
		own := make([]int, c.count)
		shared := len(all) - len(refused)
		for i, d := range deployments {
			of := func(call string) bool {
				return strings.Contains(call, ids[i]) || strings.Contains(call, d.ID) || strings.Contains(call, d.FlowID)
			}
			own[i] = count(all, of) - count(refused, of)
			shared -= own[i]
			if own[i] > most {
				fmt.Fprintf(os.Stderr, "flow run %s took %d calls:\n", ids[i], own[i])
				for _, call := range all {
					if of(call) {
						fmt.Fprintln(os.Stderr, "  "+call)
					}
				}
				for _, l := range s.Functions.Lines(ids[i]) {
					fmt.Fprintf(os.Stderr, "  %s %s: %s %s %s\n", l.Time.Format("15:04:05.000"), l.Function, l.Message, l.Verdict, l.Error)
				}
			}
		}
		slices.Sort(own)
		b.figure("calls to Prefect for "+c.name+", from its event to its end, p50", "calls", float64(own[len(own)/2]))
		b.figure("calls to Prefect for "+c.name+", from its event to its end, max", "calls", float64(own[len(own)-1]))
		b.figure("calls to Prefect beside, for the work pool and its queues, meanwhile", "calls", float64(shared))
		b.figure("calls to Prefect beside, that it was too busy to take, meanwhile", "calls", float64(len(refused)))
		b.figure("calls to Prefect beside, of the sweep, meanwhile", "calls", float64(sweeps))
	}
	return nil
}

// most is how many calls a flow run is promised to take.
const most = 7

func count(all []string, counts func(string) bool) (n int) {
	for _, s := range all {
		if counts(s) {
			n++
		}
	}
	return n
}

// deploy makes a flow and a deployment of it.
func (s *stack) deploy(ctx context.Context) (prefect.Deployment, error) {
	flow, err := s.Prefect.CreateFlow(ctx, uuid.NewString())
	if err != nil {
		return prefect.Deployment{}, err
	}
	return s.Prefect.CreateDeployment(ctx, prefect.NewDeployment{
		FlowID: flow.ID, Name: "bench", WorkPool: s.guide.WorkPoolName, Entrypoint: s.guide.Entrypoint, Path: s.guide.Path,
	})
}

// begin creates a flow run in Prefect, of which the automation tells.
func (s *stack) begin(ctx context.Context, d prefect.Deployment, seconds int) (string, error) {
	// With a key the client asks a busy server again.
	fr, _, err := s.Prefect.CreateFlowRun(ctx, d.ID, prefect.NewFlowRun{
		IdempotencyKey: uuid.NewString(), Parameters: map[string]any{"pause_seconds": seconds},
	})
	return fr.ID, err
}

// request publishes a run request and returns the flow run that was made of it.
func (s *stack) request(ctx context.Context, d prefect.Deployment, seconds int) (string, error) {
	request, err := json.Marshal(map[string]any{"deployment": d.ID, "parameters": map[string]any{"pause_seconds": seconds}})
	if err != nil {
		return "", err
	}
	if _, err := s.FlowRuns.Publish(ctx, request, nil); err != nil {
		return "", err
	}
	for range 600 {
		all, err := s.Prefect.FlowRuns(ctx, prefect.Filter{DeploymentIDs: []string{d.ID}})
		if err == nil && len(all) > 0 {
			return all[0].ID, nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return "", fmt.Errorf("nothing came of the run request for deployment %s", d.ID)
}
