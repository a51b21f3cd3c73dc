package doctor

import (
	"cmp"
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
	// In is the database or the bucket where the grant is bound to one by a condition, else empty.
	In string
}

// Grants are those of an installation as the module makes it (terraform/README.md, "Who may
// do what"), of its functions; terraform/tests compares. Secrets, images and the build are among [Needs].
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
		{"dispatcher", actAs, account("flows"), ""},
		{"dispatcher", publish, topic(cfg.FlowRuns + "-dead-letter"), ""},
		{"finalizer", publish, topic(cfg.Executions + "-dead-letter"), ""},
	}
	if cfg.WebhookURL != "" {
		grants = append(grants, Grant{"webhook", publish, topic(cfg.FlowRuns), ""})
	}
	for _, who := range []string{"dispatcher", "reconciler"} {
		for _, permission := range []string{"run.jobs.get", "run.jobs.list", "run.jobs.delete", "run.executions.list", "run.executions.cancel"} {
			grants = append(grants, Grant{who, permission, project, ""})
		}
		grants = append(grants,
			Grant{who, actAs, account("tasks"), ""}, Grant{who, "cloudtasks.tasks.create", queue, ""}, Grant{who, "cloudtasks.tasks.get", queue, ""})
	}
	for _, who := range []string{"dispatcher", "finalizer", "reconciler"} {
		grants = append(grants, Grant{who, "run.executions.get", project, ""}, Grant{who, "run.tasks.get", project, ""})
		for _, permission := range []string{"datastore.entities.get", "datastore.entities.list", "datastore.entities.create", "datastore.entities.update", "datastore.entities.delete"} {
			grants = append(grants, Grant{who, permission, project, database})
		}
		grants = append(grants, Grant{who, publish, topic(cfg.FlowRuns), ""})
		if cfg.LogReads > 0 {
			grants = append(grants, Grant{who, "logging.views.access", "//logging.googleapis.com/projects/" + cfg.Project + "/" + cfg.LogView, ""})
		}
		if cfg.Lifecycle != "" {
			grants = append(grants, Grant{who, publish, topic(cfg.Lifecycle), ""})
		}
	}
	return grants
}

// email is the module's name for an identity, but for the one that the configuration names, and for one that is an e-mail already.
func email(cfg operator.Config, name string) string {
	if strings.Contains(name, "@") {
		return name
	}
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
		var own []Need
		for _, grant := range Grants(cfg) {
			n := Need{Grant: grant}
			if grant.Permission == "logging.views.access" {
				n.Why = "the last lines of containers that end badly are not copied to their flow runs' logs; nothing else waits for them"
			}
			own = append(own, n)
		}
		return g.ask(ctx, cfg, own)
	}
}

// ask finds which grants are missing: one finding for those of an identity that matter and are mended alike.
func (g *Google) ask(ctx context.Context, cfg operator.Config, all []Need) []Finding {
	answers := make([]string, len(all))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, n := range all {
		group.Go(func() (err error) {
			answers[i], err = g.access(ctx, cfg, n.Grant)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return []Finding{refused("ask Policy Troubleshooter what the identities may do", err, cfg.Project, "roles/iam.securityReviewer")}
	}
	missing, hidden := map[[3]string][]string{}, 0
	for i, n := range all {
		switch answers[i] {
		case "CAN_ACCESS":
		case "CANNOT_ACCESS":
			key := [3]string{email(cfg, n.Identity), n.Why, n.Mend}
			missing[key] = append(missing[key], n.Permission+" on "+cmp.Or(n.In, n.On))
		default:
			hidden++
		}
	}
	var found []Finding
	for _, key := range slices.SortedFunc(maps.Keys(missing), func(a, b [3]string) int { return slices.Compare(a[:], b[:]) }) {
		found = append(found, Finding{
			Status: Problem, What: fmt.Sprintf("%s may not %s", key[0], strings.Join(missing[key], ", ")),
			Why:  cmp.Or(key[1], "what it needs that for fails, and is tried again until the message is a dead letter"),
			Mend: cmp.Or(key[2], "terraform apply"),
		})
	}
	if hidden > 0 {
		found = append(found, Finding{
			Status: Unknown, What: fmt.Sprintf("of %d permissions, %d cannot be told: you may not see every policy", len(all), hidden),
			Mend: fmt.Sprintf("gcloud projects add-iam-policy-binding %s --member=user:YOU --role=roles/iam.securityReviewer", cfg.Project),
		})
	}
	if len(found) == 0 {
		return []Finding{ok("%d permissions of the identities are there", len(all))}
	}
	return found
}

func (g *Google) access(ctx context.Context, cfg operator.Config, grant Grant) (string, error) {
	tuple := &policytroubleshooter.GoogleCloudPolicytroubleshooterIamV3AccessTuple{
		Principal: email(cfg, grant.Identity), Permission: grant.Permission, FullResourceName: grant.On,
	}
	if grant.In != "" {
		in := &policytroubleshooter.GoogleCloudPolicytroubleshooterIamV3ConditionContextResource{
			Service: "firestore.googleapis.com", Name: grant.In, Type: "firestore.googleapis.com/Database",
		}
		if strings.HasPrefix(grant.In, "projects/_/buckets/") {
			in.Service, in.Type = "storage.googleapis.com", "storage.googleapis.com/Bucket"
		}
		tuple.ConditionContext = &policytroubleshooter.GoogleCloudPolicytroubleshooterIamV3ConditionContext{Resource: in}
	}
	answer, err := g.policies.Iam.Troubleshoot(&policytroubleshooter.GoogleCloudPolicytroubleshooterIamV3TroubleshootIamPolicyRequest{AccessTuple: tuple}).Context(ctx).Do()
	if err != nil {
		return "", err
	}
	return answer.OverallAccessState, nil
}
