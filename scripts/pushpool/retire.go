package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/scripts/pushpool/retire"
	"github.com/pushpool/pushpool/shared/install"
)

func retirer(in *operator.Installation) *retire.Retirer {
	return retire.New(in.Prefect, in.Settler, in.CloudRun, retire.Installation{
		Name: in.Name, Projects: install.AllProjects(in.Common, in.Core), Regions: in.Regions, WorkPools: in.WorkPools,
	})
}

type drainCommand struct {
	globals
	KeepJobs bool          `help:"Delete no jobs."`
	Timeout  time.Duration `help:"How long to wait for what is under way." default:"24h"`
	Resume   bool          `help:"Let flow runs start again: the way back."`
}

// Help tells what it does.
func (drainCommand) Help() string {
	return `Pauses the work pools, so that nothing starts any more (a worker on the same work pool stops taking flow runs, too), waits
until what is under way has ended, and deletes the installation's jobs. Flow runs that are due meanwhile wait in Prefect.
` + "`pushpool drain --resume`" + ` lets them start.

Examples:

  pushpool drain                 # before terraform destroy
  pushpool drain --keep-jobs     # before maintenance; afterwards: pushpool drain --resume`
}

// Run drains.
func (c *drainCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	r := retirer(in)
	pools := strings.Join(in.WorkPools, ", ")
	doing := "pausing work pools %s; until every function has noticed it takes a few seconds"
	if c.Resume {
		doing = "resuming work pools %s"
	}
	stop := progress(doing, pools)
	err = r.Pause(ctx, !c.Resume)
	stop()
	if err != nil {
		return fmt.Errorf("%w; some or all of the work pools %s may have been changed: repeat the command, or `pushpool drain --resume`", err, pools)
	}
	if c.Resume {
		return c.print(map[string]bool{"paused": false}, func(w io.Writer) {
			fmt.Fprintf(w, "resumed work pools %s: what waits starts within a minute\n", pools)
		})
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	left, err := r.Wait(ctx, func(l retire.Left) {
		fmt.Fprintf(os.Stderr, "· %d flow runs and %d executions are under way\n", len(l.FlowRuns), len(l.Executions))
	})
	if err != nil {
		return fmt.Errorf("%w; the work pools stay paused: repeat the command, or `pushpool drain --resume`", err)
	}
	deleted := 0
	if !c.KeepJobs {
		deleted, err = r.Delete(ctx, left, func(n, of int) { fmt.Fprintf(os.Stderr, "· deleted %d of %d jobs\n", n, of) })
		if err != nil {
			return fmt.Errorf("%w; %d jobs were deleted: repeat the command for the rest", err, deleted)
		}
	}
	return c.print(map[string]any{"paused": true, "deleted_jobs": deleted}, func(w io.Writer) {
		fmt.Fprintf(w, "drained: work pools %s are paused, nothing is under way, %d jobs deleted\n", pools, deleted)
	})
}

type uninstallCheckCommand struct{ globals }

// Help tells what it does.
func (uninstallCheckCommand) Help() string {
	return "Says what `terraform destroy` would leave behind or break, and changes nothing. Its exit status is 0 if that is nothing.\n\n" +
		"Examples:\n\n  pushpool uninstall-check && terraform destroy"
}

// Run checks.
func (c *uninstallCheckCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	done := progress("looking for what is left in %s", strings.Join(in.Regions, ", "))
	left, err := retirer(in).Look(ctx)
	done()
	if err != nil {
		return err
	}
	if err := c.print(left, func(w io.Writer) { describeLeft(w, left) }); err != nil {
		return err
	}
	if !left.Nothing() {
		return errQuiet
	}
	return nil
}

func describeLeft(w io.Writer, l retire.Left) {
	if l.Nothing() {
		fmt.Fprintln(w, "nothing is left: terraform destroy is safe")
		if len(l.Open) > 0 {
			fmt.Fprintf(w, "work pools that are not paused: %s; what is due there after terraform destroy waits until somebody serves them\n", strings.Join(l.Open, ", "))
		}
		return
	}
	for _, fr := range l.FlowRuns {
		fmt.Fprintf(w, "flow run %s (%s) in work pool %s is %s: nobody would tell its end\n", fr.ID, fr.Name, fr.WorkPool, fr.StateType)
	}
	for _, x := range l.Executions {
		fmt.Fprintf(w, "execution %s is alive\n", x)
	}
	for _, j := range l.Jobs {
		fmt.Fprintf(w, "job %s would be left behind\n", j)
	}
	fmt.Fprintln(w, "`pushpool drain` waits for what is under way and deletes the jobs")
}
