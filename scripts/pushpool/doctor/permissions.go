package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/api/policytroubleshooter/v3"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
)

// Grant is a permission that an identity needs.
type Grant struct {
	// Identity is the account's name without the installation's: "dispatcher".
	Identity   string
	Permission string
	// On is the full resource name (https://cloud.google.com/iam/docs/full-resource-names).
	On string
	// In is the database where the grant is bound to one by a condition, else empty.
	In string
}

// Grants are those of an installation as the module makes it (terraform/README.md, "Who may
// do what"); terraform/tests compares. Secrets and images are left out: without them a function
// does not start, or a job is not made, and both say so.
func Grants(cfg operator.Config) []Grant {
	project := "//cloudresourcemanager.googleapis.com/projects/" + cfg.Project
	topic := func(id string) string { return "//pubsub.googleapis.com/projects/" + cfg.Project + "/topics/" + id }
	account := func(name string) string {
		return "//iam.googleapis.com/projects/" + cfg.Project + "/serviceAccounts/" + email(cfg, name)
	}
	service := func(function string) string {
		location, _, _ := strings.Cut(cfg.TasksQueue, "/queues/")
		return "//run.googleapis.com/" + location + "/services/" + cfg.Name + "-" + function
	}
	database := "projects/" + cfg.Project + "/databases/" + cfg.Database
	queue := "//cloudtasks.googleapis.com/" + cfg.TasksQueue

	const publish, actAs, invoke = "pubsub.topics.publish", "iam.serviceAccounts.actAs", "run.routes.invoke"
	grants := []Grant{
		{"tasks", publish, topic(cfg.FlowRuns), ""},
		{"scheduler", invoke, service("reconciler"), ""},
		{"dispatcher-push", invoke, service("dispatcher"), ""},
		{"finalizer-push", invoke, service("finalizer"), ""},
		{"dispatcher", "run.jobs.create", project, ""},
		{"dispatcher", "run.jobs.update", project, ""},
		{"dispatcher", "run.jobs.run", project, ""},
		{"dispatcher", "run.jobs.list", project, ""},
		{"dispatcher", actAs, account("flows"), ""},
		{"dispatcher", publish, topic(cfg.FlowRuns + "-dead-letter"), ""},
		{"finalizer", publish, topic(cfg.Executions + "-dead-letter"), ""},
		{"reconciler", "run.jobs.list", project, ""},
	}
	if cfg.WebhookURL != "" {
		grants = append(grants, Grant{"webhook", publish, topic(cfg.FlowRuns), ""})
	}
	for _, who := range []string{"dispatcher", "finalizer", "reconciler"} {
		for _, permission := range []string{
			"run.jobs.get", "run.jobs.delete", "run.executions.get", "run.executions.list", "run.executions.cancel", "run.tasks.get",
		} {
			grants = append(grants, Grant{who, permission, project, ""})
		}
		for _, permission := range []string{"datastore.entities.get", "datastore.entities.list", "datastore.entities.create", "datastore.entities.update", "datastore.entities.delete"} {
			grants = append(grants, Grant{who, permission, project, database})
		}
		grants = append(grants,
			Grant{who, publish, topic(cfg.FlowRuns), ""}, Grant{who, actAs, account("tasks"), ""},
			Grant{who, "cloudtasks.tasks.create", queue, ""}, Grant{who, "cloudtasks.tasks.get", queue, ""})
		if cfg.LogReads > 0 {
			grants = append(grants, Grant{who, "logging.views.access", "//logging.googleapis.com/projects/" + cfg.Project + "/" + cfg.LogView, ""})
		}
		if cfg.Lifecycle != "" {
			grants = append(grants, Grant{who, publish, topic(cfg.Lifecycle), ""})
		}
	}
	return grants
}

// email is the module's name for an identity, but for the one that the configuration names.
func email(cfg operator.Config, name string) string {
	if name == "tasks" && cfg.TasksServiceAccount != "" {
		return cfg.TasksServiceAccount
	}
	return fmt.Sprintf("%s-%s@%s.iam.gserviceaccount.com", cfg.Name, name, cfg.Project)
}

// atOnce is how many questions about policies are asked at a time.
const atOnce = 8

// permitted asks of each grant whether it is there. It asks Policy Troubleshooter, which
// answers about any identity; testIamPermissions answers about its caller only, so that
// somebody would have to be allowed to act as every identity.
func (g *Google) permitted(cfg operator.Config) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		grants := Grants(cfg)
		answers := make([]string, len(grants))
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(atOnce)
		for i, grant := range grants {
			group.Go(func() (err error) {
				answers[i], err = g.access(ctx, cfg, grant)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return []Finding{refused("ask Policy Troubleshooter what the identities may do", err, cfg.Project, "roles/iam.securityReviewer")}
		}
		missing, hidden := map[string][]string{}, 0
		for i, grant := range grants {
			switch answers[i] {
			case "CAN_ACCESS":
			case "CANNOT_ACCESS":
				missing[grant.Identity] = append(missing[grant.Identity], grant.Permission+" on "+grant.On)
			default:
				hidden++
			}
		}
		var found []Finding
		for _, identity := range slices.Sorted(maps.Keys(missing)) {
			found = append(found, Finding{
				Status: Problem, What: fmt.Sprintf("%s may not %s", email(cfg, identity), strings.Join(missing[identity], ", ")),
				Why: "what it needs that for fails, and is tried again until the message is a dead letter", Mend: "terraform apply",
			})
		}
		if hidden > 0 {
			found = append(found, Finding{
				Status: Unknown, What: fmt.Sprintf("of %d permissions, %d cannot be told: you may not see every policy", len(grants), hidden),
				Mend: fmt.Sprintf("gcloud projects add-iam-policy-binding %s --member=user:YOU --role=roles/iam.securityReviewer", cfg.Project),
			})
		}
		if len(found) == 0 {
			return []Finding{ok("%d permissions of the identities are there", len(grants))}
		}
		return found
	}
}

func (g *Google) access(ctx context.Context, cfg operator.Config, grant Grant) (string, error) {
	tuple := &policytroubleshooter.GoogleCloudPolicytroubleshooterIamV3AccessTuple{
		Principal: email(cfg, grant.Identity), Permission: grant.Permission, FullResourceName: grant.On,
	}
	if grant.In != "" {
		tuple.ConditionContext = &policytroubleshooter.GoogleCloudPolicytroubleshooterIamV3ConditionContext{
			Resource: &policytroubleshooter.GoogleCloudPolicytroubleshooterIamV3ConditionContextResource{
				Service: "firestore.googleapis.com", Name: grant.In, Type: "firestore.googleapis.com/Database",
			},
		}
	}
	answer, err := g.policies.Iam.Troubleshoot(&policytroubleshooter.GoogleCloudPolicytroubleshooterIamV3TroubleshootIamPolicyRequest{AccessTuple: tuple}).Context(ctx).Do()
	if err != nil {
		return "", err
	}
	return answer.OverallAccessState, nil
}
