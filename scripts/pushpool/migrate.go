package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/diff"
	"golang.org/x/term"

	"github.com/pushpool/pushpool/functions/dispatcher"
	"github.com/pushpool/pushpool/scripts/pushpool/doctor"
	"github.com/pushpool/pushpool/scripts/pushpool/migrate"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/prefect"
)

type migrateCommand struct {
	Plan   migratePlanCommand   `cmd:"" help:"Say what would be moved, and what will differ. Changes nothing."`
	Switch migrateSwitchCommand `cmd:"" help:"Move the deployments, while the worker goes on with what it has."`
	Back   migrateBackCommand   `cmd:"" help:"Move them back."`
}

// Help tells how it goes.
func (migrateCommand) Help() string {
	return `Moves deployments from the work pool of a worker to one of the installation, one after the other, while both serve. No flow run
is launched by both and none is lost: flow runs that are there stay with the worker, and what a schedule laid ahead is made
anew in the new work pool. The worker is stopped when nothing is left in the old one.

Examples:

  pushpool migrate plan --from workers --to cloud-run
  pushpool migrate switch --from workers --to cloud-run --deployment etl/prod   # one first
  pushpool migrate switch --from workers --to cloud-run --wait                  # the others; ends when the worker can be stopped
  pushpool migrate back`
}

// route says from where to where.
type route struct {
	From       string   `required:"" help:"The work pool that a worker serves." placeholder:"POOL"`
	To         string   `required:"" help:"The installation's work pool. A copy of the other one, if it is not there." placeholder:"POOL" predictor:"work-pool"`
	Deployment []string `help:"Only this one, as FLOW/DEPLOYMENT; may be repeated." placeholder:"NAME"`
}

func (r route) plan(ctx context.Context, in *operator.Installation) (migrate.Plan, error) {
	launcher, err := newLauncher(ctx, in)
	if err != nil {
		return migrate.Plan{}, err
	}
	done := progress("comparing the jobs of the deployments of work pool %s", r.From)
	defer done()
	plan, err := migrate.Make(ctx, in.Prefect, r.From, r.To, r.Deployment, in.WorkPools, func(ctx context.Context, d prefect.Deployment, pool string) (string, error) {
		return difference(ctx, launcher, flowRunOf(d, pool))
	})
	if err != nil {
		return plan, err
	}
	for _, f := range doctor.Connection(in)(ctx) {
		if f.Status == doctor.Problem && !plan.Create {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: %s (%s)", f.What, f.Why, f.Mend))
		}
	}
	return plan, nil
}

// flowRunOf is a flow run that a deployment might have.
func flowRunOf(d prefect.Deployment, pool string) prefect.FlowRun {
	return prefect.FlowRun{
		ID: uuid.Nil.String(), Name: "name-of-flow-run", FlowID: d.FlowID, DeploymentID: d.ID, WorkPoolName: pool, WorkQueueName: d.WorkQueueName,
	}
}

func newLauncher(ctx context.Context, in *operator.Installation) (*launch.Launcher, error) {
	launcher, err := dispatcher.NewLauncher(ctx, install.Surroundings{Environ: in.Environ, Log: io.Discard, Memory: ledger.NewMemory()})
	if err != nil {
		return nil, fmt.Errorf("the dispatcher's variables are needed to render what it would launch:\n%w", err)
	}
	return launcher, nil
}

// difference is between the worker's job and ours, but for our labels.
func difference(ctx context.Context, l *launch.Launcher, fr prefect.FlowRun) (string, error) {
	p, err := l.Preview(ctx, fr)
	if err != nil {
		return "", err
	}
	var sides [2][]byte
	for i, job := range []*runpb.Job{p.Worker.Job, p.Launch.Job} {
		data, err := jsonOf(job)
		if err != nil {
			return "", err
		}
		var plain any
		if err := json.Unmarshal(data, &plain); err != nil {
			return "", err
		}
		if data, err = json.Marshal(withoutLabels(plain)); err != nil {
			return "", err
		}
		sides[i] = lines(data)
	}
	return string(diff.Diff("worker", sides[0], "pushpool", sides[1])), nil
}

// withoutLabels leaves out what we add to every job to find it again.
func withoutLabels(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if v[key] = withoutLabels(value); strings.HasPrefix(key, "pushpool-") {
				delete(v, key)
			}
		}
	case []any:
		for i := range v {
			v[i] = withoutLabels(v[i])
		}
	}
	return v
}

type migratePlanCommand struct {
	globals
	route
}

// Run plans. The exit status is 1 where a deployment cannot be moved.
func (c *migratePlanCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	plan, err := c.plan(ctx, in)
	if err != nil {
		return err
	}
	if err := c.print(plan, plan.Print); err != nil {
		return err
	}
	if plan.Refused() {
		return errQuiet
	}
	return nil
}

// saved is where a migration is kept.
type saved struct {
	State string `help:"The file that keeps what was moved, for a repetition and for the way back." default:"pushpool-migration.json" placeholder:"FILE" predictor:"file"`
}

type migrateSwitchCommand struct {
	globals
	route
	saved
	Yes  bool `short:"y" help:"Do not ask."`
	Wait bool `help:"Wait until the worker can be stopped: nothing is left in its work pool."`
}

// Run moves.
func (c *migrateSwitchCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	plan, err := c.plan(ctx, in)
	if err != nil {
		return err
	}
	state, err := migrate.Load(c.State)
	if err != nil && !errors.Is(err, migrate.ErrNoState) {
		return err
	}
	if state, err = plan.Resume(state); err != nil {
		return err
	}
	out := io.Writer(os.Stdout)
	if c.JSON {
		out = os.Stderr
	}
	plan.Print(out)
	if plan.Refused() {
		return errors.New("nothing is moved while a deployment is refused; mend it, or name the others with --deployment")
	}
	if ok, err := agreed(ctx, c.Yes, fmt.Sprintf("move %d deployments from work pool %s to %s", len(plan.Deployments), c.From, c.To)); !ok {
		return err
	}
	done := progress("moving deployments from work pool %s to %s", c.From, c.To)
	defer done()
	if err := plan.Prepare(ctx, in.Prefect); err != nil {
		return err
	}
	mover := migrate.New(in.Prefect, c.State)
	mover.Tell = func(name, pool string, again int) { tellMoved(out, name, pool, again) }
	if err := mover.Switch(ctx, &state); err != nil {
		return err
	}
	stays, err := migrate.Remaining(ctx, in.Prefect, c.From)
	if err != nil {
		return err
	}
	if c.Wait {
		if stays, err = c.wait(ctx, in.Prefect); err != nil {
			return err
		}
	}
	return c.print(map[string]any{"moved": len(plan.Deployments), "state": c.State, "stays": stays}, func(w io.Writer) {
		stays.Print(w, c.From)
		if stays.Count() == 0 {
			fmt.Fprintf(w, "the worker of work pool %s can be stopped, if no other deployment uses it\n", c.From)
		}
		fmt.Fprintf(w, "the way back: pushpool migrate back --state %s\n", c.State)
	})
}

func tellMoved(w io.Writer, name, pool string, again int) {
	fmt.Fprintf(w, "moved   %s to work pool %s", name, pool)
	if again > 0 {
		fmt.Fprintf(w, "; flow runs of its schedules that are due soon and were made again: %d", again)
	}
	fmt.Fprintln(w)
}

// between is between two looks at what is left.
const between = 5 * time.Second

func (c *migrateSwitchCommand) wait(ctx context.Context, p *prefect.Client) (migrate.Stays, error) {
	for {
		stays, err := migrate.Remaining(ctx, p, c.From)
		if err != nil || stays.Count() == 0 {
			return stays, err
		}
		fmt.Fprintf(os.Stderr, "· %d flow runs are left in work pool %s\n", stays.Count(), c.From)
		select {
		case <-time.After(between):
		case <-ctx.Done():
			return stays, fmt.Errorf("wait for the end of what is left in work pool %s: %w; the deployments are moved, and the worker is still needed", c.From, ctx.Err())
		}
	}
}

type migrateBackCommand struct {
	globals
	saved
	Yes bool `short:"y" help:"Do not ask."`
}

// Run moves back.
func (c *migrateBackCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	state, err := migrate.Load(c.State)
	if err != nil {
		return fmt.Errorf("%w; write --state with the file that `pushpool migrate switch` named", err)
	}
	moved := len(slices.DeleteFunc(slices.Clone(state.Deployments), func(m migrate.Moved) bool { return !m.Moved }))
	if ok, err := agreed(ctx, c.Yes, fmt.Sprintf("move %d deployments back from work pool %s to %s", moved, state.To, state.From)); !ok {
		return err
	}
	out := io.Writer(os.Stdout)
	if c.JSON {
		out = os.Stderr
	}
	mover := migrate.New(in.Prefect, c.State)
	mover.Tell = func(name, pool string, again int) { tellMoved(out, name, pool, again) }
	done := progress("moving deployments back to work pool %s", state.From)
	defer done()
	left, err := mover.Back(ctx, &state)
	if err != nil {
		return err
	}
	return c.print(map[string]any{"moved": moved - len(left), "left": append([]string{}, left...)}, func(w io.Writer) {
		for _, name := range left {
			fmt.Fprintf(w, "left    %s: it is gone, or somebody moved it to another work pool\n", name)
		}
		fmt.Fprintf(w, "%d deployments are back in work pool %s; flow runs that were created meanwhile end in %s\n", moved-len(left), state.From, state.To)
	})
}

// agreed asks whether it is meant.
func agreed(ctx context.Context, yes bool, what string) (bool, error) {
	if yes {
		return true, nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return false, fmt.Errorf("repeat it with --yes to %s", what)
	}
	fmt.Fprintf(os.Stderr, "%s? [y/N] ", what)
	answer, err := unlessInterrupted(ctx, func() (string, error) { return bufio.NewReader(os.Stdin).ReadString('\n') })
	if err != nil {
		fmt.Fprintln(os.Stderr)
		return false, fmt.Errorf("nothing was changed: %w", err)
	}
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "y"), nil
}
