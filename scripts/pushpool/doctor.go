package main

import (
	"context"
	"fmt"
	"io"

	"github.com/pushpool/pushpool/scripts/pushpool/doctor"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
)

type doctorCommand struct{ globals }

// Help tells what it does.
func (doctorCommand) Help() string {
	return `Examines the installation and changes nothing: Prefect's version and its side (work pools, webhook block, automation), the
webhook with the secret that Prefect has, the ledger, subscriptions and what waits in them, dead letters, jobs near the limit,
the last tick, audit entries, quotas, permissions of each identity and of Google's agents, secrets and images of flows, APIs. Each finding says what it is, why it
matters, and what to do.

The exit status is 0 where nothing is wrong, 1 where there is a problem, and 2 where there is none but something could not be
found out. Of your own it takes roles/viewer and roles/iam.securityReviewer on the project.

Examples:

  pushpool doctor
  pushpool doctor --json | jq '.findings[] | select(.status == "problem")'`
}

// Run examines.
func (c *doctorCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	client, err := in.PubSub(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	google, err := c.google(ctx, in)
	if err != nil {
		return err
	}
	checks := doctor.Checks(in, client, google)
	done := progress("examining %s; a check takes 45 s at most", in.Project)
	found := doctor.Examine(ctx, checks)
	done()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("examine the installation: %w", context.Cause(ctx))
	}
	problems, unknown := doctor.Count(found, doctor.Problem), doctor.Count(found, doctor.Unknown)
	err = c.print(map[string]any{"problems": problems, "unknown": unknown, "findings": found}, func(w io.Writer) { doctor.Print(w, found) })
	switch {
	case err != nil:
		return err
	case problems > 0:
		return errQuiet
	case unknown > 0:
		return errUnknown
	}
	return nil
}

// google is nil where the installation is on one machine.
func (c *doctorCommand) google(ctx context.Context, in *operator.Installation) (*doctor.Google, error) {
	if in.CloudRunEmulator != "" || in.PubSubEmulator != "" {
		return nil, nil
	}
	return doctor.NewGoogle(ctx)
}
