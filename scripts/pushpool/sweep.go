package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/pushpool/pushpool/functions/reconciler"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/sweep"
)

type sweepCommand struct {
	globals
	DryRun bool `help:"Print the drift between Prefect, Cloud Run and the ledger, and what a sweep would do about it. Nothing is changed."`
}

// Help shows examples.
func (sweepCommand) Help() string {
	return `A ledger in memory, as of the local stack, is out of its reach: it looks as where the ledger was lost.

Examples:

  pushpool sweep --dry-run
  pushpool sweep --dry-run --json | jq .repairs`
}

// Run prints what a sweep would do, configured by the reconciler's environment variables.
func (c *sweepCommand) Run(ctx context.Context) error {
	if !c.DryRun {
		return errors.New("the reconciler sweeps each minute by itself; write --dry-run to see what it would do now")
	}
	cfg, err := operator.Load(c.EnvFile, os.Environ())
	if err != nil {
		return err
	}
	done := progress("comparing Prefect, Cloud Run and the ledger")
	acts, err := reconciler.DryRun(ctx, install.Surroundings{Environ: cfg.Environ, Log: os.Stderr, Memory: ledger.NewMemory()})
	done()
	d := driftOf(acts)
	return errors.Join(c.print(d, d.print), err)
}

// routine is what a sweep does where nothing is out of order.
var routine = map[sweep.Kind]bool{
	sweep.Timer: true, sweep.Wake: true, sweep.WakeTimer: true, sweep.Heartbeat: true, sweep.Poll: true, sweep.Dispatch: true, sweep.DeleteJob: true,
}

// drift is what a sweep would do: repairs of what is out of order, and so many things as usual.
type drift struct {
	Repairs []sweep.Act `json:"repairs"`
	AsUsual int         `json:"as_usual"`
}

func driftOf(acts []sweep.Act) drift {
	d := drift{Repairs: []sweep.Act{}}
	for _, a := range acts {
		if routine[a.Kind] && a.FlowRunID == "" || a.Kind == sweep.DeleteJob {
			d.AsUsual++
			continue
		}
		d.Repairs = append(d.Repairs, a)
	}
	return d
}

func (d drift) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(d.Repairs) > 0 {
		fmt.Fprintln(table, "FLOW RUN\tFOUND\tREPAIR\t")
	}
	for _, a := range d.Repairs {
		detail, _, _ := strings.Cut(a.Detail, "\n")
		fmt.Fprintf(table, "%s\t%s\t%s: %s\t\n", a.FlowRunID, a.Found, a.Kind, detail)
	}
	_ = table.Flush()
	if len(d.Repairs) == 0 {
		fmt.Fprintln(out, "Prefect, Cloud Run and the ledger agree.")
	}
	fmt.Fprintf(out, "%d to repair; besides, a sweep would do %d things as usual: dispatches, timers, heartbeats, jobs past their time.\n", len(d.Repairs), d.AsUsual)
}
