package doctor

import (
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
	said := map[string][]Finding{}
	for name, c := range map[string]cloud{
		"all are there":                     {sink: sink()},
		"dead letters cannot be published":  {sink: sink(), denied: []string{"service-123 pubsub.topics.publish"}},
		"dead letters cannot be taken away": {sink: sink(), denied: []string{"service-123 pubsub.subscriptions.consume"}},
		"pushes have no token":              {sink: sink(), denied: []string{"service-123 iam.serviceAccounts.getOpenIdToken"}},
		"a function's secret":               {sink: sink(), denied: []string{"finalizer secretmanager.versions.access"}},
		"a flow's secret":                   {sink: sink(), denied: []string{"etl secretmanager.versions.access"}},
		"a flow's identity":                 {sink: sink(), denied: []string{"dispatcher iam.serviceAccounts.actAs"}},
		"an image, for who makes the job":   {sink: sink(), denied: []string{"dispatcher artifactregistry.repositories.downloadArtifacts"}},
		"ends cannot be published":          {sink: sink(), denied: []string{"writer-123 pubsub.topics.publish"}},
		"the build's log lines, images, and source": {
			sink: sink(), denied: []string{"build logging.logEntries.create", "build artifactregistry.repositories.uploadArtifacts", "build storage.objects.get"},
		},
		"no sink":             {},
		"services are hidden": {forbidden: "services"},
		"the sink is hidden":  {forbidden: "sinks"},
	} {
		said[name] = c.start(t).around(in)(t.Context())
	}
	golden(t, "around", said)
}
