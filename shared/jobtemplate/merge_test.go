package jobtemplate

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// populated returns what a template and job variables come to before validation, as JSON in
// order.
func populated(t *testing.T, template, deployment, flowRun string) string {
	t.Helper()
	values, _, err := jobVariables(json.RawMessage(deployment), json.RawMessage(flowRun))
	if err != nil {
		t.Fatal(err)
	}
	o, _, err := (&resolver{ctx: t.Context(), lookup: noLookup{}}).populate(json.RawMessage(template), values)
	if err != nil {
		t.Fatal(err)
	}
	return str(o)
}

func TestMergeOrder(t *testing.T) {
	const plain = `{"variables":{"properties":{"a":{"default":"schema"},"env":{"default":{"S":"schema","X":"schema"}},"n":{"default":null}}},
		"job_configuration":{"a":"{{ a }}","env":"{{ env }}","n":"{{ n }}","b":"{{ b }}"}}`
	const withEnv = `{"variables":{"properties":{"env":{"default":{"S":"schema","X":"schema"}}}},
		"job_configuration":{"env":{"T":"template","X":"template","S":"template"}}}`
	for _, c := range []struct{ name, template, deployment, flowRun, want string }{
		{"defaults of the schema, null is none", plain, `{}`, `{}`, `{'a': 'schema', 'env': {'S': 'schema', 'X': 'schema'}}`},
		{"the deployment over the schema", plain, `{"a":"deployment"}`, `{}`, `{'a': 'deployment', 'env': {'S': 'schema', 'X': 'schema'}}`},
		{"the flow run over the deployment", plain, `{"a":"deployment"}`, `{"a":"flow run"}`, `{'a': 'flow run', 'env': {'S': 'schema', 'X': 'schema'}}`},
		{"an explicit null wins too", plain, `{"a":"deployment"}`, `{"a":null}`, `{'a': None, 'env': {'S': 'schema', 'X': 'schema'}}`},
		{
			"env of deployment and flow run is merged, over the schema's that took the placeholder's place",
			plain, `{"env":{"X":"deployment","D":"deployment"}}`, `{"env":{"D":"flow run","F":"flow run"}}`,
			`{'a': 'schema', 'env': {'S': 'schema', 'X': 'deployment', 'D': 'flow run', 'F': 'flow run'}}`,
		},
		{
			"four levels of env where the template has an object", withEnv, `{"env":{"X":"deployment","D":"deployment"}}`, `{"env":{"D":"flow run","F":null}}`,
			`{'env': {'T': 'template', 'X': 'deployment', 'S': 'schema', 'D': 'flow run', 'F': None}}`,
		},
		{"other objects are replaced as a whole", plain, `{"b":{"x":1,"y":1}}`, `{"b":{"x":2}}`, `{'a': 'schema', 'env': {'S': 'schema', 'X': 'schema'}, 'b': {'x': 2}}`},
		{"dotted keys are nested", plain, `{}`, `{"b.x.y":1,"b.z":2}`, `{'a': 'schema', 'env': {'S': 'schema', 'X': 'schema'}, 'b': {'x': {'y': 1}, 'z': 2}}`},
		{"keys without a dot win over dotted ones", plain, `{"b":{"x":1}}`, `{"b.x":2,"b.y":3}`, `{'a': 'schema', 'env': {'S': 'schema', 'X': 'schema'}, 'b': {'x': 1, 'y': 3}}`},
		{"a placeholder without a value drops its key", plain, `{}`, `{}`, `{'a': 'schema', 'env': {'S': 'schema', 'X': 'schema'}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, populated(t, c.template, c.deployment, c.flowRun)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestContainerEnvironmentInOrder(t *testing.T) {
	in := defaultInput(t)
	in.Settings = []Setting{{"PREFECT_API_URL", "https://settings"}, {"PREFECT_LOGGING_LEVEL", "INFO"}}
	in.FlowRunJobVariables = json.RawMessage(`{"env":{"PREFECT_API_URL":"https://own","PREFECT_LOGGING_LEVEL":null,"PREFECT__FLOW_NAME":"own","N":1.0,"T":true}}`)
	r, err := Render(t.Context(), in, noLookup{})
	if err != nil {
		t.Fatal(err)
	}
	job, err := r.Job()
	if err != nil {
		t.Fatal(err)
	}
	var got []Setting
	for _, e := range job.GetTemplate().GetTemplate().GetContainers()[0].GetEnv() {
		got = append(got, Setting{e.GetName(), e.GetValue()})
	}
	want := []Setting{
		{"PREFECT_API_URL", "https://own"},
		{"PREFECT__FLOW_RUN_ID", in.FlowRun.ID},
		{"PREFECT__WORKER_NAME", in.Worker.Name},
		{"PREFECT__FLOW_ID", in.FlowRun.FlowID},
		{"PREFECT__FLOW_NAME", "own"},
		{"PREFECT__DEPLOYMENT_ID", in.FlowRun.DeploymentID},
		{"PREFECT__DEPLOYMENT_NAME", in.Deployment.Name},
		{"N", "1.0"},
		{"T", "True"},
	}
	if in.Worker.ID != "" {
		t.Fatal("the vector has a worker's id, which belongs before its name")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
