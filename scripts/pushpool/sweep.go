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
	EnvFile string `help:"As of the other commands." placeholder:"FILE" env:"PUSHPOOL_ENV_FILE" predictor:"file"`
	DryRun  bool   `help:"Print the drift between Prefect, Cloud Run and the ledger, and what a sweep would do about it. Nothing is changed."`
}

// Help shows examples.
func (sweepCommand) Help() string {
	return `A ledger in memory, as of the local stack, is out of its reach: it looks as where the ledger was lost.

Examples:

  pushpool sweep --dry-run`
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
	acts, err := reconciler.DryRun(ctx, install.Surroundings{Environ: cfg.Environ, Log: os.Stderr, Memory: ledger.NewMemory()})
	drift(os.Stdout, acts)
	return err
}

// routine is what a sweep does where nothing is out of order.
var routine = map[sweep.Kind]bool{
	sweep.Timer: true, sweep.Wake: true, sweep.WakeTimer: true, sweep.Heartbeat: true, sweep.Poll: true, sweep.Dispatch: true, sweep.DeleteJob: true,
}

// drift prints a table of what is out of order, and counts the routine.
func drift(out io.Writer, acts []sweep.Act) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	apart, usual := 0, 0
	for _, a := range acts {
		if routine[a.Kind] && a.FlowRunID == "" || a.Kind == sweep.DeleteJob {
			usual++
			continue
		}
		if apart++; apart == 1 {
			fmt.Fprintln(table, "FLOW RUN\tFOUND\tREPAIR\t")
		}
		detail, _, _ := strings.Cut(a.Detail, "\n")
		fmt.Fprintf(table, "%s\t%s\t%s: %s\t\n", a.FlowRunID, a.Found, a.Kind, detail)
	}
	_ = table.Flush()
	if apart == 0 {
		fmt.Fprintln(out, "Prefect, Cloud Run and the ledger agree.")
	}
	fmt.Fprintf(out, "%d to repair; besides, a sweep would do %d things as usual: dispatches, timers, heartbeats, jobs past their time.\n", apart, usual)
}
