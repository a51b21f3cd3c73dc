package connect_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/scripts/pushpool/connect"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// A flow of Prefect 2 does not run in an image of Prefect 3. What jobs run as, where, and by which network is
// the installation's all the same; terraform/tests/connection_test.go compares the rest with Terraform's.
func TestAServerOf2HasItsOwnImages(t *testing.T) {
	for version, image := range map[string]string{"2": "2-latest", "3": "3-latest"} {
		server := prefecttest.New(prefecttest.Options{Version: version})
		t.Cleanup(server.Close)
		client, err := prefect.New(prefect.Config{APIURL: server.URL()})
		if err != nil {
			t.Fatal(err)
		}
		var cfg operator.Config
		cfg.Regions, cfg.FlowServiceAccount, cfg.FlowNetwork, cfg.FlowSubnetwork = []string{"europe-west1"}, "flows@p.iam", "vpc", "jobs"
		template, err := connect.Template(t.Context(), client, cfg, map[string]any{"memory": "2Gi"})
		if err != nil {
			t.Fatal(err)
		}
		get := func(path ...string) any {
			var value any = template
			for _, name := range path {
				value = value.(map[string]any)[name]
			}
			return value
		}
		byDefault := func(name string) any { return get("variables", "properties", name, "default") }
		want := []any{"europe-west1", "flows@p.iam", "2Gi", map[string]any{
			"egress": "PRIVATE_RANGES_ONLY", "networkInterfaces": []any{map[string]any{"network": "vpc", "subnetwork": "jobs", "tags": []string{}}},
		}}
		got := []any{byDefault("region"), byDefault("service_account_name"), byDefault("memory"), get("job_configuration", "job_body", "template", "template", "vpcAccess")}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("of a server of %s (-want +got):\n%s", version, diff)
		}
		if have, _ := byDefault("image").(string); !strings.HasSuffix(have, image) {
			t.Errorf("of a server of %s the image is %s", version, have)
		}
	}
}
