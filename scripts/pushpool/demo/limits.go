package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// limits are scenarios of many flow runs that want few slots, on a real server. The last one
// leaves its flow runs behind.
var limits = []scenario{
	{"30 flow runs in a work pool of 3", poolOf3},
	{"a second installation on the same work pool", secondInstallation},
	{"Prefect's own worker on the same work pool", workerBeside},
	{"200 flow runs wait for the one slot of their deployment", blocked},
}

// RunLimits is Run for the scenarios about limits. The flow is the stand-in, so that it is not
// the flow's start that is waited for.
func RunLimits(ctx context.Context, out io.Writer, o local.Options, numbers []int, keep bool) (ok bool, err error) {
	o.LightFlow = true
	return run(ctx, out, o, limits, numbers, keep)
}

// poolOf3: alone on its work pool, an installation never has more PENDING or RUNNING than the limit.
func poolOf3(ctx context.Context, d *demo) (figures, error) {
	if err := d.patch(ctx, "/work_pools/"+local.WorkPool, map[string]any{"concurrency_limit": 3}); err != nil {
		return figures{}, err
	}
	defer func() {
		_ = d.patch(context.WithoutCancel(ctx), "/work_pools/"+local.WorkPool, map[string]any{"concurrency_limit": nil})
	}()
	watch := d.watch(ctx, prefect.Filter{WorkPools: []string{local.WorkPool}})
	ids, err := d.createMany(ctx, d.guide.ID, 30, func(int) prefect.NewFlowRun { return short(nil) })
	if err != nil {
		return figures{}, err
	}
	if err := d.each(ctx, ids, d.ranOnce); err != nil {
		return figures{}, err
	}
	return figures{}, d.within(watch, "the work pool", 3)
}

// secondInstallation: two installations are told of the same flow runs.
func secondInstallation(ctx context.Context, d *demo) (figures, error) {
	second, err := local.Start(ctx, local.Options{
		Beside: d.Stack, LightFlow: true, EntryDelay: d.EntryDelay, SweepEvery: d.SweepEvery, Output: d.Output, Say: d.Say,
	})
	if err != nil {
		return figures{}, err
	}
	defer second.Close()
	defer func() {
		_ = second.Prefect.SetAutomationEnabled(context.WithoutCancel(ctx), second.Name, false) // nobody answers it any more
	}()
	return figures{}, d.contest(ctx, "the second", second)
}

// workerBeside: Prefect's worker asks each second for what this installation is told of.
func workerBeside(ctx context.Context, d *demo) (figures, error) {
	if d.Embedded {
		return figures{}, fmt.Errorf("this needs a real Prefect; leave --embedded out")
	}
	stop, err := d.StartWorker(ctx)
	if err != nil {
		return figures{}, err
	}
	defer stop()
	return figures{}, d.contest(ctx, "the worker", nil)
}

// contest has this installation and another, or a worker where that is nil, serve the same flow
// runs, some of a deployment of 2, until each has got some of them. Each flow run is claimed and
// runs once, and the deployment's limit holds.
func (d *demo) contest(ctx context.Context, name string, other *local.Stack) error {
	two := 2
	pair, err := d.Prefect.CreateDeployment(ctx, prefect.NewDeployment{
		FlowID: d.guide.FlowID, Name: "pair", WorkPool: local.WorkPool, Entrypoint: d.guide.Entrypoint, Path: d.guide.Path, ConcurrencyLimit: &two,
	})
	if err != nil {
		return err
	}
	watch := d.watch(ctx, prefect.Filter{DeploymentIDs: []string{pair.ID}})
	var ours, theirs int
	for round := 1; (ours == 0 || theirs == 0) && round <= 5; round++ {
		start := time.Now().Add(5 * time.Second)
		var ids []string
		for _, deployment := range []string{pair.ID, d.guide.ID} {
			// One after the other, so that there is something to take whenever somebody asks.
			made, err := d.createMany(ctx, deployment, 12, func(i int) prefect.NewFlowRun {
				at := start.Add(time.Duration(i) * 300 * time.Millisecond)
				return short(&at)
			})
			if err != nil {
				return err
			}
			ids = append(ids, made...)
		}
		err := d.each(ctx, ids, func(ctx context.Context, id string) error {
			fr, err := d.ranByOne(ctx, id)
			if err != nil {
				return err
			}
			here, there := len(executions(d.Stack, id)), 0
			switch {
			case other != nil:
				there = len(executions(other, id))
			case !strings.HasPrefix(fr.InfrastructurePID, "pp-"):
				there = 1 // a process of the worker's
			}
			if here+there != 1 {
				return fmt.Errorf("flow run %s was executed %d times by this installation and %d times by %s", id, here, there, name)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, id := range ids {
			ours += len(executions(d.Stack, id))
		}
		theirs = round*len(ids) - ours
		d.say("this installation executed %d flow runs, %s %d; each was claimed once, and executed once", ours, name, theirs)
	}
	if ours == 0 || theirs == 0 {
		return fmt.Errorf("there was no contest: this installation took %d flow runs, %s %d", ours, name, theirs)
	}
	return d.within(watch, "the deployment", two)
}

// blocked: what waits for a slot of one deployment neither delays another deployment nor keeps
// the dispatcher busy.
func blocked(ctx context.Context, d *demo) (figures, error) {
	before, err := d.launchTimes(ctx)
	if err != nil {
		return figures{}, err
	}
	one := 1
	single, err := d.Prefect.CreateDeployment(ctx, prefect.NewDeployment{
		FlowID: d.guide.FlowID, Name: "single", WorkPool: local.WorkPool, Entrypoint: d.guide.Entrypoint, Path: d.guide.Path, ConcurrencyLimit: &one,
	})
	if err != nil {
		return figures{}, err
	}
	watch := d.watch(ctx, prefect.Filter{DeploymentIDs: []string{single.ID}})
	const count = 200
	if _, err := d.createMany(ctx, single.ID, count, func(int) prefect.NewFlowRun {
		return prefect.NewFlowRun{IdempotencyKey: uuid.NewString(), Parameters: map[string]any{"pause_seconds": 3600}}
	}); err != nil {
		return figures{}, err
	}
	err = until(ctx, "one flow run runs, and 199 wait", func(ctx context.Context) (bool, error) {
		states := map[string]int{}
		for fr, err := range prefect.EachFlowRun(ctx, d.Prefect.FlowRuns, prefect.Filter{DeploymentIDs: []string{single.ID}}) {
			if err != nil {
				return false, err
			}
			states[fr.StateName]++
		}
		return states[prefect.AwaitingSlot] == count-1 && states["Running"] == 1, nil
	})
	if err != nil {
		return figures{}, err
	}
	meanwhile, err := d.launchTimes(ctx)
	if err != nil {
		return figures{}, err
	}
	d.say("created → accepted by Cloud Run, another deployment: %.2f s before, %.2f s beside them", before.Seconds(), meanwhile.Seconds())
	handled := len(d.Functions.Lines(""))
	time.Sleep(20 * time.Second)
	d.say("while nothing comes free, 199 waiting flow runs make %d lines of the functions in 20 s, with a sweep every %s", len(d.Functions.Lines(""))-handled, d.SweepEvery)
	return figures{eventToLaunch: meanwhile}, d.within(watch, "the deployment", one)
}

// launchTimes returns how long it takes until Cloud Run has the job of a flow run of the guide's
// deployment, the median of five.
func (d *demo) launchTimes(ctx context.Context) (time.Duration, error) {
	var all []time.Duration
	for range 5 {
		created := time.Now()
		ids, err := d.createMany(ctx, d.guide.ID, 1, func(int) prefect.NewFlowRun { return short(nil) })
		if err != nil {
			return 0, err
		}
		if err := d.ranOnce(ctx, ids[0]); err != nil {
			return 0, err
		}
		all = append(all, executions(d.Stack, ids[0])[0].JobCreated.Sub(created))
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

// short is a flow run of a second. A worker of the type process would start the real engine
// where no command is given.
func short(at *time.Time) prefect.NewFlowRun {
	return prefect.NewFlowRun{
		IdempotencyKey: uuid.NewString(), ScheduledTime: at, Parameters: map[string]any{"pause_seconds": 1},
		JobVariables: map[string]any{"command": "prefect flow-run execute"},
	}
}

func (d *demo) createMany(ctx context.Context, deploymentID string, count int, n func(i int) prefect.NewFlowRun) ([]string, error) {
	ids := make([]string, count)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i := range ids {
		g.Go(func() error {
			flowRun := n(i) // one with a key, so that a server that is busy can be asked again
			for {
				fr, _, err := d.Prefect.CreateFlowRun(ctx, deploymentID, flowRun)
				ids[i] = fr.ID
				if err == nil || ctx.Err() != nil || flowrun.FaultOf(err) != flowrun.Refused {
					return err
				}
			}
		})
	}
	return ids, g.Wait()
}

func (d *demo) each(ctx context.Context, ids []string, check func(ctx context.Context, id string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2) // the server is busy enough
	for _, id := range ids {
		g.Go(func() error { return check(ctx, id) })
	}
	return g.Wait()
}

// ranOnce waits until the flow run is COMPLETED, after one claim and one execution of ours.
func (d *demo) ranOnce(ctx context.Context, id string) error {
	if _, err := d.ranByOne(ctx, id); err != nil {
		return err
	}
	return d.once(id)
}

// ranByOne waits until the flow run is COMPLETED, after one claim by whomever.
func (d *demo) ranByOne(ctx context.Context, id string) (prefect.FlowRun, error) {
	fr, err := d.reaches(ctx, id, flowrun.StateCompleted)
	if err != nil {
		return fr, err
	}
	states, err := d.Prefect.FlowRunStates(ctx, id)
	if err != nil {
		return fr, err
	}
	var after []flowrun.StateType // it was claimed
	for _, s := range states {
		// A worker tells of its claim a second time, by another name; and the time of its claim is
		// its own clock's, which can be before that of a refusal that came first.
		if (s.Type != flowrun.StateScheduled || len(after) > 0) && s.Name != "Submitting" && s.Name != prefect.AwaitingSlot {
			after = append(after, s.Type)
		}
	}
	if want := []flowrun.StateType{flowrun.StatePending, flowrun.StateRunning, flowrun.StateCompleted}; !slices.Equal(after, want) {
		err = fmt.Errorf("flow run %s was %v, not %v: somebody wrote to it who had not claimed it", id, after, want)
	}
	return fr, err
}

// watched is the most flow runs that were PENDING or RUNNING at a time.
type watched struct {
	stop func()
	most atomic.Int64
	done chan struct{}
}

// watch asks again and again how many flow runs of the filter are PENDING or RUNNING.
func (d *demo) watch(ctx context.Context, f prefect.Filter) *watched {
	ctx, cancel := context.WithCancel(ctx)
	w := &watched{stop: cancel, done: make(chan struct{})}
	f.StateTypes = []prefect.StateType{flowrun.StatePending, flowrun.StateRunning}
	go func() {
		defer close(w.done)
		for ctx.Err() == nil {
			if found, err := d.Prefect.FlowRuns(ctx, f); err == nil {
				w.most.Store(max(w.most.Load(), int64(len(found))))
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return w
}

// within ends the watch, and fails where the limit was exceeded, or nobody came near it.
func (d *demo) within(w *watched, of string, limit int) error {
	w.stop()
	<-w.done
	most := int(w.most.Load())
	d.say("at most %d flow runs of %s were PENDING or RUNNING at a time; its limit is %d", most, of, limit)
	if most != limit {
		return fmt.Errorf("at most %d flow runs of %s were PENDING or RUNNING at a time, want %d", most, of, limit)
	}
	return nil
}

// patch changes what the product itself never changes.
func (d *demo) patch(ctx context.Context, path string, fields map[string]any) error {
	body, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return until(ctx, "PATCH "+path, func(ctx context.Context) (bool, error) { // a server on SQLite is too busy now and then
		req, err := http.NewRequestWithContext(ctx, http.MethodPatch, d.APIURL()+path, bytes.NewReader(body))
		if err != nil {
			return false, err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false, err
		}
		_ = resp.Body.Close()
		if resp.StatusCode > 299 {
			return false, fmt.Errorf("PATCH %s: %s", path, resp.Status)
		}
		return true, nil
	})
}
