package doctor

import (
	"context"

	"cloud.google.com/go/pubsub/v2"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
)

// Checks returns what is examined. google is nil on a local stack: what only Google Cloud
// knows is then not here.
func Checks(in *operator.Installation, client *pubsub.Client, google *Google) []Check {
	checks := []Check{
		{"prefect", version(in)},
		{"connection", Connection(in)},
		{"webhook", roundTrip(in)},
		{"ledger", readLedger(in)},
		{"subscriptions", subscriptions(in, client, google)},
		{"dead letters", deadLetters(in, client)},
		{"jobs", jobs(in)},
	}
	for _, c := range []struct {
		name, without string
		run           func() func(context.Context) []Finding
	}{
		{"last tick", "the local stack has no Cloud Scheduler and no Cloud Logging", func() func(context.Context) []Finding { return google.tick(in.Config) }},
		{"audit entries", "the local stack publishes them without Cloud Logging", func() func(context.Context) []Finding { return google.audit(in) }},
		{"quotas", "the local stack has no Cloud Monitoring", func() func(context.Context) []Finding { return google.quotas(in.Config) }},
		{"permissions", "the local stack has no identities", func() func(context.Context) []Finding { return google.permitted(in.Config) }},
		{"agents", "the local stack has no agents, no secrets and no registry", func() func(context.Context) []Finding { return google.around(in) }},
		{"APIs", "the local stack has no Service Usage", func() func(context.Context) []Finding { return google.enabled(in.Project) }},
	} {
		run := func(context.Context) []Finding { return notHere(c.without) }
		if google != nil {
			run = c.run()
		}
		checks = append(checks, Check{c.name, run})
	}
	return checks
}
