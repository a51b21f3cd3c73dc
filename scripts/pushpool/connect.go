package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/pushpool/pushpool/scripts/pushpool/connect"
	"github.com/pushpool/pushpool/scripts/pushpool/request"
	"github.com/pushpool/pushpool/shared/prefect"
)

type connectCommand struct {
	globals
	DryRun  bool              `help:"Say what would be changed, and change nothing."`
	URL     string            `help:"The webhook's address, if not WEBHOOK_URL." placeholder:"URL"`
	Default map[string]string `help:"The default of a job variable, as NAME=VALUE, in work pools that are created: --default memory=2Gi." placeholder:"K=V" mapsep:"none"`
}

// Help shows examples.
func (connectCommand) Help() string {
	return `Creates what Prefect has to have: the work pools of WORK_POOLS, the webhook block and the automation, both named as the
installation is. What is there already is made so, or left as it is; doing it twice changes nothing. Without WEBHOOK_URL it
creates the work pools alone. (The Terraform module prefect_connection does the same.)

New work pools run as FLOW_SERVICE_ACCOUNT, in the first of REGIONS, by way of FLOW_NETWORK where there is one.

Examples:

  pushpool connect --dry-run
  pushpool connect --default memory=2Gi`
}

// Run connects.
func (c *connectCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	setup := prefect.WebhookSetup{
		BlockName: in.Name, AutomationName: in.Name, URL: in.WebhookURL, WorkPools: in.WorkPools,
	}
	if c.URL != "" {
		setup.URL = c.URL
	}
	setup.Secret, _, _ = strings.Cut(string(in.WebhookSecrets), ",")
	var unknown []string
	switch {
	case setup.URL == "" || setup.Secret != "":
	case c.DryRun:
		unknown = append(unknown, "WEBHOOK_SECRETS is not set, so the secret in the webhook block is not compared")
	default:
		return fmt.Errorf("connect Prefect: WEBHOOK_SECRETS is not set; write the secret that the webhook knows (`export WEBHOOK_SECRETS=$(gcloud secrets versions access latest --secret=%s-webhook-secrets --project=%s)`)", in.Name, in.Project)
	}
	done := progress("connecting %s", in.APIURL)
	defer done()
	template, err := connect.Template(ctx, in.Prefect, in.Config, request.Values(c.Default))
	if err != nil {
		return err
	}
	result, err := connect.Run(ctx, in.Prefect, connect.Plan{Webhook: setup, Template: template, ServiceAccount: in.FlowServiceAccount, Dry: c.DryRun})
	if err != nil {
		return fmt.Errorf("%w; repeat the command, which leaves alone what is as it should be", err)
	}
	result.Warnings = append(result.Warnings, unknown...)
	return c.print(result, func(w io.Writer) { describeChanges(w, result, c.DryRun) })
}

func describeChanges(w io.Writer, r connect.Result, dry bool) {
	words := map[string]string{"create": "created", "update": "updated", "none": "as it should be"}
	if dry {
		words["create"], words["update"] = "would be created", "would be updated"
	}
	for _, c := range r.Changes {
		line := c.Object + ": " + words[c.Act]
		if len(c.Fields) > 0 {
			line += " (" + strings.Join(c.Fields, ", ") + ")"
		}
		if c.Note != "" {
			line += "; " + c.Note
		}
		fmt.Fprintln(w, line)
	}
	for _, warning := range r.Warnings {
		fmt.Fprintln(w, "warning: "+warning)
	}
}
