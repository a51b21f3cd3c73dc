package finalizer

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/settle"
)

const (
	flowRunID = "94c6ba7a-25de-4fcb-9b37-8dfb8281263f"
	launchID  = flowrun.LaunchID("0b6d3e54-5f0c-5a55-8a64-0d4a4f3f7f10")
	job       = "pp-nightly-abcdefghijklm"
)

var (
	name = cloudrun.ExecutionName{Project: "example-project", Region: "us-east1", Job: job, Execution: job + "-x"}
	// As the sample tells them.
	started = time.Date(2025, 5, 30, 15, 30, 3, 390746000, time.UTC)
	ended   = time.Date(2025, 5, 30, 15, 30, 28, 425040000, time.UTC)
)

// settled is what the settler was told.
type settled struct {
	FlowRunID string
	Ending    settle.Ending
}

// surroundings are the finalizer's: the settler, Cloud Run and the ledger.
type surroundings struct {
	settled   []settled
	holders   map[string]bool
	fail      error
	execution *cloudrun.Execution // nil: gone
	readErr   error
	reads     []cloudrun.ExecutionName
	record    *flowrun.Record
	lookups   []string
	ledgerErr error
}

func (s *surroundings) Ended(_ context.Context, holder, id string, e settle.Ending) error {
	if s.holders == nil {
		s.holders = map[string]bool{}
	}
	s.holders[holder] = true
	s.settled = append(s.settled, settled{id, e})
	return s.fail
}

func (s *surroundings) Execution(_ context.Context, n cloudrun.ExecutionName) (cloudrun.Execution, error) {
	s.reads = append(s.reads, n)
	switch {
	case s.readErr != nil:
		return cloudrun.Execution{}, s.readErr
	case s.execution == nil:
		return cloudrun.Execution{}, &flowrun.Error{Fault: flowrun.NotFound, Act: "get execution " + n.String(), Err: errors.New("gone")}
	}
	return *s.execution, nil
}

func (s *surroundings) ByExecution(_ context.Context, n string) (flowrun.Record, bool, error) {
	s.lookups = append(s.lookups, n)
	if s.record == nil || s.ledgerErr != nil {
		return flowrun.Record{}, false, s.ledgerErr
	}
	return *s.record, true, nil
}

// object is a part of a LogEntry.
type object = map[string]any

func at(t *testing.T, o object, path ...string) object {
	t.Helper()
	for _, key := range path {
		inner, ok := o[key].(object)
		if !ok {
			t.Fatalf("the sample has no %v", path)
		}
		o = inner
	}
	return o
}

// entry is the sample of a live project, as our job would have it, with changes.
func entry(t *testing.T, changes ...func(object)) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "failed-non-zero-exit.json"))
	if err != nil {
		t.Fatal(err)
	}
	var e object
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	at(t, e, "labels")["run.googleapis.com/execution_name"] = name.Execution
	at(t, e, "resource", "labels")["job_name"] = job
	at(t, e, "protoPayload")["resourceName"] = "namespaces/example-project/executions/" + name.Execution
	labels := at(t, e, "protoPayload", "response", "metadata", "labels")
	labels["run.googleapis.com/job"] = job
	labels[cloudrun.LabelFlowRun], labels[cloudrun.LabelLaunch] = flowRunID, string(launchID)
	for _, change := range changes {
		change(e)
	}
	if data, err = json.Marshal(e); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAnEntrySettlesItsFlowRun_PrefectGCP178(t *testing.T) {
	response := func(e object) object { return at(t, e, "protoPayload", "response") }
	unlabelled := func(e object) {
		labels := at(t, response(e), "metadata", "labels")
		delete(labels, cloudrun.LabelFlowRun)
		delete(labels, cloudrun.LabelLaunch)
	}
	bare := func(e object) { delete(at(t, e, "protoPayload"), "response") }
	split := func(e object) { e["split"] = object{"uid": "u", "index": 0, "totalSplits": 2} }
	says := func(message string, code int) func(object) {
		return func(e object) {
			conditions, _ := at(t, response(e), "status")["conditions"].([]any)
			for _, c := range conditions {
				if c, _ := c.(object); c["type"] == "Completed" {
					c["message"] = message
					delete(c, "reason")
				}
			}
			at(t, e, "protoPayload", "status")["code"] = code
		}
	}
	resources := flowrun.Resources{MilliCPU: 1000, MemoryBytes: 512 << 20}
	retries := flowrun.Retries{Budget: map[flowrun.RetryKind]int{flowrun.RetryPlatform: 2}}
	execution := func(o *flowrun.Outcome, labels bool) *cloudrun.Execution {
		x := cloudrun.Execution{Name: name, StartTime: started, Outcome: o, Resources: resources}
		if o != nil {
			x.CompletionTime = ended
		}
		if labels {
			x.Labels = map[string]string{cloudrun.LabelFlowRun: flowRunID, cloudrun.LabelLaunch: string(launchID), cloudrun.LabelRetries: retries.String()}
		}
		return &x
	}
	record := &flowrun.Record{FlowRunID: flowRunID, Launch: flowrun.Launch{LaunchID: launchID, ExecutionName: name.String()}}
	oom := flowrun.Outcome{Kind: flowrun.OutOfMemory}
	killed := flowrun.Outcome{Kind: flowrun.Signal, Signal: 9}

	for rule, tt := range map[string]struct {
		entry       []byte
		execution   *cloudrun.Execution
		record      *flowrun.Record
		outcome     flowrun.OutcomeKind
		exitCode    int
		signal      int
		reads, asks int // of Cloud Run and of the ledger
		untimed     bool
		told        bool // the ledger alone knows the launch's resources
	}{
		"a complete entry needs nothing else": {
			entry: entry(t, says("The container exited with an error: exit code: 3", 10)), outcome: flowrun.ExitCode, exitCode: 3,
		},
		"a split entry is completed by the execution": {
			entry: entry(t, split, bare), execution: execution(&oom, true), outcome: flowrun.OutOfMemory, reads: 1,
		},
		"a split entry's first part, which has labels and no end, is completed by the execution": {
			entry: entry(t, split, func(e object) { delete(response(e), "status") }), execution: execution(&oom, true), outcome: flowrun.OutOfMemory, reads: 1,
		},
		"an entry without response is completed by the execution": {
			entry: entry(t, bare), execution: execution(&killed, true), outcome: flowrun.Signal, signal: 9, reads: 1,
		},
		"labels missing from entry and execution are found in the ledger": {
			entry: entry(t, unlabelled), execution: execution(&oom, false), record: record, outcome: flowrun.OutOfMemory, reads: 1, asks: 1,
		},
		"an end that the entry tells is not made vaguer by the execution": {
			entry: entry(t, unlabelled, says("The configured timeout was reached.", 4)), execution: execution(&flowrun.Outcome{Kind: flowrun.Platform}, true),
			outcome: flowrun.TimedOut, reads: 1,
		},
		"the real sample names no exit code, which the last attempt does": {
			entry: entry(t), execution: execution(&flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 7}, true), outcome: flowrun.ExitCode, exitCode: 7, reads: 1,
		},
		"a vague end is refined by the execution's last attempt": {
			entry: entry(t, says("Task failed.", 10)), execution: execution(&killed, true), outcome: flowrun.Signal, signal: 9, reads: 1,
		},
		"a vague end stays where the execution tells none": {
			entry: entry(t, says("Task failed.", 10)), execution: execution(nil, true), outcome: flowrun.Platform, reads: 1,
		},
		"a vague end stays where the execution is gone": {
			entry: entry(t, says("Task failed.", 10)), outcome: flowrun.Platform, reads: 1,
		},
		"an execution that is gone is found in the ledger": {
			entry: entry(t, bare), record: record, outcome: flowrun.Deleted, reads: 1, asks: 1, untimed: true, told: true,
		},
		"labels of a split entry do for an execution that is gone": {
			entry: entry(t, split, func(e object) { delete(response(e), "status") }), outcome: flowrun.Deleted, reads: 1, untimed: true,
		},
	} {
		t.Run(rule, func(t *testing.T) {
			s := &surroundings{execution: tt.execution, record: tt.record}
			f := &Finalizer{settler: s, executions: s, ledger: s}
			if err := f.Handle(t.Context(), delivery.Delivery{Data: tt.entry}); err != nil {
				t.Fatal(err)
			}
			want := settle.Ending{
				LaunchID: launchID, Execution: name, StartedAt: started, EndedAt: ended,
				Outcome: flowrun.Outcome{Kind: tt.outcome, ExitCode: tt.exitCode, Signal: tt.signal},
			}
			if !tt.told {
				want.Resources = resources
			}
			if tt.execution != nil && tt.execution.Labels != nil {
				want.Retries = flowrun.ParseRetries(retries.String())
			}
			if tt.untimed {
				want.StartedAt, want.EndedAt = time.Time{}, time.Time{}
			}
			got := append([]settled{}, s.settled...)
			for i := range got {
				got[i].Ending.Outcome.Text = "" // Cloud Run's own words, for people
			}
			if diff := cmp.Diff([]settled{{flowRunID, want}}, got); diff != "" {
				t.Errorf("settled (-want +got):\n%s", diff)
			}
			if len(s.reads) != tt.reads || len(s.lookups) != tt.asks {
				t.Errorf("read %v, asked the ledger for %v; want %d and %d", s.reads, s.lookups, tt.reads, tt.asks)
			}
			for _, n := range s.reads {
				if n != name {
					t.Errorf("read %s, want %s", n, name)
				}
			}
		})
	}
}

// A job that can never start its execution has an entry of its own, of its creation.
func TestAJobThatNeverStarts_Prefect22727(t *testing.T) {
	data := entry(t, func(e object) {
		p := at(t, e, "protoPayload")
		p["methodName"], p["resourceName"] = "/Jobs.CreateJob", "namespaces/example-project/jobs/"+job
		p["status"] = object{"code": 5, "message": "Image 'us-docker.pkg.dev/p/r/gone' not found."}
		delete(at(t, e, "labels"), "run.googleapis.com/execution_name")
		delete(at(t, p, "response"), "status")
	})
	s := &surroundings{}
	f := &Finalizer{settler: s, executions: s, ledger: s}
	if err := f.Handle(t.Context(), delivery.Delivery{Data: data}); err != nil {
		t.Fatal(err)
	}
	want := []settled{{flowRunID, settle.Ending{
		LaunchID: launchID, Execution: name,
		Outcome: flowrun.Outcome{Kind: flowrun.Image, Text: "Image 'us-docker.pkg.dev/p/r/gone' not found."},
	}}}
	if diff := cmp.Diff(want, s.settled); diff != "" {
		t.Errorf("settled (-want +got):\n%s", diff)
	}
}

func TestWhatIsNotOursIsAcknowledged(t *testing.T) {
	sample := func(file string) []byte {
		data, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for rule, tt := range map[string]struct {
		data  []byte
		reads int
	}{
		"the entry of somebody else's job":             {data: sample("failed-non-zero-exit.json")},
		"a payload without its entry":                  {data: sample("succeeded-protopayload-only.json")},
		"an entry of another method":                   {data: entry(t, func(e object) { at(t, e, "protoPayload")["methodName"] = "/Services.CreateService" })},
		"an entry of another service":                  {data: entry(t, func(e object) { at(t, e, "protoPayload")["serviceName"] = "compute.googleapis.com" })},
		"an entry of another log":                      {data: entry(t, func(e object) { e["logName"] = "projects/p/logs/run.googleapis.com%2Fstdout" })},
		"an entry of an execution that has not ended":  {data: entry(t, func(e object) { delete(at(t, e, "protoPayload", "response", "status"), "completionTime") })},
		"a job named like ours that nobody knows of":   {data: entry(t, func(e object) { delete(at(t, e, "protoPayload"), "response") }), reads: 1},
		"a job whose name only holds our prefix in it": {data: entry(t, func(e object) { at(t, e, "resource", "labels")["job_name"] = "my-pp-job" })},
	} {
		t.Run(rule, func(t *testing.T) {
			s := &surroundings{}
			f := &Finalizer{settler: s, executions: s, ledger: s}
			if err := f.Handle(t.Context(), delivery.Delivery{Data: tt.data}); err != nil {
				t.Fatal(err)
			}
			if len(s.settled) != 0 || len(s.reads) != tt.reads {
				t.Errorf("settled %v, read %v", s.settled, s.reads)
			}
		})
	}
}

func TestWhatFails(t *testing.T) {
	bare := func(e object) { delete(at(t, e, "protoPayload"), "response") }
	alive := &cloudrun.Execution{Name: name, Labels: map[string]string{cloudrun.LabelFlowRun: flowRunID, cloudrun.LabelLaunch: string(launchID)}}
	fault := func(f flowrun.Fault) error { return &flowrun.Error{Fault: f, Act: "call", Err: errors.New(f.String())} }
	for rule, tt := range map[string]struct {
		data   []byte
		s      surroundings
		letter bool // else delivered again
	}{
		"not JSON is for the dead letter":                 {data: []byte("{"), letter: true},
		"an entry of the wrong shape too":                 {data: []byte(`{"protoPayload":"text"}`), letter: true},
		"an execution that has not ended although it did": {data: entry(t, bare), s: surroundings{execution: alive}},
		"Cloud Run cannot be read":                        {data: entry(t, bare), s: surroundings{readErr: fault(flowrun.Unclear)}},
		"Cloud Run may not be read":                       {data: entry(t, bare), s: surroundings{readErr: fault(flowrun.Refused)}},
		"the ledger cannot be read":                       {data: entry(t, bare), s: surroundings{ledgerErr: errors.New("unavailable")}},
		"somebody else is at the flow run":                {data: entry(t), s: surroundings{fail: flowrun.ErrBusy}},
		"the flow may still tell its end itself":          {data: entry(t), s: surroundings{fail: settle.ErrWait}},
		"Prefect is out":                                  {data: entry(t), s: surroundings{fail: fault(flowrun.Refused)}},
		"Prefect will never take it":                      {data: entry(t), s: surroundings{fail: fault(flowrun.Permanent)}, letter: true},
	} {
		t.Run(rule, func(t *testing.T) {
			f := &Finalizer{settler: &tt.s, executions: &tt.s, ledger: &tt.s}
			err := f.Handle(t.Context(), delivery.Delivery{Data: tt.data})
			if err == nil || delivery.IsUnprocessable(err) != tt.letter {
				t.Errorf("got %v, want an error, for the dead letter: %t", err, tt.letter)
			}
			if tt.s.fail != nil && !errors.Is(err, tt.s.fail) {
				t.Errorf("got %v, want it to be %v", err, tt.s.fail)
			}
		})
	}
}

// Two deliveries of one entry never hold the same lease.
func TestEachDeliveryHasItsOwnHolder(t *testing.T) {
	s := &surroundings{}
	f := &Finalizer{settler: s, executions: s, ledger: s}
	for range 2 {
		if err := f.Handle(t.Context(), delivery.Delivery{Data: entry(t)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.holders) != 2 {
		t.Errorf("holders %v, want two", s.holders)
	}
}
