package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/api/googleapi"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
)

// Need is a grant that somebody else than a function needs, or that depends on what flows use.
type Need struct {
	Grant
	// Why and Mend are empty where they are as for the functions' own grants.
	Why, Mend string
}

// Used is what flows use, as their work pools and deployments say.
type Used struct {
	Repositories map[Repository]bool // images in Artifact Registry
	Accounts     map[string]bool     // e-mails that flows run as
}

// Repository is one of Artifact Registry.
type Repository struct{ Location, Project, Name string }

// around asks whether Google's own agents and the build may do what the installation stands on, and
// whether the images, secrets and identities of flows can be had.
func (g *Google) around(in *operator.Installation) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		number, err := g.number(ctx, in.Project)
		if err != nil {
			return []Finding{refused("read the number of project "+in.Project, err, in.Project, "roles/serviceusage.serviceUsageViewer")}
		}
		writer, err := g.writer(ctx, in.Config)
		if err != nil {
			return []Finding{refused("read the log sink", err, in.Project, "roles/logging.viewer")}
		}
		u, err := usedBy(ctx, in)
		if err != nil {
			return []Finding{unknown(err, "")}
		}
		return g.ask(ctx, in.Config, Needs(in.Config, number, writer, u))
	}
}

// number is the project's, which the names of Google's agents have.
func (g *Google) number(ctx context.Context, project string) (string, error) {
	answer, err := g.services.Services.BatchGet("projects/" + project).Names("projects/" + project + "/services/pubsub.googleapis.com").Context(ctx).Do()
	if err != nil {
		return "", err
	}
	for _, s := range answer.Services {
		if number, _, ok := strings.Cut(strings.TrimPrefix(s.Name, "projects/"), "/services/"); ok {
			return number, nil
		}
	}
	return "", errors.New("Service Usage names no service") //nolint:staticcheck // the product's name
}

// writer is the identity that the log sink publishes as; empty where there is no sink, which the check of audit entries says.
func (g *Google) writer(ctx context.Context, cfg operator.Config) (string, error) {
	sink, err := g.logs.Projects.Sinks.Get("projects/" + cfg.Project + "/sinks/" + cfg.Name + "-executions").Context(ctx).Do()
	if answer := (*googleapi.Error)(nil); errors.As(err, &answer) && answer.Code == http.StatusNotFound {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(sink.WriterIdentity, "serviceAccount:"), nil
}

var (
	inRepository = regexp.MustCompile(`^([a-z0-9-]+)-docker\.pkg\.dev/([a-z0-9-]+)/([a-z0-9-]+)/`)
	isAccount    = regexp.MustCompile(`^[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com$`)
)

// usedBy reads the images and identities that flows use by default and that deployments name.
func usedBy(ctx context.Context, in *operator.Installation) (Used, error) {
	u := Used{map[Repository]bool{}, map[string]bool{}}
	for _, name := range in.WorkPools {
		pool, err := in.Prefect.WorkPool(ctx, name)
		if err != nil {
			return u, err
		}
		var template struct {
			Variables struct {
				Properties map[string]struct {
					Default any `json:"default"`
				} `json:"properties"`
			} `json:"variables"`
		}
		if err := json.Unmarshal(pool.BaseJobTemplate, &template); err != nil {
			return u, fmt.Errorf("read the base job template of work pool %s: %w", name, err)
		}
		p := template.Variables.Properties
		u.add(map[string]any{"image": p["image"].Default, "service_account_name": p["service_account_name"].Default})
		deployments, err := in.Prefect.Deployments(ctx, name)
		if err != nil {
			return u, err
		}
		for _, d := range deployments {
			var variables map[string]any
			if json.Unmarshal(d.JobVariables, &variables) == nil {
				u.add(variables)
			}
		}
	}
	return u, nil
}

// add takes what is plain: a placeholder is known only when a flow run is launched.
func (u Used) add(variables map[string]any) {
	image, _ := variables["image"].(string)
	if m := inRepository.FindStringSubmatch(image); m != nil {
		u.Repositories[Repository{m[1], m[2], m[3]}] = true
	}
	if account, _ := variables["service_account_name"].(string); isAccount.MatchString(account) {
		u.Accounts[account] = true
	}
}

// Needs are in the module, but for images and identities that somebody uses and has not told it of. The
// webhook's secret may have any name and is left out: without it the webhook does not start, and its own check says so.
// number is the project's, writer the log sink's identity, empty for no sink.
func Needs(cfg operator.Config, number, writer string, u Used) []Need {
	topic := func(id string) string { return "//pubsub.googleapis.com/projects/" + cfg.Project + "/topics/" + id }
	agent := "service-" + number + "@gcp-sa-pubsub.iam.gserviceaccount.com"
	all := builds(cfg, number)
	add := func(who, permission, on, why, mend string) {
		all = append(all, Need{Grant{Identity: who, Permission: permission, On: on}, why, mend})
	}
	for _, from := range [][2]string{{"dispatcher", cfg.FlowRuns}, {"finalizer", cfg.Executions}} {
		function, id := from[0], from[1]
		const why = "a message that fails again and again is not moved to the dead letters: it is delivered for seven days, and then lost"
		add(agent, "pubsub.topics.publish", topic(id+"-dead-letter"), why, "")
		add(agent, "pubsub.subscriptions.consume", "//pubsub.googleapis.com/projects/"+cfg.Project+"/subscriptions/"+id+"-"+function, why, "")
		add(agent, "iam.serviceAccounts.getOpenIdToken", account(cfg, email(cfg, function+"-push")),
			"Pub/Sub cannot prove who it is, so the function refuses every message: flow runs start and end by the sweep alone", "")
	}
	if writer != "" {
		add(writer, "pubsub.topics.publish", topic(cfg.Executions), "ends of executions are not told: the sweep finds them, minutes later", "")
	}
	accounts := maps.Clone(u.Accounts)
	accounts[email(cfg, "flows")] = true
	for _, who := range slices.Sorted(maps.Keys(accounts)) {
		if who != email(cfg, "flows") { // whose grant is asked for beside the functions'
			add("dispatcher", "iam.serviceAccounts.actAs", account(cfg, who), "flow runs that name it as service_account_name end CRASHED",
				fmt.Sprintf("add %s to flow_service_accounts, then: terraform apply", who))
		}
	}
	for _, reference := range []string{cfg.ContainerKeySecret, cfg.ContainerAuthSecret} {
		secret, _, _ := strings.Cut(reference, ":")
		if secret == "" {
			continue
		}
		on := "//secretmanager.googleapis.com/projects/" + number + "/secrets/" + secret[strings.LastIndex(secret, "/")+1:]
		for _, function := range []string{"dispatcher", "finalizer", "reconciler"} {
			add(function, "secretmanager.versions.access", on, "the function's next instance does not start", "")
		}
		for _, who := range slices.Sorted(maps.Keys(accounts)) {
			mend := ""
			if who != email(cfg, "flows") {
				mend = fmt.Sprintf("add %s to flow_service_accounts, then: terraform apply", who)
			}
			add(who, "secretmanager.versions.access", on, "flow runs that run as it do not start: their containers do not get what Prefect's API asks for", mend)
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(u.Repositories), func(a, b Repository) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Location, b.Location), cmp.Compare(a.Name, b.Name))
	}) {
		on := fmt.Sprintf("//artifactregistry.googleapis.com/projects/%s/locations/%s/repositories/%s", r.Project, r.Location, r.Name)
		for _, who := range []string{email(cfg, "dispatcher"), "service-" + number + "@serverless-robot-prod.iam.gserviceaccount.com"} {
			add(who, "artifactregistry.repositories.downloadArtifacts", on, "Cloud Run cannot use the images of it: flow runs are tried again, and end CRASHED",
				fmt.Sprintf("gcloud artifacts repositories add-iam-policy-binding %s --location=%s --project=%s --member=serviceAccount:%s --role=roles/artifactregistry.reader", r.Name, r.Location, r.Project, who))
		}
	}
	return all
}

// builds are of the identity that Cloud Build has: functions that run do not need it.
func builds(cfg operator.Config, number string) []Need {
	const why = "functions cannot be built: the next apply that changes them fails, and those that are there go on"
	project := "//cloudresourcemanager.googleapis.com/projects/" + cfg.Project
	location, _, _ := strings.Cut(cfg.TasksQueue, "/queues/")
	region := location[strings.LastIndex(location, "/")+1:]
	grants := []Grant{
		{"build", "logging.logEntries.create", project, ""},
		{"build", "artifactregistry.repositories.uploadArtifacts", "//artifactregistry.googleapis.com/" + location + "/repositories/" + cfg.Name + "-functions", ""},
		// The bucket that Cloud Functions copies sources to, which the grant on the project is bound to.
		{"build", "storage.objects.get", project, "projects/_/buckets/gcf-v2-sources-" + number + "-" + region},
	}
	if cfg.SourceBucket != "" {
		grants = append(grants, Grant{"build", "storage.objects.get", "//storage.googleapis.com/projects/_/buckets/" + cfg.SourceBucket, ""})
	}
	var all []Need
	for _, g := range grants {
		all = append(all, Need{g, why, ""})
	}
	return all
}

// account is the full resource name of a service account, which its e-mail names the project of.
func account(cfg operator.Config, email string) string {
	_, domain, _ := strings.Cut(email, "@")
	project, ok := strings.CutSuffix(domain, ".iam.gserviceaccount.com")
	if !ok {
		project = cfg.Project
	}
	return "//iam.googleapis.com/projects/" + project + "/serviceAccounts/" + email
}
