package terraform_test

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// granted returns who is granted what on which resource by resources of a type, as "dispatcher
// roles/… on …". on is the attribute that names the resource.
func granted(t *testing.T, typ, on string) []string {
	t.Helper()
	o := applied(t, installation)
	names := map[string]string{} // of ours, as the mocks name them
	for _, r := range o.of("google_service_account") {
		short := strings.TrimPrefix(r.text("account_id"), "pushpool-")
		names[r.text("member")], names["serviceAccount:"+r.text("email")], names[r.text("name")] = short, short, short
	}
	for _, r := range o.of("google_artifact_registry_repository") {
		names[r.text("name")] = r.text("repository_id")
	}
	for _, r := range o.of("google_secret_manager_secret_version") {
		names[r.text("secret")] = strings.Split(r.Address, `"`)[1]
	}
	found := map[string]bool{}
	for _, r := range o.of(typ) {
		found[cmp.Or(names[r.text("member")], r.text("member"))+" "+r.text("role")+" on "+cmp.Or(names[r.text(on)], r.text(on))] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// The dispatcher may act as the flows' identities, each by itself, and nobody else may.
func TestWhoMayActAsWhom(t *testing.T) {
	const actAs, agent = " roles/iam.serviceAccountUser on ", "serviceAccount:service-123456789@gcp-sa-pubsub.iam.gserviceaccount.com roles/iam.serviceAccountOpenIdTokenCreator on "
	want := []string{
		"dispatcher" + actAs + "flows", "dispatcher" + actAs + "projects/-/serviceAccounts/etl@my-project.iam.gserviceaccount.com",
		"dispatcher" + actAs + "tasks", "reconciler" + actAs + "tasks",
		agent + "dispatcher-push", agent + "finalizer-push",
	}
	if diff := gocmp.Diff(want, granted(t, "google_service_account_iam_member", "service_account_id")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Images are read by repository: each of flow_repositories, and the module's own.
func TestWhoMayReadAndWriteImages(t *testing.T) {
	want := []string{
		"build roles/artifactregistry.writer on pushpool-functions",
		"dispatcher roles/artifactregistry.reader on images", "dispatcher roles/artifactregistry.reader on pushpool-flows",
	}
	if diff := gocmp.Diff(want, granted(t, "google_artifact_registry_repository_iam_member", "repository")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Secrets are read one by one: the webhook's by the webhook, Prefect's by who calls Prefect, flows included.
func TestWhoMayReadWhichSecret(t *testing.T) {
	var want []string
	for _, who := range []string{"dispatcher", "finalizer", "flows", "reconciler", "serviceAccount:etl@my-project.iam.gserviceaccount.com"} {
		for _, secret := range []string{"api-key", "auth-string"} {
			want = append(want, who+" roles/secretmanager.secretAccessor on "+secret)
		}
	}
	want = append(want, "webhook roles/secretmanager.secretAccessor on webhook-secrets")
	if diff := gocmp.Diff(want, granted(t, "google_secret_manager_secret_iam_member", "secret_id")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
