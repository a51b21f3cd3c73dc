package main

import (
	"context"

	"github.com/pushpool/pushpool/scripts/pushpool/explain"
	"github.com/pushpool/pushpool/shared/install"
)

type explainCommand struct {
	globals
	FlowRunID string `arg:"" help:"The flow run's id." predictor:"flow-run"`
}

// Help shows examples.
func (explainCommand) Help() string {
	return `Says where a flow run stands and why, what happens next by itself, what a person can do, and whether Prefect, the ledger and
Cloud Run agree; then its timeline and links. It changes nothing.

Examples:

  pushpool explain 0198a1c2-…
  pushpool explain 0198a1c2-… --json | jq .cause`
}

// Run explains.
func (c *explainCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	done := progress("reading flow run %s from Prefect, the ledger and Cloud Run", c.FlowRunID)
	facts, err := explain.Gather(ctx, c.FlowRunID, explain.Setting{
		WorkPools: in.WorkPools, Projects: install.AllProjects(in.Common, in.Core), Regions: in.Regions,
		LookAhead: in.LookAhead, CancelGrace: in.CancelGrace, ReportGrace: in.ReportGrace,
		StartDeadline: in.StartDeadline, GoneAfter: in.GoneAfter, UI: in.UIURL(),
	}, in.Prefect, in.CloudRun, in.Records, in.Settler)
	done()
	if err != nil {
		return err
	}
	e := explain.Explain(facts)
	return c.print(e, e.Print)
}
