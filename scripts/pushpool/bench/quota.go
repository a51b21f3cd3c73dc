package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

const throttleCount, requestsCount = 50, 1000

// throttle has 50 flow runs wait while Cloud Run answers every launch with 429 for a minute.
func throttle(ctx context.Context, b *bench) error {
	const count, closedFor = throttleCount, time.Minute
	// PostgreSQL, so that it is Cloud Run that they wait for.
	s, err := b.start(ctx, func(o *local.Options) { o.WritesPerMinute, o.Postgres = 180, true })
	if err != nil {
		return err
	}
	defer s.Close()
	var open atomic.Bool
	var refused atomic.Int64
	s.OnCall(func(method string, phase cloudruntest.Phase) error {
		if phase != cloudruntest.Before || method != "CreateJob" || open.Load() {
			return nil
		}
		refused.Add(1)
		return status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Write requests'")
	})
	if err := s.ask(ctx, count); err != nil {
		return err
	}
	if err := s.created(ctx, count); err != nil {
		return err
	}
	refused.Store(0)
	select {
	case <-time.After(closedFor):
	case <-ctx.Done():
		return ctx.Err()
	}
	opens := time.Now()
	open.Store(true)
	end, err := s.watch(ctx, count, opens.Add(2*time.Minute))
	if err != nil {
		return err
	}
	b.figure("answered 429 in 60 s, for 50 flow runs", "calls", float64(refused.Load()))
	launches := end.launches()
	if len(launches) > 0 {
		b.figure("429 ends → first launched", "s", launches[0].Sub(opens).Seconds())
		b.figure("429 ends → last launched", "s", launches[len(launches)-1].Sub(opens).Seconds())
	}
	end.figures(b, count)
	return nil
}

// created waits until count flow runs exist, however long Prefect takes to create them.
func (s *stack) created(ctx context.Context, count int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		states, err := s.states(ctx)
		if err == nil && states[flowrun.StateScheduled]+states[flowrun.StatePending] >= count {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d flow runs were asked for, and there are %v", count, states), err)
		case <-time.After(time.Second):
		}
	}
}

// requests publishes 1,000 run requests at once, for two processes that share Cloud Run's
// quotas as a new project has them. The stand-in is their Prefect server: it is not what they wait for.
func requests(ctx context.Context, b *bench) error {
	const count, quota = requestsCount, 180
	s, err := b.start(ctx, func(o *local.Options) {
		o.Processes, o.Embedded = 2, true
		o.WritesPerMinute, o.MaxJobs, o.MaxExecutions = quota, 1000, 1000
	})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.ask(ctx, count); err != nil {
		return err
	}
	end, err := s.watch(ctx, count, time.Now().Add(8*time.Minute))
	if err != nil {
		return err
	}
	b.rate(end.launches(), count, quota)
	b.figure("writes refused by Cloud Run", "calls", float64(s.CloudRun.Refused("CreateJob")+s.CloudRun.Refused("DeleteJob")))
	end.figures(b, count)
	return nil
}

// sustained keeps a load of 3,000 flow runs going through quotas three times those of a new
// project, with a job for each and with slots: what counts is how the two compare, and that
// neither stops at the quota of jobs.
func sustained(ctx context.Context, b *bench) error {
	const count, quota = 3000, 540
	rates := map[string]float64{}
	for _, mode := range []string{"job", "slots"} {
		rate, err := sustainedIn(ctx, b, mode, count, quota)
		if err != nil {
			return err
		}
		rates[mode] = rate
	}
	b.figure("emulator: slots, compared with job", "ratio", rates["slots"]/rates["job"])
	return nil
}

func sustainedIn(ctx context.Context, b *bench, mode string, count, quota int) (float64, error) {
	s, err := b.start(ctx, func(o *local.Options) {
		o.Embedded, o.LaunchMode = true, mode
		o.WritesPerMinute, o.MaxJobs = quota, 1000
	})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if err := s.ask(ctx, count); err != nil {
		return 0, err
	}
	end, err := s.watch(ctx, count, time.Now().Add(15*time.Minute))
	if err != nil {
		return 0, err
	}
	launches := end.launches()
	if len(launches) < count/2 {
		return 0, fmt.Errorf("%d of %d flow runs were launched", len(launches), count)
	}
	// The second half: by then the region of mode job is as full as it gets.
	half := launches[len(launches)/2:]
	rate := float64(len(half)-1) / half[len(half)-1].Sub(half[0]).Minutes()
	pause := time.Duration(0)
	for i := 1; i < len(launches); i++ {
		pause = max(pause, launches[i].Sub(launches[i-1]))
	}
	b.figure("emulator: "+mode+", second half of the load", "launches/min", rate)
	b.figure("emulator: "+mode+", of the quota of writes", "ratio", rate/float64(quota))
	b.figure("emulator: "+mode+", longest pause between two launches", "s", pause.Seconds())
	b.figure("emulator: "+mode+", most jobs at a time", "jobs", float64(end.jobs))
	end.figures(b, count)
	return rate, nil
}

// rate writes the launches of each full minute while more wait than the quota takes in one.
func (b *bench) rate(launches []time.Time, count, quota int) {
	least := float64(quota)
	for i := 0; ; i++ {
		from := launches[0].Add(time.Duration(i) * time.Minute)
		before, _ := slices.BinarySearchFunc(launches, from, time.Time.Compare)
		through, _ := slices.BinarySearchFunc(launches, from.Add(time.Minute), time.Time.Compare)
		if count-through <= quota || before == len(launches) {
			break
		}
		b.figure(fmt.Sprintf("minute %d", i+1), "launches", float64(through-before))
		least = min(least, float64(through-before))
	}
	b.figure("the slowest of these minutes, of the quota", "ratio", least/float64(quota))
	b.figure("first launch → last launch", "s", launches[len(launches)-1].Sub(launches[0]).Seconds())
}

// ask publishes run requests as fast as Pub/Sub takes them.
func (s *stack) ask(ctx context.Context, count int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(50)
	for range count {
		g.Go(func() error {
			request, err := json.Marshal(map[string]any{"deployment": s.guide.ID})
			if err != nil {
				return err
			}
			_, err = s.FlowRuns.Publish(ctx, request, nil)
			return err
		})
	}
	return g.Wait()
}

// outcome is what became of flow runs.
type outcome struct {
	states     map[flowrun.StateType]int
	executions []cloudruntest.Execution
	jobs       int // the most at a time
}

// watch waits until count flow runs have ended, or a deadline.
func (s *stack) watch(ctx context.Context, count int, deadline time.Time) (outcome, error) {
	client, err := cloudrun.New(ctx, s.CloudRun.ClientOptions()...)
	if err != nil {
		return outcome{}, err
	}
	defer func() { _ = client.Close() }()
	var o outcome
	for {
		jobs := 0
		for _, err := range client.Jobs(ctx, local.Project, local.Region) {
			if err == nil {
				jobs++
			}
		}
		o.jobs = max(o.jobs, jobs)
		states, err := s.states(ctx)
		if err == nil {
			o.states, o.executions = states, s.CloudRun.Executions()
			ended := 0
			for state, n := range states {
				if state.Terminal() {
					ended += n
				}
			}
			if ended >= count || time.Now().After(deadline) {
				return o, nil
			}
		}
		select {
		case <-ctx.Done():
			return o, errors.Join(err, ctx.Err())
		case <-time.After(5 * time.Second):
		}
	}
}

// states counts the deployment's flow runs by the type of their state.
func (s *stack) states(ctx context.Context) (map[flowrun.StateType]int, error) {
	states := map[flowrun.StateType]int{}
	for fr, err := range prefect.EachFlowRun(ctx, s.Prefect.FlowRuns, prefect.Filter{DeploymentIDs: []string{s.guide.ID}, Sort: prefect.OldestFirst}) {
		if err != nil {
			return nil, err
		}
		states[fr.StateType]++
	}
	return states, nil
}

// launches returns when each execution was created, in order.
func (o outcome) launches() []time.Time {
	var at []time.Time
	for _, x := range o.executions {
		at = append(at, x.Created)
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

func (o outcome) figures(b *bench, count int) {
	byFlowRun := map[string]int{}
	for _, x := range o.executions {
		byFlowRun[x.Labels[cloudrun.LabelFlowRun]]++
	}
	b.figure("flow runs asked for", "flow runs", float64(count))
	b.figure("launched", "flow runs", float64(len(byFlowRun)))
	b.figure("executions beyond one for each flow run", "executions", float64(len(o.executions)-len(byFlowRun)))
	b.figure("completed", "flow runs", float64(o.states[flowrun.StateCompleted]))
	b.figure("crashed", "flow runs", float64(o.states[flowrun.StateCrashed]))
}
