package terraform_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// Whoever changes from one to the other must not be told twice, or of other flow runs.
func TestTheConnectionIsTheOneThatPushpoolConnectMakes(t *testing.T) {
	o := applied(t, connection)
	server := prefecttest.New(prefecttest.Options{})
	t.Cleanup(server.Close)
	client, err := prefect.New(prefect.Config{APIURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	blocks, automations := o.of("prefect_block"), o.of("prefect_automation")
	if len(blocks) != 1 || len(automations) != 1 {
		t.Fatalf("%d blocks, %d automations", len(blocks), len(automations))
	}
	if _, err := client.ConnectWebhook(t.Context(), prefect.WebhookSetup{
		BlockName: blocks[0].text("name"), AutomationName: automations[0].text("name"),
		URL: "https://pushpool-webhook-abc.a.run.app", Secret: "a-secret-of-enough-characters", WorkPools: []string{"cloud-run", "gpu"},
	}, false); err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL()+"/automations/filter", strings.NewReader(`{}`))
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
