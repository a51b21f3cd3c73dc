package message_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pushpool/pushpool/shared/message"
)

// lifecycleSchema compiles the schema that followers read.
func lifecycleSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(message.LifecycleSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("s.json", doc); err != nil {
		t.Fatal(err)
	}
	return c.MustCompile("s.json")
}

func TestLifecycleEventsAreAsTheSchemaSays(t *testing.T) {
	const launchID = "6469ccee-cf71-5297-b458-b96c53b57074"
	full := message.Lifecycle{
		FlowRunID: id, LaunchID: launchID, WorkPool: "etl", DeploymentID: id, Region: "us-east1",
		Execution: "projects/p/locations/us-east1/jobs/pp-j/executions/pp-j-x", Outcome: "exit_code", Reason: "why",
		ScheduledTime: at("2026-01-01T06:01:00Z"), Time: at("2026-01-01T06:00:00.5Z"),
	}
	bare := message.Lifecycle{FlowRunID: id, LaunchID: launchID, Time: full.Time}
	schema := lifecycleSchema(t)
	for _, step := range []string{message.Claimed, message.Launched, message.PutBack, message.Abandoned, message.Rejected, message.Finished} {
		for _, l := range []message.Lifecycle{full, bare} {
			l.Type = step
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(message.EncodeLifecycle("pushpool", l)))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(v); err != nil {
				t.Errorf("%s: %v", step, err)
			}
		}
	}
	full.Type = message.PutBack
	var got map[string]any
	if err := json.Unmarshal(message.EncodeLifecycle("pushpool", full), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"specversion": "1.0", "id": launchID + ".put_back", "source": "//pushpool/pushpool", "type": "io.pushpool.launch.v1.put_back",
		"subject": id, "time": "2026-01-01T06:00:00.5Z", "datacontenttype": "application/json",
		"data": map[string]any{
			"flow_run_id": id, "launch_id": launchID, "work_pool": "etl", "deployment_id": id, "region": "us-east1",
			"execution": full.Execution, "outcome": "exit_code", "reason": "why", "scheduled_time": "2026-01-01T06:01:00Z",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSchemaRefusesWhatNoLifecycleEventIs(t *testing.T) {
	schema := lifecycleSchema(t)
	data := string(message.EncodeLifecycle("pushpool", message.Lifecycle{Type: message.Claimed, FlowRunID: id, LaunchID: id, Time: at("2026-01-01T06:00:00Z")}))
	for name, change := range map[string][2]string{
		"another type":          {"v1.claimed", "v1.unheard_of"},
		"a field nobody knows":  {`"launch_id"`, `"parameters":{},"launch_id"`},
		"no flow run":           {`"flow_run_id":"` + id + `",`, ``},
		"an id that is no UUID": {`"flow_run_id":"` + id, `"flow_run_id":"x`},
	} {
		changed := strings.Replace(data, change[0], change[1], 1)
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(changed))
		if err != nil || changed == data {
			t.Fatalf("%s: %v, %s", name, err, changed)
		}
		if schema.Validate(v) == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestSchemaDescribesEachLifecycleFieldAndType(t *testing.T) {
	type property struct {
		Description string
		Enum        []string
		Properties  map[string]property
	}
	var schema property
	if err := json.Unmarshal(message.LifecycleSchema(), &schema); err != nil {
		t.Fatal(err)
	}
	for name, field := range schema.Properties["data"].Properties {
		if field.Description == "" {
			t.Errorf("%s has no description", name)
		}
	}
	// Type and Time are the event's own.
	if got, want := len(schema.Properties["data"].Properties), reflect.TypeFor[message.Lifecycle]().NumField()-2; got != want {
		t.Errorf("the schema has %d fields of data, Lifecycle %d", got, want)
	}
	types := schema.Properties["type"]
	for _, name := range types.Enum {
		step := name[strings.LastIndex(name, ".")+1:]
		if !slices.Contains(strings.Fields(types.Description), fmt.Sprintf("%s:", step)) {
			t.Errorf("%s is not described", step)
		}
	}
}
