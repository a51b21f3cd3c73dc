package terraform_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/scripts/pushpool/doctor"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/install"
)

// What `pushpool doctor` asks for is what the module grants: a grant that is missing would be
// found, and none is asked for that is not there. Secrets and images apart, as it says.
func TestDoctorAsksForEveryGrant(t *testing.T) {
	o := applied(t, installation)
	env, _ := o.outputs["operator_env"].Value.(string)
	cfg, err := install.Parse[operator.Config](strings.Split(strings.TrimSpace(env), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	for _, g := range doctor.Grants(cfg) {
		asked[g.Identity+" "+g.Permission] = true
	}
	granted := map[string]bool{}
	for name, grants := range grants(t, o) {
		for g := range grants {
			if !strings.HasPrefix(g.permission, "secretmanager.") && !strings.HasPrefix(g.permission, "artifactregistry.") {
				granted[name+" "+g.permission] = true
			}
		}
	}
	identity := map[string]string{}
	for _, r := range o.of("google_service_account") {
		identity[r.text("member")] = strings.TrimPrefix(r.text("account_id"), "pushpool-")
	}
	for _, r := range o.of("google_cloud_run_v2_service_iam_member") {
		if who := identity[r.text("member")]; who != "" && r.text("role") == "roles/run.invoker" {
			granted[who+" run.routes.invoke"] = true
		}
	}
	for _, r := range o.of("google_pubsub_topic_iam_member") {
		if identity[r.text("member")] == "tasks" {
			granted["tasks pubsub.topics.publish"] = true
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(granted)), slices.Sorted(maps.Keys(asked))); diff != "" {
		t.Errorf("scripts/pushpool/doctor/permissions.go (-granted +asked):\n%s", diff)
	}
}
