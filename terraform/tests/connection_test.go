package terraform_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/scripts/pushpool/connect"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// connected is a server that `pushpool connect` was run for, told what the connection's test tells Terraform.
func connected(t *testing.T) (client *prefect.Client, url string) {
	t.Helper()
	server := prefecttest.New(prefecttest.Options{})
	t.Cleanup(server.Close)
	client, err := prefect.New(prefect.Config{APIURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	var cfg operator.Config
	cfg.Regions, cfg.FlowServiceAccount = []string{"europe-west1"}, "pushpool-flows@my-project.iam.gserviceaccount.com"
	cfg.FlowNetwork, cfg.FlowSubnetwork, cfg.FlowNetworkTags = "default", "jobs", []string{"flows"}
	for pool, defaults := range map[string]map[string]any{"cloud-run": nil, "gpu": {"memory": "16Gi", "pushpool_fast_start": true}} {
		template, err := connect.Template(t.Context(), client, cfg, defaults)
		if err != nil {
			t.Fatal(err)
		}
		if err := client.CreateWorkPool(t.Context(), pool, "cloud-run-v2", template); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := connect.Run(t.Context(), client, connect.Plan{Webhook: prefect.WebhookSetup{
		BlockName: "pushpool", AutomationName: "pushpool", URL: "https://pushpool-webhook-abc.a.run.app",
		Secret: "sentinel-webhook-secret-value", WorkPools: []string{"cloud-run", "gpu"},
	}}); err != nil {
		t.Fatal(err)
	}
	return client, server.URL()
}

func TestTheWorkPoolsAreThoseThatPushpoolConnectMakes(t *testing.T) {
	o := applied(t, connection)
	client, _ := connected(t)
	pools := o.of("prefect_work_pool")
	if len(pools) != 2 {
		t.Fatalf("%d work pools", len(pools))
	}
	for _, pool := range pools {
		have, err := client.WorkPool(t.Context(), pool.text("name"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(parsed(t, string(have.BaseJobTemplate)), parsed(t, pool.text("base_job_template"))); have.Type != pool.text("type") || diff != "" {
			t.Errorf("work pool %s, of type %s and %s (-connect +terraform):\n%s", have.Name, have.Type, pool.text("type"), diff)
		}
	}
}

// The file is what the module writes: its own test holds that.
func TestTheWebhookBlockIsTheOneThatPushpoolConnectMakes(t *testing.T) {
	o := applied(t, connection)
	client, _ := connected(t)
	want, err := os.ReadFile(filepath.Join(root, "terraform", "modules", "prefect_connection", "tests", "webhook-block.json"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := o.of("prefect_block")
	if len(blocks) != 1 {
		t.Fatalf("%d blocks", len(blocks))
	}
	have, err := client.BlockDocument(t.Context(), blocks[0].text("type_slug"), blocks[0].text("name"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(parsed(t, string(have.Data)), parsed(t, string(want))); diff != "" {
		t.Errorf("(-connect +terraform):\n%s", diff)
	}
}

// What connect has to know of the installation is what the module's outputs tell the connection.
func TestPushpoolConnectIsToldWhatTheConnectionIsTold(t *testing.T) {
	o := applied(t, installation)
	env, _ := o.outputs["operator_env"].Value.(string)
	cfg, err := install.Parse[operator.Config](strings.Split(strings.TrimSpace(env), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	function := o.of("google_cloudfunctions2_function")[0].block("service_config")["direct_vpc_network_interface"].([]any)[0].(map[string]any)
	want := []any{o.outputs["region"].Value, o.outputs["flow_service_account"].Value, function["network"], function["subnetwork"], o.outputs["webhook_url"].Value}
	if diff := cmp.Diff(want, []any{cfg.Regions[0], cfg.FlowServiceAccount, cfg.FlowNetwork, cfg.FlowSubnetwork, cfg.WebhookURL}); diff != "" {
		t.Errorf("(-outputs +operator_env):\n%s", diff)
	}
}

// Whoever changes from one to the other must not be told twice, or of other flow runs.
func TestTheAutomationIsTheOneThatPushpoolConnectMakes(t *testing.T) {
	automations := applied(t, connection).of("prefect_automation")
	if len(automations) != 1 {
		t.Fatalf("%d automations", len(automations))
	}
	_, url := connected(t)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/automations/filter", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var have []map[string]any
	if err := json.Unmarshal(body, &have); err != nil || len(have) != 1 {
		t.Fatalf("%s: %v", body, err)
	}
	want, got := have[0], automations[0].Values
	trigger, _ := got["trigger"].(map[string]any)
	event, _ := trigger["event"].(map[string]any)
	wanted, _ := want["trigger"].(map[string]any)
	for _, key := range []string{"posture", "match", "match_related", "expect", "for_each", "threshold", "within"} {
		value := event[key]
		if text, ok := value.(string); ok && strings.HasPrefix(text, "{") { // JSON in a string
			value = parsed(t, text)
		}
		if diff := cmp.Diff(lists(wanted[key]), lists(value)); diff != "" {
			t.Errorf("trigger: %s (-connect +terraform):\n%s", key, diff)
		}
	}
	action := func(values map[string]any) map[string]any {
		actions, _ := values["actions"].([]any)
		if len(actions) != 1 {
			t.Fatalf("actions are %v", actions)
		}
		a, _ := actions[0].(map[string]any)
		return map[string]any{"type": a["type"], "payload": a["payload"]}
	}
	if diff := cmp.Diff(action(want), action(got)); diff != "" {
		t.Errorf("action (-connect +terraform):\n%s", diff)
	}
	for _, key := range []string{"name", "description", "enabled"} {
		if diff := cmp.Diff(want[key], got[key]); diff != "" {
			t.Errorf("%s (-connect +terraform):\n%s", key, diff)
		}
	}
}

// What Terraform makes of the template is one that the dispatcher makes a job of.
func TestTheDispatcherMakesJobsOfTheConnectionsTemplates(t *testing.T) {
	pools := applied(t, connection).of("prefect_work_pool")
	if len(pools) != 2 {
		t.Fatalf("%d work pools", len(pools))
	}
	for _, pool := range pools {
		t.Run(pool.text("name"), func(t *testing.T) {
			got, err := jobtemplate.Render(t.Context(), jobtemplate.Input{
				PoolType: pool.text("type"), BaseJobTemplate: json.RawMessage(pool.text("base_job_template")),
				FlowRun: jobtemplate.FlowRun{ID: "id", Name: "olive-bear"}, DefaultProject: "my-project", DefaultImage: "prefect",
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			task := got.Body["template"].(map[string]any)["template"].(map[string]any)
			if got.Region != "europe-west1" || task["serviceAccount"] != "pushpool-flows@my-project.iam.gserviceaccount.com" {
				t.Errorf("it runs in %s as %v", got.Region, task["serviceAccount"])
			}
		})
	}
}

// lists writes one of a thing as a list of it, all the way down: Prefect takes both.
func lists(value any) any {
	switch v := value.(type) {
	case []any:
		all := make([]any, len(v))
		for i, each := range v {
			all[i] = each
			if m, ok := each.(map[string]any); ok {
				all[i] = lists(m).([]any)[0]
			}
		}
		return all
	case map[string]any:
		all := map[string]any{}
		for key, each := range v {
			all[key] = lists(each)
		}
		return []any{all}
	default:
		return []any{value}
	}
}

func parsed(t *testing.T, text string) (value any) {
	t.Helper()
	if err := json.NewDecoder(bytes.NewBufferString(text)).Decode(&value); err != nil {
		t.Fatal(err)
	}
	return value
}
