package terraform_test

import (
	"cmp"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/scripts/pushpool/doctor"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/install"
)

// What `pushpool doctor` asks for is what the module grants, of every identity and as often: a grant
// that is missing would be found, and none is asked for that is not there.
func TestDoctorAsksForEveryGrant(t *testing.T) {
	o := applied(t, installation)
	env, _ := o.outputs["operator_env"].Value.(string)
	cfg, err := install.Parse[operator.Config](strings.Split(strings.TrimSpace(env), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	const domain = "@my-project.iam.gserviceaccount.com"
	asked := map[string]int{}
	ask := func(g doctor.Grant) {
		asked[strings.TrimPrefix(strings.TrimSuffix(g.Identity, domain), "pushpool-")+" "+g.Permission]++
	}
	for _, g := range doctor.Grants(cfg) {
		ask(g)
	}
	// Flows use the images and identities that the module is told of.
	for _, n := range doctor.Needs(cfg, "123456789", "sink", doctor.Used{
		Repositories: map[doctor.Repository]bool{{Location: "europe", Project: "other-project", Name: "images"}: true, {Location: "europe-west1", Project: "my-project", Name: "pushpool-flows"}: true},
		Accounts:     map[string]bool{"etl" + domain: true},
	}) {
		ask(n.Grant)
	}

	identity := map[string]string{}
	for _, r := range o.of("google_service_account") {
		short := strings.TrimPrefix(r.text("account_id"), "pushpool-")
		identity[r.text("member")], identity["serviceAccount:"+r.text("email")] = short, short
	}
	granted := map[string]int{
		// Google's own grant in the project; of a repository elsewhere its owner's.
		"service-123456789@serverless-robot-prod.iam.gserviceaccount.com artifactregistry.repositories.downloadArtifacts": 2,
	}
	for _, r := range o.resources {
		member := r.text("member")
		switch {
		case !strings.HasSuffix(r.Type, "_iam_member"):
		case member == "allUsers": // whom Policy Troubleshooter does not answer about; the webhook's own check calls it
		case r.Type == "google_kms_crypto_key_iam_member": // without it nothing could be stored, nor the apply end
		case r.Type == "google_secret_manager_secret_iam_member" && identity[member] == "webhook": // its own check calls it
		default:
			for _, p := range o.permissions(t, r) {
				granted[cmp.Or(identity[member], strings.TrimSuffix(strings.TrimPrefix(member, "serviceAccount:"), domain))+" "+p]++
			}
		}
	}
	if diff := gocmp.Diff(granted, asked); diff != "" {
		t.Errorf("scripts/pushpool/doctor (-granted +asked):\n%s", diff)
	}
}
