package cloudrun_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
)

// failed returns the captured LogEntry of a failed execution, changed.
func failed(t *testing.T, change func(entry, payload, status map[string]any)) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/failed-non-zero-exit.json")
	if err != nil {
		t.Fatal(err)
	}
	var entry map[string]any
	if err := json.Unmarshal(data, &entry); err != nil {
		t.Fatal(err)
	}
	payload := entry["protoPayload"].(map[string]any)
	change(entry, payload, payload["response"].(map[string]any)["status"].(map[string]any))
	data, err = json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

var captured = cloudrun.ExecutionName{Project: "example-project", Region: "us-east1", Job: "etl-jobs", Execution: "etl-jobs-crrgf"}

func TestReadEntryReadsCaptures(t *testing.T) {
	got, err := cloudrun.ReadEntry(failed(t, func(_, _, _ map[string]any) {}))
	if err != nil {
		t.Fatal(err)
	}
	got.FlowRunID = "" // the capture is of another system
	want := cloudrun.Entry{
		Execution: captured, Complete: true, InsertID: "-s2vtedfvva",
		Started: at("2025-05-30T15:30:03.390746Z"), Completed: at("2025-05-30T15:30:28.42504Z"),
		Resources: flowrun.Resources{MilliCPU: 1000, MemoryBytes: 512 << 20},
		Outcome:   flowrun.Outcome{Kind: flowrun.ExitCode, Text: "Task etl-jobs-crrgf-task0 failed with message: The container exited with an error."},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("failed (-want +got):\n%s", diff)
	}
	payload, err := os.ReadFile("testdata/succeeded-protopayload-only.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err = cloudrun.ReadEntry([]byte(`{"insertId":"i","protoPayload":` + string(payload) + `}`))
	if err != nil {
		t.Fatal(err)
	}
	name := cloudrun.ExecutionName{Project: "example-project-2", Region: "us-central1", Job: "loader", Execution: "loader-fqsn2"}
	if got.Execution != name || got.Outcome.Kind != flowrun.Succeeded || !got.Complete {
		t.Errorf("succeeded: %+v", got)
	}
}

// TestReadEntryUnderstandsEveryWording holds what is known of Cloud Run's wordings, old and new.
func TestReadEntryUnderstandsEveryWording(t *testing.T) {
	for name, test := range map[string]struct {
		code            int
		reason, message string
		cancelled       int
		want            flowrun.Outcome
	}{
		"any failure, 2022":      {code: 10, reason: "NonZeroExitCode", message: "Execution failed.", want: flowrun.Outcome{Kind: flowrun.ExitCode}},
		"exit code, 2025":        {code: 10, reason: "NonZeroExitCode", message: "Task J-x-task0 failed with message: The container exited with an error.", want: flowrun.Outcome{Kind: flowrun.ExitCode}},
		"exit code, 2026":        {code: 10, reason: "NonZeroExitCode", message: "Task J-x-task0 failed with exit code: 7 and message: The container exited with an error.", want: flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 7}},
		"timeout, 2025":          {code: 4, message: "Task J-x-task0 failed with message: The configured timeout was reached.", want: flowrun.Outcome{Kind: flowrun.TimedOut}},
		"timeout, 2026":          {code: 4, message: "Task J-x-task0 failed with exit code: 0 and message: The configured timeout was reached.", want: flowrun.Outcome{Kind: flowrun.TimedOut}},
		"timeout by code alone":  {code: 4, message: "Something new.", want: flowrun.Outcome{Kind: flowrun.TimedOut}},
		"timeout by text alone":  {code: 10, message: "The configured timeout was reached.", want: flowrun.Outcome{Kind: flowrun.TimedOut}},
		"memory":                 {code: 10, message: "Task J-x-task0 failed with exit code: 0 and message: The configured memory limit was reached.", want: flowrun.Outcome{Kind: flowrun.OutOfMemory}},
		"memory, as exit code":   {code: 8, reason: "NonZeroExitCode", message: "The configured memory limit was reached.", want: flowrun.Outcome{Kind: flowrun.OutOfMemory}},
		"memory, in other words": {code: 8, message: "The container ran out of memory.", want: flowrun.Outcome{Kind: flowrun.OutOfMemory}},
		"exit code, no colon":    {code: 10, message: "Task J-x-task0 failed with exit code 1", want: flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 1}},
		"exit code, no word":     {code: 10, message: "Task J-x-task0 failed with message: exit 1.", want: flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 1}},
		"exit code, of a call":   {code: 10, message: "Container called exit(3).", want: flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 3}},
		"signal, no number":      {code: 10, message: "Task J-x-task0 failed with exit code: 0 and message: A signal terminated the container.", want: flowrun.Outcome{Kind: flowrun.Signal}},
		"signal, by name":        {code: 10, message: "Container terminated on signal SIGBUS.", want: flowrun.Outcome{Kind: flowrun.Signal}},
		"internal error":         {code: 13, message: "Task J-x-task0 failed with exit code: 0 and message: Internal error.", want: flowrun.Outcome{Kind: flowrun.Platform}},
		"unknown error":          {code: 2, message: "Task J-x-task0 failed with exit code: 0 and message: Unknown error", want: flowrun.Outcome{Kind: flowrun.Platform}},
		"a code of later":        {code: 99, message: "Something new.", want: flowrun.Outcome{Kind: flowrun.Platform}},
		"cancelled by code":      {code: 1, message: "?", want: flowrun.Outcome{Kind: flowrun.Cancelled}},
		"deleted, not cancelled": {code: 1, reason: "Deleted", message: "?", cancelled: 1, want: flowrun.Outcome{Kind: flowrun.Deleted}},
		"secret not permitted":   {code: 7, message: "Permission denied on secret: projects/1/secrets/s/versions/latest for Revision service account a@b. The service account used must be granted the 'Secret Manager Secret Accessor' role.", want: flowrun.Outcome{Kind: flowrun.Secret}},
		"image not permitted":    {code: 7, message: "Google Cloud Run Service Agent a@b must have permission to read the image, gcr.io/p/i.", want: flowrun.Outcome{Kind: flowrun.Image}},
		"not permitted by code":  {code: 7, message: "Something new.", want: flowrun.Outcome{Kind: flowrun.Permission}},
		"service account":        {code: 9, message: "The service account a@b does not exist.", want: flowrun.Outcome{Kind: flowrun.Permission}},
		"signal":                 {code: 10, message: "Task J-x-task0 failed with exit code: 0 and message: Container terminated on signal 11.", want: flowrun.Outcome{Kind: flowrun.Signal, Signal: 11}},
		"cancelled by count":     {code: 1, message: "Execution J-x was cancelled.", cancelled: 1, want: flowrun.Outcome{Kind: flowrun.Cancelled}},
		"cancelled by reason":    {code: 1, reason: "Cancelled", message: "?", want: flowrun.Outcome{Kind: flowrun.Cancelled}},
		"cancelling":             {code: 1, reason: "Cancelling", message: "?", want: flowrun.Outcome{Kind: flowrun.Cancelled}},
		"cancelled by text":      {code: 1, message: "Cancelled by user.", want: flowrun.Outcome{Kind: flowrun.Cancelled}},
		"deleted":                {code: 1, reason: "Deleted", message: "?", want: flowrun.Outcome{Kind: flowrun.Deleted}},
		"secret":                 {code: 10, message: "Secret Version [projects/p/secrets/s/versions/1] is in DISABLED state.", want: flowrun.Outcome{Kind: flowrun.Secret}},
		"image":                  {code: 10, message: "Image 'gcr.io/p/i' not found.", want: flowrun.Outcome{Kind: flowrun.Image}},
		"permission":             {code: 10, message: "Permission 'x' denied.", want: flowrun.Outcome{Kind: flowrun.Permission}},
		"an unknown wording":     {code: 13, message: "Internal system error, system will retry.", want: flowrun.Outcome{Kind: flowrun.Platform}},
		"exit code out of range": {code: 10, message: "failed with exit code: 99999999999999999999", want: flowrun.Outcome{Kind: flowrun.Platform}},
	} {
		t.Run(name, func(t *testing.T) {
			data := failed(t, func(_, payload, status map[string]any) {
				payload["status"] = map[string]any{"code": test.code}
				status["cancelledCount"] = test.cancelled
				status["conditions"] = []any{map[string]any{"type": "Completed", "status": "False", "reason": test.reason, "message": test.message}}
			})
			got, err := cloudrun.ReadEntry(data)
			if err != nil {
				t.Fatal(err)
			}
			test.want.Text = test.message // always kept for people
			if diff := cmp.Diff(test.want, got.Outcome); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestTheNameOfAFlowRunIsNoReason holds that words in a job's name, which has the flow run's, are not
// read as why its execution ended, whether the entry holds the execution or its status alone.
func TestTheNameOfAFlowRunIsNoReason(t *testing.T) {
	for _, slug := range []string{"image-resize", "secret-otter", "permission-slip"} {
		job := "pp-" + slug + "-0123456789abc"
		for message, want := range map[string]flowrun.Outcome{
			"Task " + job + "-x-task0 failed with exit code: 7 and message: The container exited with an error.":                   {Kind: flowrun.ExitCode, ExitCode: 7},
			"Task " + job + "-x-task0 failed with exit code: 0 and message: A signal terminated the container.":                    {Kind: flowrun.Signal},
			"Task " + job + "-x-task0 failed with exit code: 0 and message: Internal error.":                                       {Kind: flowrun.Platform},
			"Task " + job + "-x-task0 failed with message: Image 'gcr.io/p/i' not found.":                                          {Kind: flowrun.Image},
			"Task " + job + "-x-task0 failed with message: Secret Version [projects/p/secrets/s/versions/1] is in DISABLED state.": {Kind: flowrun.Secret},
			"Task " + job + "-x-task0 failed with message: Permission 'x' denied.":                                                 {Kind: flowrun.Permission},
			"Execution " + job + "-x has failed to complete, 0/1 tasks were a success.":                                            {Kind: flowrun.Platform},
			"Something new about job '" + job + "', projects/p/locations/r/jobs/" + job + "/executions/" + job + "-x.":             {Kind: flowrun.Platform},
		} {
			for _, response := range []bool{true, false} {
				got, err := cloudrun.ReadEntry(failed(t, func(entry, payload, status map[string]any) {
					entry["labels"] = map[string]any{"run.googleapis.com/execution_name": job + "-x"}
					entry["resource"].(map[string]any)["labels"].(map[string]any)["job_name"] = job
					payload["status"] = map[string]any{"code": 10, "message": message}
					status["conditions"] = []any{map[string]any{"type": "Completed", "status": "False", "message": message}}
					if !response {
						delete(payload, "response")
					}
				}))
				if err != nil {
					t.Fatal(err)
				}
				want.Text = message
				if diff := cmp.Diff(want, got.Outcome); diff != "" {
					t.Errorf("with a response: %t, %s\n%s", response, message, diff)
				}
			}
		}
	}
}

// failedSomehow is as much as the status of the capture's entry tells.
var failedSomehow = flowrun.Outcome{Kind: flowrun.Platform, Text: "Execution etl-jobs-crrgf has failed to complete, 0/1 tasks were a success."}

func TestReadEntryOfAPart(t *testing.T) {
	for name, test := range map[string]struct {
		change func(entry, payload, status map[string]any)
		want   cloudrun.Entry
	}{
		"no response": {
			change: func(_, payload, _ map[string]any) { delete(payload, "response") },
			want:   cloudrun.Entry{Execution: captured, InsertID: "-s2vtedfvva", Outcome: failedSomehow},
		},
		"no response, succeeded": {
			change: func(_, payload, _ map[string]any) {
				delete(payload, "response")
				payload["status"] = map[string]any{"message": "Execution etl-jobs-crrgf has completed successfully."}
			},
			want: cloudrun.Entry{Execution: captured, InsertID: "-s2vtedfvva", Outcome: flowrun.Outcome{
				Kind: flowrun.Succeeded, Text: "Execution etl-jobs-crrgf has completed successfully.",
			}},
		},
		"no response, timed out": {
			change: func(_, payload, _ map[string]any) {
				delete(payload, "response")
				payload["status"] = map[string]any{"code": 4, "message": "Execution etl-jobs-crrgf has failed to complete."}
			},
			want: cloudrun.Entry{Execution: captured, InsertID: "-s2vtedfvva", Outcome: flowrun.Outcome{
				Kind: flowrun.TimedOut, Text: "Execution etl-jobs-crrgf has failed to complete.",
			}},
		},
		"split, and the status is elsewhere": {
			change: func(entry, payload, _ map[string]any) {
				entry["split"] = map[string]any{"uid": "u", "index": 1, "totalSplits": 2}
				delete(payload, "response")
				delete(payload, "status")
			},
			want: cloudrun.Entry{Execution: captured, InsertID: "-s2vtedfvva"},
		},
		"split": {
			change: func(entry, payload, _ map[string]any) {
				entry["split"] = map[string]any{"uid": "u", "index": 0, "totalSplits": 2}
				delete(payload, "response")
				delete(payload, "resourceName")
			},
			want: cloudrun.Entry{Execution: captured, InsertID: "-s2vtedfvva", Outcome: failedSomehow},
		},
		"split, without a conclusion": {
			change: func(entry, payload, status map[string]any) {
				entry["split"] = map[string]any{"uid": "u", "index": 0, "totalSplits": 2}
				delete(status, "conditions")
				delete(status, "completionTime")
				payload["response"].(map[string]any)["spec"] = nil
			},
			want: cloudrun.Entry{Execution: captured, InsertID: "-s2vtedfvva", Started: at("2025-05-30T15:30:03.390746Z")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := cloudrun.ReadEntry(failed(t, test.change))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadEntryRefusesWhatIsNoCompletion(t *testing.T) {
	for name, test := range map[string]struct {
		change func(entry, payload, status map[string]any)
	}{
		"another log": {func(entry, _, _ map[string]any) {
			entry["logName"] = "projects/p/logs/cloudaudit.googleapis.com%2Factivity"
		}},
		"another service": {func(_, payload, _ map[string]any) { payload["serviceName"] = "storage.googleapis.com" }},
		"another method":  {func(_, payload, _ map[string]any) { payload["methodName"] = "/Jobs.ReplaceJob" }},
		"a job being created": {func(_, payload, _ map[string]any) {
			payload["methodName"] = "/Jobs.CreateJob"
			payload["status"] = map[string]any{"message": "Ready condition status changed to True for Job."}
		}},
		"not completed yet": {func(_, _, status map[string]any) {
			delete(status, "completionTime")
			status["conditions"] = []any{map[string]any{"type": "Completed", "status": "Unknown"}}
		}},
		"nothing names the execution": {func(entry, payload, _ map[string]any) {
			delete(entry, "labels")
			delete(payload, "resourceName")
			delete(payload, "response")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			data := failed(t, func(entry, payload, status map[string]any) {
				entry["severity"] = "INFO"
				test.change(entry, payload, status)
			})
			if got, err := cloudrun.ReadEntry(data); !errors.Is(err, cloudrun.ErrNotCompletion) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	if _, err := cloudrun.ReadEntry([]byte("{")); err == nil || errors.Is(err, cloudrun.ErrNotCompletion) {
		t.Errorf("not JSON: %v", err)
	}
}

func TestExecutionNamesAreReadBack(t *testing.T) {
	if got, err := cloudrun.ParseExecutionName(captured.String()); err != nil || got != captured {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "projects/p/locations/r/jobs/j", "projects//locations/r/jobs/j/executions/e", captured.String() + "/x"} {
		if got, err := cloudrun.ParseExecutionName(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
	if s := (cloudrun.ExecutionName{}).String(); s != "" {
		t.Errorf("the zero name is %q", s)
	}
}

// TestAnEntryOfAJobThatCannotStart holds what is known of why a job never starts its execution.
func TestAnEntryOfAJobThatCannotStart(t *testing.T) {
	for name, test := range map[string]struct {
		reason, message string
		want            flowrun.OutcomeKind
	}{
		"image missing":               {"ContainerMissing", "Image 'gcr.io/p/i' not found.", flowrun.Image},
		"image missing, by reason":    {"ContainerMissing", "?", flowrun.Image},
		"image not permitted":         {"ContainerPermissionDenied", "Google Cloud Run Service Agent a@b must have permission to read the image, gcr.io/p/i.", flowrun.Image},
		"image unauthorized":          {"ContainerImageUnauthorized", "?", flowrun.Image},
		"secret not permitted":        {"SecretsAccessCheckFailed", "Permission denied on secret: projects/1/secrets/s/versions/latest for Revision service account a@b.", flowrun.Secret},
		"secret, by reason":           {"SecretsAccessCheckFailed", "?", flowrun.Secret},
		"key not permitted":           {"EncryptionKeyPermissionDenied", "?", flowrun.Permission},
		"service account":             {"", "Permission 'iam.serviceaccounts.actAs' denied on service account a@b (or it may not exist).", flowrun.Permission},
		"network":                     {"VpcNetworkNotFound", "VPC network n was not found.", flowrun.Platform},
		"a wording that is not known": {"", "Something new.", flowrun.Platform},
		"a job's name":                {"", "Something new about pp-secret-otter-0123456789abc.", flowrun.Platform},
	} {
		t.Run(name, func(t *testing.T) {
			data := failed(t, func(entry, payload, status map[string]any) {
				delete(entry, "labels")
				payload["methodName"], payload["resourceName"] = "/Jobs.CreateJob", "namespaces/example-project/jobs/etl-jobs"
				payload["status"] = map[string]any{"code": 9, "message": test.message}
				delete(status, "completionTime")
				status["conditions"] = []any{map[string]any{"type": "Ready", "status": "False", "reason": test.reason, "message": test.message}}
			})
			got, err := cloudrun.ReadEntry(data)
			if err != nil {
				t.Fatal(err)
			}
			want := cloudrun.Entry{
				Execution: captured.JobName().Execution(cloudrun.Token), Complete: true, InsertID: "-s2vtedfvva",
				Outcome: flowrun.Outcome{Kind: test.want, Text: test.message},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhoCancelledIsReadWhereItIsNotWhoCreated(t *testing.T) {
	for modifier, want := range map[string]string{
		"deployer@example-project.iam.gserviceaccount.com": "", "person@example.com": "person@example.com",
	} {
		got, err := cloudrun.ReadEntry(failed(t, func(_, payload, status map[string]any) {
			payload["response"].(map[string]any)["metadata"].(map[string]any)["annotations"].(map[string]any)["run.googleapis.com/lastModifier"] = modifier
			status["cancelledCount"] = 1.0
		}))
		if err != nil || got.Outcome.Kind != flowrun.Cancelled || got.Outcome.By != want {
			t.Errorf("%+v, %v", got.Outcome, err)
		}
	}
}

func TestNumbersOfAStructAreRead(t *testing.T) {
	got, err := cloudrun.ReadEntry([]byte(strings.Replace(string(failed(t, func(_, _, status map[string]any) {
		delete(status, "conditions")
		status["conditions"] = []any{map[string]any{"type": "Completed", "status": "False", "message": "Something new."}}
	})), `"code":10`, `"code":4.0`, 1)))
	if err != nil || got.Outcome.Kind != flowrun.TimedOut {
		t.Errorf("%+v, %v", got.Outcome, err)
	}
}
