package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/prefect"
)

const (
	// atOnce is how many flow runs there are at a time: one that ended makes room for the next.
	atOnce = 8
	// recovery is how long after the last fault a flow run may take to its end.
	recovery = 5 * time.Minute
	// Between the first third of the time and the last the medians may grow by half, and by this.
	heapSlack, goroutinesSlack = 8 << 20, 20
)

// soaked is what a soak reports.
type soaked struct {
	Seconds    float64        `json:"seconds"`
	FlowRuns   int            `json:"flow_runs"`
	Wrong      int            `json:"wrong"` // not in the one true end state, or not executed once
	Faults     map[string]int `json:"faults"`
	Heap       [2]float64     `json:"heap_mib"`   // live, in the first third and in the last
	Goroutines [2]int         `json:"goroutines"` // likewise
	Grows      []string       `json:"grows,omitempty"`
}

// Soak lets flow runs go through for some time while everything goes wrong, and reports whether
// all ended true and the functions' process took no more memory and goroutines in the end. The
// functions are served by two processes: one is killed again and again, the other one is measured.
// The last line of out is a JSON object.
func Soak(ctx context.Context, out io.Writer, o local.Options, long time.Duration) (ok bool, err error) {
	o.Processes = 2
	stack, err := local.Start(ctx, o)
	if err != nil {
		return false, err
	}
	defer stack.Close()
	d := &demo{out: out, Stack: stack}
	if stack.CloudRun == nil {
		return false, errors.New("a soak needs the stack's own Cloud Run emulator; unset CLOUD_RUN_EMULATOR_HOST")
	}
	if d.guide, err = stack.Prefect.DeploymentByName(ctx, "weather/guide"); err != nil {
		return false, err
	}
	start := time.Now()
	s := soak{demo: d, until: start.Add(long)}
	end := s.trouble.begin(ctx, stack, stack.Others[0])
	g, gctx := errgroup.WithContext(ctx)
	for i := range atOnce {
		g.Go(func() error { return s.load(gctx, i) })
	}
	g.Go(func() error { return s.measure(gctx) })
	g.Go(func() error { // faults end with the time, or with what cannot be gone on with
		select {
		case <-gctx.Done():
		case <-time.After(long):
		}
		return end()
	})
	if err = g.Wait(); err != nil {
		return false, err
	}
	r := s.report()
	r.Seconds = time.Since(start).Seconds()
	if err := json.NewEncoder(out).Encode(r); err != nil {
		return false, err
	}
	return r.Wrong == 0 && len(r.Grows) == 0, nil
}

// soak is one under way.
type soak struct {
	*demo
	trouble
	until time.Time

	mu     sync.Mutex
	done   int
	wrong  []error
	levels []level
}

// level is what the functions' process takes at a time.
type level struct {
	Heap       uint64 `json:"heap"` // live bytes
	Goroutines int    `json:"goroutines"`
}

// load brings one flow run after the other to its end.
func (s *soak) load(ctx context.Context, from int) error {
	kinds := slices.DeleteFunc(slices.Clone(hundred), func(f fate) bool { return f.strike != nil })
	for n := from; time.Now().Before(s.until); n++ {
		err := s.one(ctx, kinds[n%len(kinds)])
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.mu.Lock()
		if s.done++; err != nil {
			s.wrong = append(s.wrong, err)
			s.say("WRONG: %v", err)
		}
		s.mu.Unlock()
	}
	return nil
}

// one brings one flow run to its end; an error says what is wrong with it.
func (s *soak) one(ctx context.Context, f fate) error {
	ctx, cancel := context.WithDeadline(ctx, s.until.Add(recovery))
	defer cancel()
	c := &crowd{demo: s.demo, all: []*fated{{fate: f}}}
	n := prefect.NewFlowRun{IdempotencyKey: uuid.NewString(), Parameters: f.parameters, JobVariables: f.variables}
	for {
		fr, _, err := s.Prefect.CreateFlowRun(ctx, s.guide.ID, n)
		if err == nil {
			c.all[0].id = fr.ID
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("create a flow run: %w", err)
		}
	}
	for {
		if err := c.look(ctx); err == nil && c.all[0].now.StateType.Terminal() && !c.all[0].execution.Completed.IsZero() {
			return c.wrong()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not over %s after the last fault: %w", recovery, c.wrong())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// measure asks the process that is never killed what it takes, until the time is over.
func (s *soak) measure(ctx context.Context) error {
	told := time.Now()
	for ; time.Now().Before(s.until); time.Sleep(time.Second) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Functions.URL("process"), nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return fmt.Errorf("ask the functions' process what it takes: %w", err)
		}
		var l level
		err = json.NewDecoder(resp.Body).Decode(&l)
		_ = resp.Body.Close()
		if err != nil {
			return fmt.Errorf("ask the functions' process what it takes: %s: %w", resp.Status, err)
		}
		s.mu.Lock()
		s.levels = append(s.levels, l)
		if time.Since(told) > 15*time.Second {
			told = time.Now()
			s.say("%d flow runs have ended, %d of them wrong; %.1f MiB live, %d goroutines", s.done, len(s.wrong), mib(l.Heap), l.Goroutines)
		}
		s.mu.Unlock()
	}
	return nil
}

func (s *soak) report() soaked {
	third := len(s.levels) / 3
	first, last := median(s.levels[:third]), median(s.levels[len(s.levels)-third:])
	r := soaked{
		FlowRuns: s.done, Wrong: len(s.wrong), Faults: s.counts(),
		Heap: [2]float64{mib(first.Heap), mib(last.Heap)}, Goroutines: [2]int{first.Goroutines, last.Goroutines},
	}
	if last.Heap > first.Heap*3/2+heapSlack {
		r.Grows = append(r.Grows, "heap")
	}
	if last.Goroutines > first.Goroutines*3/2+goroutinesSlack {
		r.Grows = append(r.Grows, "goroutines")
	}
	return r
}

func median(levels []level) (m level) {
	if len(levels) == 0 {
		return m
	}
	var heaps []uint64
	var goroutines []int
	for _, l := range levels {
		heaps, goroutines = append(heaps, l.Heap), append(goroutines, l.Goroutines)
	}
	slices.Sort(heaps)
	slices.Sort(goroutines)
	return level{heaps[len(heaps)/2], goroutines[len(goroutines)/2]}
}

func mib(bytes uint64) float64 { return float64(bytes*10>>20) / 10 }
