package message_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/message"
)

const id = "ef614d27-5bc3-45f1-8f0e-ec2b77b8415f"

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t.UTC()
}

func pointer(t time.Time) *time.Time { return &t }

func TestDecode(t *testing.T) {
	full := message.RunRequest{
		Deployment: "etl/prod", Parameters: map[string]any{"n": json.Number("1.0"), "day": "2026-01-01"},
		JobVariables: map[string]any{"memory": "2Gi"}, Tags: []string{"a", "b"}, Name: "n", IdempotencyKey: "k", WorkQueue: "q",
		ScheduledTime: pointer(at("2026-01-01T05:00:00Z")), ExpiresAt: pointer(at("2026-01-01T07:00:00Z")),
	}
	event := message.PrefectEvent{
		ID: "a", FlowRunID: id, StateType: "SCHEDULED", StateName: "Scheduled", Occurred: at("2026-11-23T12:35:57.361366Z"),
	}
	portable := `{"id":"a","event":"prefect.flow-run.Scheduled","occurred":"2026-11-23T12:35:57.361366+00:00","flow_run":"prefect.flow-run.` + id +
		`","state_type":"SCHEDULED","state_name":"Scheduled"}`
	binary := map[string]string{"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-custom": "x"}
	for name, test := range map[string]struct {
		data       string
		attributes map[string]string
		want       any
	}{
		"a run request needs a deployment only":            {data: `{"deployment":"etl/prod"}`, want: message.RunRequest{Deployment: "etl/prod"}},
		"a deployment may be an id, kept in lower case":    {data: `{"deployment":"` + strings.ToUpper(id) + `"}`, want: message.RunRequest{Deployment: id}},
		"all fields are read, numbers keep their text":     {data: `{"deployment":"etl/prod","parameters":{"n":1.0,"day":"2026-01-01"},"job_variables":{"memory":"2Gi"},"tags":["a","b"],"name":"n","idempotency_key":"k","work_queue":"q","scheduled_time":"2026-01-01T06:00:00+01:00","expires_at":"2026-01-01t07:00:00z"}`, want: full},
		"delay is a duration":                              {data: `{"deployment":"etl/prod","delay":"1h30m"}`, want: message.RunRequest{Deployment: "etl/prod", Delay: 90 * time.Minute}},
		"dispatch":                                         {data: ` {"flow_run_id":"` + strings.ToUpper(id) + `"} `, want: message.Dispatch{FlowRunID: id}},
		"wake that shows it ready":                         {data: `{"work_pool":"p","ready":true}`, want: message.Wake{WorkPool: "p", Ready: true}},
		"wake of a work pool":                              {data: `{"work_pool":"p"}`, want: message.Wake{WorkPool: "p"}},
		"wake of a deployment":                             {data: `{"deployment_id":"` + id + `"}`, want: message.Wake{DeploymentID: id}},
		"the portable template":                            {data: portable, want: event},
		"an object in a JSON string":                       {data: quote(portable), want: event},
		"a binary CloudEvent":                              {data: `{"work_pool":"p"}`, attributes: binary, want: message.Wake{WorkPool: "p"}},
		"a structured CloudEvent":                          {data: `{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"deployment":"etl/prod","parameters":{"n":1.0}}}`, want: message.RunRequest{Deployment: "etl/prod", Parameters: map[string]any{"n": json.Number("1.0")}}},
		"a structured CloudEvent with its data in base64":  {data: `{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"eyJ3b3JrX3Bvb2wiOiJwIn0="}`, want: message.Wake{WorkPool: "p"}},
		"a structured CloudEvent with an object in a text": {data: `{"specversion":"1.0","id":"1","source":"/s","type":"t","data":` + quote(portable) + `}`, want: event},
		"attributes of others are nothing to us":           {data: `{"work_pool":"p"}`, attributes: map[string]string{"ce-id": "1", "x": "y"}, want: message.Wake{WorkPool: "p"}},
		"an event that is not about a state has no type":   {data: `{"event":{"event":"prefect.flow-run.heartbeat","id":"a","resource":{"prefect.resource.id":"prefect.flow-run.` + id + `"}}}`, want: message.PrefectEvent{ID: "a", FlowRunID: id}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := message.Decode([]byte(test.data), test.attributes)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeErrorsSayWhatToWrite(t *testing.T) {
	const (
		deployment = `write "flow name/deployment name" or the deployment's id`
		clock      = `write a time like "2026-01-01T06:00:00Z"`
		shapes     = `write {"deployment": "flow name/deployment name"} to ask for a flow run`
	)
	for name, test := range map[string]struct {
		data       string
		attributes map[string]string
		want       []string // in the error, in any order
	}{
		"no deployment":            {data: `{"parameters":{}}`, want: []string{`deployment: missing; ` + deployment}},
		"deployment of no flow":    {data: `{"deployment":"prod"}`, want: []string{`deployment: "prod" is not one; ` + deployment}},
		"deployment is a number":   {data: `{"deployment":1}`, want: []string{`deployment: is of type number, not string; ` + deployment}},
		"several at once":          {data: `{"deployment":"x","tags":[1],"name":""}`, want: []string{"deployment: ", "tags.0: is of type number, not string; write an array of strings", "name: empty; "}},
		"unknown field":            {data: `{"deployment":"a/b","params":{}}`, want: []string{"params: unknown field; a run request has only delay, deployment, expires_at"}},
		"time without a zone":      {data: `{"deployment":"a/b","scheduled_time":"2026-01-01T06:00:00"}`, want: []string{`scheduled_time: "2026-01-01T06:00:00" is not one; ` + clock}},
		"leap second":              {data: `{"deployment":"a/b","expires_at":"2016-12-31T23:59:60Z"}`, want: []string{"expires_at: ", clock}},
		"expires before it starts": {data: `{"deployment":"a/b","scheduled_time":"2026-01-01T06:00:00Z","expires_at":"2026-01-01T05:00:00Z"}`, want: []string{"expires_at: lies before scheduled_time; write a later time"}},
		"delay and time":           {data: `{"deployment":"a/b","delay":"1m","scheduled_time":"2026-01-01T06:00:00Z"}`, want: []string{"scheduled_time: given together with delay; write one of the two"}},
		"delay as a number":        {data: `{"deployment":"a/b","delay":90}`, want: []string{"delay: is of type number", `write a duration like "90s", "5m" or "2h"`}},
		"negative delay":           {data: `{"deployment":"a/b","delay":"-5m"}`, want: []string{`delay: "-5m" is not one; write a duration`}},
		"delay of eons":            {data: `{"deployment":"a/b","delay":"99999999999h"}`, want: []string{`delay: "99999999999h" is out of range; write a duration`}},
		"null parameters":          {data: `{"deployment":"a/b","parameters":null}`, want: []string{"parameters: is of type null, not object; write an object"}},
		"flow run id not a UUID":   {data: `{"flow_run_id":"x"}`, want: []string{`flow_run_id: "x" is not one; write the flow run's id, a UUID`}},
		"flow run id as a URN":     {data: `{"flow_run_id":"urn:uuid:` + id + `"}`, want: []string{"flow_run_id: "}},
		"flow run id null":         {data: `{"flow_run_id":null}`, want: []string{"flow_run_id: missing or null; write the flow run's id"}},
		"dispatch and more":        {data: `{"flow_run_id":"` + id + `","tags":[]}`, want: []string{"tags: does not belong beside flow_run_id; leave it out"}},
		"wake ready for something": {data: `{"work_pool":"p","ready":"yes"}`, want: []string{`ready: "yes" is not one; write true or false`}},
		"wake without a name":      {data: `{"work_pool":""}`, want: []string{"work_pool: empty; write the work pool's name"}},
		"wake deployment no UUID":  {data: `{"deployment_id":7}`, want: []string{"deployment_id: the number 7; write the deployment's id, a UUID"}},
		"unknown shape":            {data: `{"b":1,"a":2}`, want: []string{"message: unknown fields a, b; " + shapes, `{"flow_run_id": "…"}`, `{"work_pool": "…"}`, "portable template"}},
		"empty object":             {data: `{}`, want: []string{"message: an empty object; " + shapes}},
		"empty":                    {data: " ", want: []string{"message: empty; " + shapes}},
		"array":                    {data: `[{"flow_run_id":"` + id + `"}]`, want: []string{"message: an array; " + shapes}},
		"not JSON":                 {data: `deployment=etl/prod`, want: []string{"message: not JSON: ", shapes}},
		"two values":               {data: `{"work_pool":"p"}{"work_pool":"q"}`, want: []string{"message: more than one JSON value; "}},
		"not UTF-8":                {data: "{\"work_pool\":\"\xff\"}", want: []string{"message: not UTF-8; "}},
		"string of something else": {data: `"hello"`, want: []string{"JSON string: message: not JSON"}},
		"event of a work pool":     {data: `{"event":{"resource":{"prefect.resource.id":"prefect.work-pool.` + id + `"}}}`, want: []string{"event.resource.prefect.resource.id: ", "is not a flow run", "let the automation match prefect.resource.id prefect.flow-run.* only"}},
		"event null":               {data: `{"event":null}`, want: []string{"event: missing or null; write {\"event\": {{ event | tojson }}}"}},
		"event without resource":   {data: `{"event":{}}`, want: []string{"event.resource: missing or null; send the whole event"}},
		"portable without id":      {data: `{"event":"prefect.flow-run.Late","flow_run":""}`, want: []string{`flow_run: empty; write "{{ event.resource.id }}"`}},
		"portable, odd time":       {data: `{"event":"prefect.flow-run.Late","flow_run":"` + id + `","occurred":"now"}`, want: []string{`occurred: "now" is not one; ` + clock}},
		"binary CloudEvent, no id": {data: `{"work_pool":"p"}`, attributes: map[string]string{"ce-specversion": "1.0"}, want: []string{"CloudEvent: ", "send a CloudEvent 1.0"}},
		"CloudEvent of version 2":  {data: `{"work_pool":"p"}`, attributes: map[string]string{"ce-specversion": "2.0"}, want: []string{`ce-specversion: "2.0" is not one; write "1.0"`}},
		"structured, not valid":    {data: `{"specversion":"1.0","data":{}}`, want: []string{"CloudEvent: ", "send a CloudEvent 1.0"}},
		"structured, no data":      {data: `{"specversion":"1.0","id":"1","source":"/s","type":"t"}`, want: []string{"CloudEvent's data: message: empty; " + shapes}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := message.Decode([]byte(test.data), test.attributes)
			if err == nil {
				t.Fatalf("decoded as %#v", got)
			}
			if got != nil {
				t.Errorf("a value beside an error: %#v", got)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestDecodeReadsEveryEventOfRealServers(t *testing.T) {
	for _, file := range glob(t, "testdata/events/*.json") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data := read(t, file)
			var raw struct {
				ID       string            `json:"id"`
				Occurred time.Time         `json:"occurred"`
				Resource map[string]string `json:"resource"`
			}
			if err := json.Unmarshal(data, &raw); err != nil {
				t.Fatal(err)
			}
			bare, err := message.Decode(data, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := bare.(message.PrefectEvent)
			if got.WorkPool == "" || len(got.DeploymentID) != 36 {
				t.Errorf("work pool %q, deployment %q", got.WorkPool, got.DeploymentID)
			}
			got.WorkPool, got.DeploymentID = "", ""
			want := message.PrefectEvent{
				ID: raw.ID, Occurred: raw.Occurred.UTC(), FlowRunID: strings.TrimPrefix(raw.Resource["prefect.resource.id"], "prefect.flow-run."),
				StateType: raw.Resource["prefect.state-type"], StateName: raw.Resource["prefect.state-name"],
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			wrapped, err := message.Decode([]byte(`{"event":`+string(data)+`}`), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(bare, wrapped); diff != "" {
				t.Errorf("as the automation's body: %s", diff)
			}
		})
	}
}

func TestDecodeReadsEveryBodyOfRealWebhooks(t *testing.T) {
	want := map[string]message.PrefectEvent{
		"webhook-body-2.20.25-event-json.txt":      {ID: "a4f65da6-3cb3-4bed-a509-d96ee710a1cb", FlowRunID: "6536bcee-f430-4f40-be67-83d7d56d5723", StateType: "SCHEDULED", StateName: "Scheduled", WorkPool: "cr2", DeploymentID: "efb05602-c7b0-4bc3-80a9-d67c8cbd11f4", Occurred: at("2026-11-23T12:36:57.615638Z")},
		"webhook-body-2.20.25-portable.txt":        {ID: "9ce3c255-c8d2-49da-8300-0f9e25f345b0", FlowRunID: "ca7163af-2656-4a07-b7a9-558c598cd17e", StateType: "SCHEDULED", StateName: "Scheduled", Occurred: at("2026-11-23T12:34:57.411622Z")},
		"webhook-body-3.8.8-event-tojson-late.txt": {ID: "01a20861-29c3-7010-a3ea-099d81a7d2e0", FlowRunID: "01a2085c-8d7d-71b9-8784-eecb79fa3750", StateType: "SCHEDULED", StateName: "Late", WorkPool: "cr-pool", DeploymentID: "75225e56-0fcd-4350-a115-f5890a6a5d88", Occurred: at("2026-11-23T12:28:35.13943Z")},
		"webhook-body-3.8.8-event-tojson.txt":      {ID: "01a20853-a163-7fa7-8d37-554666dcedb9", FlowRunID: "62f3edd2-b038-43da-95d5-bc7cadd9f1fc", StateType: "SCHEDULED", StateName: "Scheduled", WorkPool: "cr-pool", DeploymentID: "4deef3ae-e96b-4529-8ecc-fc5fd209aff7", Occurred: at("2026-11-23T12:13:48.259684Z")},
		"webhook-body-3.8.8-odd-state-name.txt":    {ID: "01a20868-4edb-7f51-adf1-901f3553517b", FlowRunID: "94c6ba7a-25de-4fcb-9b37-8dfb8281263f", StateType: "PENDING", StateName: `It's <my> "état"`, WorkPool: "w-pool", DeploymentID: "c5af673c-2a0c-48a4-91c0-fd963b6f6ec2", Occurred: at("2026-11-23T12:36:23.387635Z")},
		"webhook-body-3.8.8-portable.txt":          {ID: "01a20867-e931-7960-bc16-f0715018a117", FlowRunID: "94c6ba7a-25de-4fcb-9b37-8dfb8281263f", StateType: "SCHEDULED", StateName: "Scheduled", Occurred: at("2026-11-23T12:35:57.361366Z")},
	}
	for _, file := range glob(t, "testdata/bodies/*.txt") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			got, err := message.Decode(read(t, file), nil)
			if strings.Contains(file, "render-error") {
				if err == nil || !strings.Contains(err.Error(), "use the portable template in the automation") {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(any(want[filepath.Base(file)]), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEncodedMessagesDecode(t *testing.T) {
	for _, test := range []struct {
		data []byte
		want any
	}{
		{message.EncodeDispatch(message.Dispatch{FlowRunID: id}), message.Dispatch{FlowRunID: id}},
		{message.EncodeWake(message.Wake{WorkPool: `a "pool"`}), message.Wake{WorkPool: `a "pool"`}},
		{message.EncodeWake(message.Wake{WorkPool: "p", DeploymentID: id}), message.Wake{WorkPool: "p", DeploymentID: id}},
	} {
		got, err := message.Decode(test.data, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestSchemaAndRunRequestHaveTheSameFields(t *testing.T) {
	var schema struct {
		Properties map[string]struct{ Description string }
	}
	if err := json.Unmarshal(message.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	if got, want := len(schema.Properties), reflect.TypeFor[message.RunRequest]().NumField(); got != want {
		t.Errorf("the schema has %d fields, RunRequest %d", got, want)
	}
	for name, p := range schema.Properties {
		if p.Description == "" {
			t.Errorf("%s has no description", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, pattern := range []string{"testdata/events/*.json", "testdata/bodies/*.txt"} {
		for _, file := range glob(f, pattern) {
			f.Add(read(f, file), "")
		}
	}
	f.Add([]byte(`{"deployment":"a/b","delay":"1m","tags":["x"],"expires_at":"2026-01-01T07:00:00Z"}`), "1.0")
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"e30="}`), "")
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","data":"{}"}`), "0.3")
	f.Fuzz(func(t *testing.T, data []byte, version string) {
		attributes := map[string]string{}
		if version != "" {
			attributes = map[string]string{"ce-specversion": version, "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
		}
		got, err := message.Decode(data, attributes)
		switch m := got.(type) {
		case message.RunRequest:
			if m.Deployment == "" || m.Delay < 0 || m.Delay > 0 && m.ScheduledTime != nil {
				t.Errorf("run request %#v", m)
			}
		case message.Dispatch:
			again, err := message.Decode(message.EncodeDispatch(m), nil)
			if err != nil || again != got {
				t.Errorf("%#v became %#v, %v", got, again, err)
			}
		case message.Wake:
			again, err := message.Decode(message.EncodeWake(m), nil)
			if err != nil || again != got {
				t.Errorf("%#v became %#v, %v", got, again, err)
			}
		case message.PrefectEvent:
			if len(m.FlowRunID) != 36 {
				t.Errorf("event %#v", m)
			}
		case nil:
			if err == nil || !strings.Contains(err.Error(), ": ") {
				t.Errorf("error %v", err)
			}
		default:
			t.Errorf("%T", got)
		}
	})
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	return files
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
