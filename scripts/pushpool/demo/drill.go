package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// drills take away what the system stands on.
var drills = []scenario{
	{"every event lost, of a hundred flow runs", everyEventLost},
	{"the ledger deleted, twice, under a hundred flow runs", ledgerDeleted},
	{"READY for five minutes, with nothing to do", staysReady},
	{"the functions killed again and again, of a hundred flow runs", functionsKilled},
}

// deadlines is the longest that the reconciler lets anything be before its sweep repairs it:
// CANCEL_GRACE, by its default. EVENT_GRACE, GONE_AFTER and the ten seconds that Cloud Run leaves a
// container after SIGTERM pass meanwhile.
const deadlines = time.Minute

// fate is what becomes of some of the hundred, and what Prefect has to say of them in the end.
type fate struct {
	title      string
	count      int
	parameters map[string]any // of the flow
	variables  map[string]any // of the job
	// strike is what happens to the flow run, once it is in the state at; nil: what its container does by itself.
	at     flowrun.StateType
	strike func(ctx context.Context, d *demo, flowRunID, execution string) error
	// state is the flow run's in the end, and its message says this.
	state flowrun.StateType
	says  string
}

// long is a flow that does not end by itself while a drill lasts.
var long = map[string]any{"pause_seconds": 900}

// signal9 is what the verdict says of a container that SIGKILL ended.
const signal9 = "signal 9"

// hundred are as mixed as what processes can do allows.
var hundred = []fate{
	{title: "complete", count: 35, state: flowrun.StateCompleted},
	{
		title: "fail by themselves", count: 5, parameters: map[string]any{"city": "Atlantis"},
		state: flowrun.StateFailed, says: "no coordinates",
	},
	{
		title: "exit with 7", count: 10, variables: map[string]any{"command": "sh -c 'exit 7'"},
		state: flowrun.StateCrashed, says: "exited with code 7",
	},
	{
		title: "end without a report", count: 10, variables: map[string]any{"command": "true"},
		state: flowrun.StateCrashed, says: "exited with code 0 without reporting",
	},
	{
		title: "are killed while they run", count: 10, parameters: long, variables: map[string]any{"pushpool_fast_start": true},
		at: flowrun.StateRunning, strike: func(_ context.Context, d *demo, _, execution string) error { return d.CloudRun.Kill(execution) },
		state: flowrun.StateCrashed, says: signal9,
	},
	{
		title: "lose their job", count: 10, variables: map[string]any{"command": lasting},
		at: flowrun.StatePending, strike: func(ctx context.Context, d *demo, _, execution string) error { return d.deleteJob(ctx, execution) },
		state: flowrun.StateCrashed, says: "was deleted",
	},
	{
		title: "are cancelled while they run", count: 10, parameters: long, variables: map[string]any{"pushpool_fast_start": true},
		at: flowrun.StateRunning, strike: sets(flowrun.StateCancelling), state: flowrun.StateCancelled,
	},
	{
		title: "are cancelled, deaf to SIGTERM", count: 5, variables: map[string]any{"command": `sh -c 'trap "" TERM; while :; do sleep 1; done'`},
		at: flowrun.StatePending, strike: sets(flowrun.StateCancelling), state: flowrun.StateCancelled,
	},
	{
		title: "are set to Crashed while they run", count: 5, parameters: long, variables: map[string]any{"pushpool_fast_start": true},
		at: flowrun.StateRunning, strike: sets(flowrun.StateCrashed), state: flowrun.StateCrashed,
	},
}

// sets is what a person does who sets the state of a flow run.
func sets(state flowrun.StateType) func(ctx context.Context, d *demo, flowRunID, execution string) error {
	return func(ctx context.Context, d *demo, id, _ string) error {
		_, err := d.Prefect.SetState(ctx, id, prefect.Proposal{Type: state})
		return err
	}
}

// fated is one of the hundred.
type fated struct {
	fate
	id        string
	execution cloudruntest.Execution
	now       prefect.FlowRun
}

// crowd are the hundred under way.
type crowd struct {
	*demo
	all []*fated
}

// gather creates the hundred, mixed, as fast as Prefect takes them.
func (d *demo) gather(ctx context.Context) (*crowd, error) {
	if d.CloudRun == nil {
		return nil, errors.New("this needs the stack's own Cloud Run emulator; unset CLOUD_RUN_EMULATOR_HOST")
	}
	c := &crowd{demo: d}
	for n := 0; len(c.all) < 100; n++ { // one of each kind after the other
		for _, f := range hundred {
			if n < f.count {
				c.all = append(c.all, &fated{fate: f})
			}
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, f := range c.all {
		g.Go(func() error {
			// A server on SQLite refuses some of them while it writes; with a key, again is safe.
			n := prefect.NewFlowRun{IdempotencyKey: uuid.NewString(), Parameters: f.parameters, JobVariables: f.variables}
			for {
				fr, _, err := d.Prefect.CreateFlowRun(gctx, d.guide.ID, n)
				if err == nil || gctx.Err() != nil {
					f.id = fr.ID
					return err
				}
			}
		})
	}
	return c, g.Wait()
}

// look reads how the hundred stand, in Prefect and in Cloud Run.
func (c *crowd) look(ctx context.Context) error {
	ids := make([]string, len(c.all))
	for i, f := range c.all {
		ids[i] = f.id
	}
	page, err := c.Prefect.FlowRuns(ctx, prefect.Filter{IDs: ids})
	if err != nil {
		return err
	}
	for _, f := range c.all {
		if i := slices.IndexFunc(page, func(fr prefect.FlowRun) bool { return fr.ID == f.id }); i >= 0 {
			f.now = page[i]
		}
		if x := executions(c.Stack, f.id); len(x) > 0 {
			f.execution = x[0]
		}
	}
	return nil
}

// until waits until so many of them are so, with patience for each ten of them.
func (c *crowd) until(ctx context.Context, what string, count int, so func(*fated) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*patience)
	defer cancel()
	for {
		var lookFailed error
		if lookFailed = c.look(ctx); lookFailed == nil {
			n := 0
			for _, f := range c.all {
				if so(f) {
					n++
				}
			}
			if n >= count {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for this: %d of the flow runs %s (%w)", 10*patience, count, what, errors.Join(lookFailed, ctx.Err(), c.wrong()))
		case <-time.After(time.Second):
		}
	}
}

// launched waits until so many were launched.
func (c *crowd) launched(ctx context.Context, count int) error {
	return c.until(ctx, "were launched", count, func(f *fated) bool { return f.execution.Name != "" })
}

// strike has happen to each what is to happen to it, once it has come so far.
func (c *crowd) strike(ctx context.Context) error {
	err := c.until(ctx, "are as far as they are to come", len(c.all), func(f *fated) bool {
		return f.strike == nil || f.now.StateType == f.at && f.execution.PID != 0
	})
	if err != nil {
		return err
	}
	for _, f := range c.all {
		if f.strike == nil {
			continue
		}
		// A server on SQLite refuses some of it while it writes.
		err := until(ctx, "one of those that "+f.title+" is struck", func(ctx context.Context) (bool, error) {
			err := f.strike(ctx, c.demo, f.id, f.execution.Name)
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// over reports whether the flow run has come to its end and its execution has.
func (f *fated) over() bool { return f.now.StateType == f.state && !f.execution.Completed.IsZero() }

// wrong says what of the hundred is not as it is to be in the end.
func (c *crowd) wrong() error {
	var errs []error
	for _, f := range c.all {
		message := ""
		if f.now.State != nil {
			message = f.now.State.Message
		}
		switch n := len(executions(c.Stack, f.id)); {
		case f.now.StateType != f.state || !strings.Contains(message, f.says):
			errs = append(errs, fmt.Errorf("one of those that %s, %s, is %s: %s", f.title, f.id, f.now.StateType, message))
		case n != 1:
			errs = append(errs, fmt.Errorf("one of those that %s, %s, has %d executions", f.title, f.id, n))
		case f.execution.Completed.IsZero():
			errs = append(errs, fmt.Errorf("the execution of one of those that %s, %s, has outlived it", f.title, f.id))
		}
	}
	if len(errs) > 10 {
		errs = append(errs[:10], fmt.Errorf("and %d more", len(errs)-10))
	}
	return errors.Join(errs...)
}

// end waits until all have come to their end, holds each to its one true state, and tells how they ended.
func (c *crowd) end(ctx context.Context) error {
	if err := c.until(ctx, "have come to their end", len(c.all), (*fated).over); err != nil {
		return err
	}
	if err := c.wrong(); err != nil {
		return err
	}
	c.tell()
	return nil
}

// tell says how many came to which end.
func (c *crowd) tell() {
	for _, f := range hundred {
		c.say("%3d %-34s %s, one execution each", f.count, f.title, f.state)
	}
}

// sweeps waits for so many complete sweeps that begin after a time.
func (d *demo) sweeps(ctx context.Context, count int, after time.Time) error {
	return until(ctx, fmt.Sprintf("%d sweeps since %s", count, after.Format(time.TimeOnly)), func(context.Context) (bool, error) {
		n := 0
		for _, l := range d.Functions.Lines("") {
			if l.Message == "swept" && l.Time.Add(-time.Duration(l.Took*float64(time.Second))).After(after) {
				n++
			}
		}
		return n >= count, nil
	})
}

// everyEventLost holds that sweeps alone bring all to their true ends, in time: nothing that
// Prefect tells and no end of an execution ever arrives, and from a moment on no message at all.
func everyEventLost(ctx context.Context, d *demo) (figures, error) {
	d.say("the automation is disabled and the finalizer's subscription detached: what launches and ends is told to nobody")
	if err := d.Prefect.SetAutomationEnabled(ctx, local.Automation, false); err != nil {
		return figures{}, err
	}
	d.Detach(local.TopicExecutions)
	defer d.Attach(local.TopicExecutions)
	c, err := d.gather(ctx)
	if err == nil {
		err = c.launched(ctx, len(c.all))
	}
	if err == nil {
		d.say("%d flow runs were launched by what sweeps found; the dispatcher's subscription is detached, too", len(c.all))
		d.Detach(local.TopicFlowRuns)
		defer d.Attach(local.TopicFlowRuns)
		err = c.strike(ctx)
	}
	if err != nil {
		return figures{}, err
	}
	struck := time.Now()
	d.say("kills, deletions and cancellations are done; %s of deadlines, then two sweeps", deadlines)
	select {
	case <-time.After(deadlines):
	case <-ctx.Done():
		return figures{}, ctx.Err()
	}
	if err := d.sweeps(ctx, 2, struck.Add(deadlines)); err != nil {
		return figures{}, err
	}
	took := time.Since(struck)
	if err := errors.Join(c.look(ctx), c.wrong()); err != nil {
		return figures{}, err
	}
	c.tell()
	d.say("all of it was true %.0f s after the last thing happened, sweeps %s apart", took.Seconds(), cmp.Or(d.SweepEvery, time.Minute))
	return figures{}, d.Prefect.SetAutomationEnabled(ctx, local.Automation, true)
}

// ledgerDeleted holds that it takes nothing but time: while flow runs are being launched, and once more
// while they are being ended.
func ledgerDeleted(ctx context.Context, d *demo) (figures, error) {
	c, err := d.gather(ctx)
	if err == nil {
		err = c.launched(ctx, len(c.all)/2)
	}
	if err == nil {
		err = d.lose(ctx)
	}
	if err == nil {
		err = c.launched(ctx, len(c.all))
	}
	if err == nil {
		err = c.strike(ctx)
	}
	if err == nil {
		err = d.lose(ctx)
	}
	if err == nil {
		err = c.end(ctx)
	}
	return figures{}, err
}

// functionsKilled holds that a hundred flow runs come to their true ends while the functions are
// killed by SIGKILL again and again, and messages and calls to Cloud Run go wrong.
func functionsKilled(ctx context.Context, d *demo) (figures, error) {
	var t trouble
	end := t.begin(ctx, d.Stack, d.Functions)
	c, err := d.gather(ctx)
	if err == nil {
		err = c.launched(ctx, len(c.all))
	}
	if err == nil {
		err = c.strike(ctx)
	}
	err = errors.Join(err, end())
	if err == nil {
		for _, f := range c.all {
			if f.says == signal9 {
				f.says = "signal" // its number is not told where Cloud Run refused to tell it
			}
		}
		err = c.end(ctx)
	}
	if err != nil {
		return figures{}, err
	}
	var said []string
	for _, kind := range slices.Sorted(maps.Keys(t.counts())) {
		said = append(said, fmt.Sprintf("%d %s", t.counts()[kind], strings.ReplaceAll(kind, "_", " ")))
	}
	d.say("%s", strings.Join(said, ", "))
	return figures{}, nil
}

// lose deletes the ledger.
func (d *demo) lose(ctx context.Context) error {
	how, err := d.LoseLedger(ctx)
	if err == nil {
		d.say("%s", how)
	}
	return err
}
