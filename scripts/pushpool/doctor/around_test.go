package doctor

import (
	"strings"
	"testing"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// someFlows is an installation whose work pool and deployment name images and identities.
func someFlows(t *testing.T) *operator.Installation {
	t.Helper()
	server := prefecttest.New(prefecttest.Options{})
	t.Cleanup(server.Close)
	in := &operator.Installation{Config: config()}
	in.WorkPools, in.ContainerKeySecret = []string{"cloud-run"}, "pushpool-api-key:3"
	var err error
	if in.Prefect, err = prefect.New(prefect.Config{APIURL: server.URL()}); err != nil {
		t.Fatal(err)
	}
	template, err := in.Prefect.WorkerMetadataTemplate(t.Context(), "cloud-run-v2")
	if err != nil {
		t.Fatal(err)
	}
	properties := template["variables"].(map[string]any)["properties"].(map[string]any)
	properties["service_account_name"].(map[string]any)["default"] = "pushpool-flows@p.iam.gserviceaccount.com"
	properties["image"].(map[string]any)["default"] = "docker.io/prefecthq/prefect:3-latest"
	if err := in.Prefect.CreateWorkPool(t.Context(), "cloud-run", "cloud-run-v2", template); err != nil {
		t.Fatal(err)
	}
	flow, err := in.Prefect.CreateFlow(t.Context(), "etl")
	if err != nil {
		t.Fatal(err)
	}
	_, err = in.Prefect.CreateDeployment(t.Context(), prefect.NewDeployment{Name: "prod", FlowID: flow.ID, WorkPool: "cloud-run", JobVariables: map[string]any{
		"image": "europe-west1-docker.pkg.dev/shared/flows/etl:1", "service_account_name": "etl@data.iam.gserviceaccount.com",
	}})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestWhatIsAroundTheFunctionsIsAskedFor holds for each grant that one missing is found, with what it breaks and what mends it.
func TestWhatIsAroundTheFunctionsIsAskedFor(t *testing.T) {
	in := someFlows(t)
	for name, tt := range map[string]struct {
		cloud           cloud
		what, why, mend string // parts of them; no why: no problem
	}{
		"all are there": {cloud{sink: sink()}, "19 permissions of the identities are there", "", ""},
		"dead letters cannot be published": {
			cloud{sink: sink(), denied: []string{"service-123 pubsub.topics.publish"}},
			"service-123@gcp-sa-pubsub.iam.gserviceaccount.com may not pubsub.topics.publish on //pubsub.googleapis.com/projects/p/topics/flow-runs-dead-letter, " +
				"pubsub.topics.publish on //pubsub.googleapis.com/projects/p/topics/executions-dead-letter", "is not moved to the dead letters", "terraform apply",
		},
		"dead letters cannot be taken away": {
			cloud{sink: sink(), denied: []string{"service-123 pubsub.subscriptions.consume"}},
			"pubsub.subscriptions.consume on //pubsub.googleapis.com/projects/p/subscriptions/flow-runs-dispatcher", "is not moved to the dead letters", "terraform apply",
		},
		"pushes have no token": {
			cloud{sink: sink(), denied: []string{"service-123 iam.serviceAccounts.getOpenIdToken"}},
			"getOpenIdToken on //iam.googleapis.com/projects/p/serviceAccounts/pushpool-dispatcher-push@p.iam.gserviceaccount.com", "the function refuses every message", "terraform apply",
		},
		"a function's secret": {
			cloud{sink: sink(), denied: []string{"finalizer secretmanager.versions.access"}},
			"pushpool-finalizer@p.iam.gserviceaccount.com may not secretmanager.versions.access on //secretmanager.googleapis.com/projects/123/secrets/pushpool-api-key", "does not start", "terraform apply",
		},
		"a flow's secret": {
			cloud{sink: sink(), denied: []string{"etl secretmanager.versions.access"}},
			"etl@data.iam.gserviceaccount.com may not secretmanager.versions.access", "flow runs that run as it do not start", "add etl@data.iam.gserviceaccount.com to flow_service_accounts, then: terraform apply",
		},
		"a flow's identity": {
			cloud{sink: sink(), denied: []string{"dispatcher iam.serviceAccounts.actAs"}},
			"may not iam.serviceAccounts.actAs on //iam.googleapis.com/projects/data/serviceAccounts/etl@data.iam.gserviceaccount.com", "service_account_name end CRASHED", "flow_service_accounts",
		},
		"an image, for who makes the job": {
			cloud{sink: sink(), denied: []string{"dispatcher artifactregistry.repositories.downloadArtifacts"}},
			"pushpool-dispatcher@p.iam.gserviceaccount.com may not artifactregistry.repositories.downloadArtifacts on //artifactregistry.googleapis.com/projects/shared/locations/europe-west1/repositories/flows",
			"cannot use the images", "gcloud artifacts repositories add-iam-policy-binding flows --location=europe-west1 --project=shared --member=serviceAccount:pushpool-dispatcher@p.iam.gserviceaccount.com --role=roles/artifactregistry.reader",
		},
		"ends cannot be published": {
			cloud{sink: sink(), denied: []string{"writer-123 pubsub.topics.publish"}},
			"writer-123@gcp-sa-logging.iam.gserviceaccount.com may not pubsub.topics.publish on //pubsub.googleapis.com/projects/p/topics/executions", "ends of executions are not told", "terraform apply",
		},
		"the build's log lines, images, and source": {
			cloud{sink: sink(), denied: []string{"build logging.logEntries.create", "build artifactregistry.repositories.uploadArtifacts", "build storage.objects.get"}},
			"pushpool-build@p.iam.gserviceaccount.com may not logging.logEntries.create on //cloudresourcemanager.googleapis.com/projects/p, " +
				"artifactregistry.repositories.uploadArtifacts on //artifactregistry.googleapis.com/projects/p/locations/r/repositories/pushpool-functions, " +
				"storage.objects.get on projects/_/buckets/gcf-v2-sources-123-r, storage.objects.get on //storage.googleapis.com/projects/_/buckets/p-pushpool-source-0a1b",
			"the next apply that changes them fails", "terraform apply",
		},
		"no sink":             {cloud{}, "18 permissions of the identities are there", "", ""},
		"services are hidden": {cloud{forbidden: "services"}, "read the number of project p", "", "--role=roles/serviceusage.serviceUsageViewer"},
		"the sink is hidden":  {cloud{forbidden: "sinks"}, "read the log sink", "", "--role=roles/logging.viewer"},
	} {
		t.Run(name, func(t *testing.T) {
			got := tt.cloud.start(t).around(in)(t.Context())
			if len(got) != 1 {
				t.Fatalf("%d findings: %+v", len(got), got)
			}
			f := got[0]
			if (f.Status == Problem) != (tt.why != "") || !strings.Contains(f.What, tt.what) || !strings.Contains(f.Why, tt.why) || !strings.Contains(f.Mend, tt.mend) {
				t.Errorf("got %+v, want %q, %q, %q", f, tt.what, tt.why, tt.mend)
			}
		})
	}
}
