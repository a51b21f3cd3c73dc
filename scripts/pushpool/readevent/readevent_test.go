package readevent

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/cloudrun"
)

func sample(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("../../../shared/cloudrun/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestReadEventReadsWhatPeopleHaveOfAnEntry holds that one entry is read alike however it is wrapped.
func TestReadEventReadsWhatPeopleHaveOfAnEntry(t *testing.T) {
	entry := sample(t, "failed-non-zero-exit.json")
	encoded := base64.StdEncoding.EncodeToString([]byte(entry))
	want := Event{
		Execution: "etl-jobs-crrgf", Job: "etl-jobs", Region: "us-east1", Outcome: "exit_code",
		Message: "The container exited with a non-zero code. Its last log lines, in this flow run's logs and in Cloud Logging, tell why. " +
			"Cloud Run says: Task etl-jobs-crrgf-task0 failed with message: The container exited with an error. " +
			"Logs: https://console.cloud.google.com/logs/query;query=resource.type%3D%22cloud_run_job%22%0Aresource.labels.job_name%3D%22etl-jobs%22%0A" +
			"labels.%22run.googleapis.com%2Fexecution_name%22%3D%22etl-jobs-crrgf%22;timeRange=P30D?project=example-project " +
			"Execution: https://console.cloud.google.com/run/jobs/executions/details/us-east1/etl-jobs-crrgf/tasks?project=example-project",
	}
	for name, data := range map[string]string{
		"a LogEntry":                   entry,
		"with a byte order mark":       "\uFEFF" + entry,
		"gcloud logging read":          "[" + entry + "]",
		"a push":                       `{"message":{"data":"` + encoded + `","messageId":"1","message_id":"1"},"subscription":"s","deliveryAttempt":3}`,
		"gcloud pubsub pull":           `[{"ackId":"a","message":{"data":"` + encoded + `"}}]`,
		"url-safe base64":              `{"message":{"data":"` + base64.URLEncoding.EncodeToString([]byte(entry)) + `"}}`,
		"base64 without padding":       `{"message":{"data":"` + base64.RawURLEncoding.EncodeToString([]byte(entry)) + `"}}`,
		"a message":                    `{"data":"` + encoded + `"}`,
		"a CloudEvent":                 `{"specversion":"1.0","type":"google.cloud.audit.log.v1.written","data":` + entry + `}`,
		"a CloudEvent in base64":       `{"specversion":"1.0","data_base64":"` + encoded + `"}`,
		"a CloudEvent of a message":    `{"specversion":"1.0","data":{"message":{"data":"` + encoded + `"}}}`,
		"a message that holds a push":  `{"data":"` + base64.StdEncoding.EncodeToString([]byte(`{"message":{"data":"`+encoded+`"}}`)) + `"}`,
		"a push whose data is no text": `{"message":{"data":` + entry + `}}`,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Read([]byte(data))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadEventPrintsWhatTheIssuePromises(t *testing.T) {
	changed := func(old, new string) string {
		entry := strings.Replace(sample(t, "failed-non-zero-exit.json"), old, new, 1)
		if entry == sample(t, "failed-non-zero-exit.json") {
			t.Fatalf("there is no %s in the sample", old)
		}
		return entry
	}
	for name, test := range map[string]struct {
		entry string
		want  map[string]any // but the message
		says  string
	}{
		"a success is of code 0": {
			sample(t, "succeeded-protopayload-only.json"),
			map[string]any{"execution": "loader-fqsn2", "job": "loader", "region": "us-central1", "flow_run_id": nil, "outcome": "succeeded", "exit_code": 0.0},
			"Execution loader-fqsn2 has completed successfully.",
		},
		"an exit code": {
			changed("failed with message", "failed with exit code: 7 and message"),
			map[string]any{"execution": "etl-jobs-crrgf", "job": "etl-jobs", "region": "us-east1", "flow_run_id": nil, "outcome": "exit_code", "exit_code": 7.0},
			"exited with code 7",
		},
		"a flow run by our label": {
			changed(`"run.googleapis.com/jobGeneration"`, `"pushpool-flow-run": "f", "run.googleapis.com/jobGeneration"`),
			map[string]any{"execution": "etl-jobs-crrgf", "job": "etl-jobs", "region": "us-east1", "flow_run_id": "f", "outcome": "exit_code", "exit_code": nil},
			"a non-zero code",
		},
		"a flow run by its environment": {
			changed(`"env": [`, `"env": [{"name": "PREFECT__FLOW_RUN_ID", "value": "f"},`),
			map[string]any{"execution": "etl-jobs-crrgf", "job": "etl-jobs", "region": "us-east1", "flow_run_id": "f", "outcome": "exit_code", "exit_code": nil},
			"a non-zero code",
		},
		"no exit code where the container did not exit by itself": {
			changed("The container exited with an error.", "The configured timeout was reached."),
			map[string]any{"execution": "etl-jobs-crrgf", "job": "etl-jobs", "region": "us-east1", "flow_run_id": nil, "outcome": "timed_out", "exit_code": nil},
			"`timeout`",
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := Read([]byte(test.entry))
			if err != nil {
				t.Fatal(err)
			}
			data, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(data, &got); err != nil {
				t.Fatal(err)
			}
			if m, _ := got["message"].(string); !strings.Contains(m, test.says) {
				t.Errorf("message %q does not say %q", m, test.says)
			}
			delete(got, "message")
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadEventSaysWhyAnEventIsNoCompletion(t *testing.T) {
	for name, test := range map[string]struct {
		data, says string
		completion bool // it is said to be no completion entry
	}{
		"a line of a container":   {`{"logName":"projects/p/logs/run.googleapis.com%2Fstdout","textPayload":"hello"}`, `logName is "projects/p/logs/run.googleapis.com%2Fstdout"`, true},
		"another method":          {`{"protoPayload":{"serviceName":"run.googleapis.com","methodName":"/Services.ReplaceService"}}`, `methodName is "/Services.ReplaceService"`, true},
		"another kind of message": {`{"message":{"data":"eyJkZXBsb3ltZW50IjoiYS9iIn0="}}`, "neither a LogEntry", false},
		"no JSON":                 {"Execution has completed", "no JSON object", false},
		"nothing":                 {"", "no JSON object", false},
		"two entries":             {"[{}, {}]", "there are 2 entries", false},
		"no base64":               {`{"message":{"data":"{"}}`, "not base64", false},
		"a part of an entry":      {`{"split":{"index":1},"labels":{"run.googleapis.com/execution_name":"e"},"resource":{"labels":{"job_name":"j","location":"l","project_id":"p"}},"protoPayload":{"serviceName":"run.googleapis.com","methodName":"/Jobs.RunJob"}}`, "the finalizer asks Cloud Run", false},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := Read([]byte(test.data))
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v, %v", e, err)
			}
			if errors.Is(err, cloudrun.ErrNotCompletion) != test.completion {
				t.Errorf("%v", err)
			}
		})
	}
}

// FuzzReadEvent holds that whatever is in the file, the command ends with an error or with all that an
// event has, and reads it alike in a push.
func FuzzReadEvent(f *testing.F) {
	for _, name := range []string{"failed-non-zero-exit.json", "succeeded-protopayload-only.json"} {
		entry := sample(f, name)
		encoded := base64.StdEncoding.EncodeToString([]byte(entry))
		f.Add([]byte(entry))
		f.Add([]byte("\uFEFF[" + entry + "]"))
		f.Add([]byte(`[{"ackId":"a","message":{"data":"` + encoded + `"}}]`))
		f.Add([]byte(`{"specversion":"1.0","data_base64":"` + encoded + `"}`))
		f.Add([]byte(`{"specversion":"1.0","data":{"message":{"data":` + entry + `}}}`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Read(data)
		if err == nil && (got.Execution == "" || got.Job == "" || got.Region == "" || got.Outcome == "") {
			t.Errorf("no error, and the event %+v", got)
		}
		pushed, perr := Read([]byte(`{"message":{"data":"` + base64.StdEncoding.EncodeToString(data) + `"}}`))
		if tooDeep := perr != nil && strings.Contains(perr.Error(), "too often"); !tooDeep && (cmp.Diff(got, pushed) != "" || (err == nil) != (perr == nil)) {
			t.Errorf("%+v, %v; pushed %+v, %v", got, err, pushed, perr)
		}
	})
}
