package cloudrun_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	project = "p"
	region  = "r"
)

// rig is the real client on the emulator.
type rig struct {
	*cloudrun.Client
	server  *cloudruntest.Server
	entries chan []byte
}

func newRig(t *testing.T, o cloudruntest.Options) rig {
	t.Helper()
	entries := make(chan []byte, 100)
	o.Env = append(o.Env, "PATH=/usr/bin:/bin")
	o.Publish = func(_ context.Context, entry []byte) error { entries <- entry; return nil }
	server, err := cloudruntest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	client, err := cloudrun.New(t.Context(), server.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return rig{client, server, entries}
}

// shell is a job that runs a shell script.
func shell(script string) *runpb.Job {
	j := &runpb.Job{Template: &runpb.ExecutionTemplate{Template: &runpb.TaskTemplate{
		Retries:    &runpb.TaskTemplate_MaxRetries{},
		Containers: []*runpb.Container{{Image: "image", Command: []string{"sh", "-c", script}}},
	}}}
	cloudrun.SetLabels(j, map[string]string{cloudrun.LabelFlowRun: "f", cloudrun.LabelLaunch: "l", cloudrun.LabelRetries: "1-0-0-0-0-0-yes"})
	return j
}

// create creates a job and returns the name of its execution.
func (r rig) create(t *testing.T, id string, j *runpb.Job) cloudrun.ExecutionName {
	t.Helper()
	if err := r.CreateJob(t.Context(), cloudrun.Launch{Name: cloudrun.JobName{Project: project, Region: region, Job: id}, Job: j}); err != nil {
		t.Fatal(err)
	}
	return cloudrun.ExecutionName{Project: project, Region: region, Job: id, Execution: id + "-" + cloudrun.Token}
}

// entry waits for the next audit entry.
func (r rig) entry(t *testing.T) cloudrun.Entry {
	t.Helper()
	select {
	case data := <-r.entries:
		e, err := cloudrun.ReadEntry(data)
		if err != nil {
			t.Fatalf("%v in %s", err, data)
		}
		return e
	case <-time.After(20 * time.Second):
		t.Fatal("no audit entry")
		return cloudrun.Entry{}
	}
}

// started waits until the execution's process has written a line.
func (r rig) started(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if x := r.server.Executions(); len(x) == 1 && len(x[0].LastLines) > 0 {
			return
		}
	}
	t.Fatal("the process wrote nothing")
}

// TestAnEndIsReadAlike holds that the entry and the execution tell the same of an end.
func TestAnEndIsReadAlike(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		do     func(t *testing.T, r rig, n cloudrun.ExecutionName)
		want   flowrun.Outcome
	}{
		"success":       {script: "true", want: flowrun.Outcome{Kind: flowrun.Succeeded}},
		"exit code":     {script: "exit 3", want: flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 3}},
		"signal":        {script: "kill -9 $$", want: flowrun.Outcome{Kind: flowrun.Signal, Signal: 9}},
		"command wrong": {script: "no-such-command", want: flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 127}},
		"timeout":       {script: "echo; exec sleep 60", want: flowrun.Outcome{Kind: flowrun.TimedOut}},
		"memory limit": {script: "echo; exec sleep 60", want: flowrun.Outcome{Kind: flowrun.OutOfMemory}, do: func(t *testing.T, r rig, n cloudrun.ExecutionName) {
			if err := r.server.ExhaustMemory(n.String()); err != nil {
				t.Error(err)
			}
		}},
		"cancelled": {script: "echo; exec sleep 60", want: flowrun.Outcome{Kind: flowrun.Cancelled}, do: func(t *testing.T, r rig, n cloudrun.ExecutionName) {
			if err := r.CancelExecution(t.Context(), n); err != nil {
				t.Error(err)
			}
		}},
		"cancelled, and deaf to SIGTERM": {script: "trap '' TERM; echo; while true; do sleep 1; done", want: flowrun.Outcome{Kind: flowrun.Cancelled}, do: func(t *testing.T, r rig, n cloudrun.ExecutionName) {
			if err := r.CancelExecution(t.Context(), n); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, cloudruntest.Options{StopGrace: 100 * time.Millisecond})
			j := shell(test.script)
			if test.want.Kind == flowrun.TimedOut {
				j.Template.Template.Timeout = durationpb.New(time.Second)
			}
			n := r.create(t, "pp-a", j)
			if test.do != nil {
				r.started(t)
				if x, err := r.Execution(t.Context(), n); err != nil || x.Outcome != nil {
					t.Errorf("alive: %+v, %v", x, err)
				}
				test.do(t, r, n)
			}
			e := r.entry(t)
			x, err := r.Execution(t.Context(), n)
			if err != nil || x.Outcome == nil {
				t.Fatalf("ended: %+v, %v", x, err)
			}
			text := cmpopts.IgnoreFields(flowrun.Outcome{}, "Text")
			if diff := cmp.Diff(test.want, *x.Outcome, text); diff != "" {
				t.Errorf("the execution tells (-want +got):\n%s", diff)
			}
			if test.want.Kind == flowrun.Signal {
				test.want.Signal = 0 // the entry has no number: the task is asked for it
			}
			if diff := cmp.Diff(test.want, e.Outcome, text); diff != "" {
				t.Errorf("the entry tells (-want +got):\n%s", diff)
			}
			want := cloudrun.Entry{
				Execution: n, FlowRunID: "f", LaunchID: "l", Complete: true, Started: x.StartTime, Completed: x.CompletionTime,
				Resources: flowrun.Resources{MilliCPU: 1000, MemoryBytes: 512 << 20}, Retries: flowrun.ParseRetries("1-0-0-0-0-0-yes"),
			}
			if diff := cmp.Diff(want, e, cmpopts.IgnoreFields(cloudrun.Entry{}, "Outcome", "InsertID")); diff != "" {
				t.Errorf("the entry (-want +got):\n%s", diff)
			}
			if x.Resources != e.Resources {
				t.Errorf("the execution has %+v", x.Resources)
			}
			if e.InsertID == "" || x.Labels[cloudrun.LabelFlowRun] != "f" || x.Labels[cloudrun.LabelLaunch] != "l" {
				t.Errorf("insert id %q, labels %v", e.InsertID, x.Labels)
			}
		})
	}
}

// TestTheTaskThatFailedIsAsked holds that of several tasks the one that the message names tells the end.
func TestTheTaskThatFailedIsAsked(t *testing.T) {
	r := newRig(t, cloudruntest.Options{})
	j := shell(`[ "$CLOUD_RUN_TASK_INDEX" = 0 ] || kill -7 $$`)
	j.Template.TaskCount = 2
	n := r.create(t, "pp-a", j)
	r.entry(t)
	x, err := r.Execution(t.Context(), n)
	if err != nil || x.Outcome == nil {
		t.Fatalf("%+v, %v", x, err)
	}
	want := flowrun.Outcome{Kind: flowrun.Signal, Signal: 7, Text: x.Outcome.Text}
	if diff := cmp.Diff(want, *x.Outcome); diff != "" {
		t.Error(diff)
	}
}

func TestAJobThatCannotStartSaysWhy(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*runpb.Job)
		want   flowrun.OutcomeKind
	}{
		"image missing": {func(j *runpb.Job) { j.Template.Template.Containers[0].Image = "gcr.io/p/missing" }, flowrun.Image},
		"secret missing": {func(j *runpb.Job) {
			j.Template.Template.Containers[0].Env = []*runpb.EnvVar{{Name: "KEY", Values: &runpb.EnvVar_ValueSource{
				ValueSource: &runpb.EnvVarSource{SecretKeyRef: &runpb.SecretKeySelector{Secret: "none", Version: "latest"}},
			}}}
		}, flowrun.Secret},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, cloudruntest.Options{})
			j := shell("true")
			test.change(j)
			n := r.create(t, "pp-a", j)
			e := r.entry(t)
			got, err := r.Job(t.Context(), n.JobName())
			if err != nil || got.Failure == nil {
				t.Fatalf("job %+v, %v", got, err)
			}
			if got.Failure.Kind != test.want || e.Outcome.Kind != test.want || e.Execution != n || e.FlowRunID != "f" || e.LaunchID != "l" {
				t.Errorf("job says %+v, entry %+v", got.Failure, e)
			}
			if _, err := r.Execution(t.Context(), n); flowrun.FaultOf(err) != flowrun.NotFound {
				t.Errorf("execution: %v", err)
			}
		})
	}
}

func TestAnExecutionThatCannotReadItsSecretSaysSo(t *testing.T) {
	r := newRig(t, cloudruntest.Options{DisabledSecrets: []string{"off"}})
	j := shell("true")
	j.Template.Template.Containers[0].Env = []*runpb.EnvVar{{Name: "KEY", Values: &runpb.EnvVar_ValueSource{
		ValueSource: &runpb.EnvVarSource{SecretKeyRef: &runpb.SecretKeySelector{Secret: "off", Version: "1"}},
	}}}
	r.create(t, "pp-a", j)
	if e := r.entry(t); e.Outcome.Kind != flowrun.Secret {
		t.Errorf("%+v", e.Outcome)
	}
}

func TestFaultsOfCreateJob(t *testing.T) {
	for name, test := range map[string]struct {
		id     string
		job    *runpb.Job
		answer error
		want   flowrun.Fault
	}{
		"a taken name":             {id: "pp-taken", job: shell("true"), want: flowrun.Exists},
		"a name against the rules": {id: "PP_a", job: shell("true"), want: flowrun.Permanent},
		"no container":             {id: "pp-a", job: &runpb.Job{Template: &runpb.ExecutionTemplate{Template: &runpb.TaskTemplate{}}}, want: flowrun.Permanent},
		"quota":                    {id: "pp-a", job: shell("true"), answer: status.Error(codes.ResourceExhausted, "Quota exceeded"), want: flowrun.Refused},
		"not permitted":            {id: "pp-a", job: shell("true"), answer: status.Error(codes.PermissionDenied, "iam.serviceaccounts.actAs"), want: flowrun.Permanent},
		"unavailable":              {id: "pp-a", job: shell("true"), answer: status.Error(codes.Unavailable, "try again"), want: flowrun.Unclear},
		"internal":                 {id: "pp-a", job: shell("true"), answer: status.Error(codes.Internal, "?"), want: flowrun.Unclear},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var answer atomic.Pointer[error]
			r := newRig(t, cloudruntest.Options{Intercept: func(_ context.Context, method string, phase cloudruntest.Phase, _ any) error {
				if e := answer.Load(); e != nil && method == "CreateJob" && phase == cloudruntest.Before {
					return *e
				}
				return nil
			}})
			r.create(t, "pp-taken", shell("true"))
			if test.answer != nil {
				answer.Store(&test.answer)
			}
			err := r.CreateJob(t.Context(), cloudrun.Launch{Name: cloudrun.JobName{Project: project, Region: region, Job: test.id}, Job: test.job})
			if err == nil || flowrun.FaultOf(err) != test.want {
				t.Errorf("%v is %v, want %v", err, flowrun.FaultOf(err), test.want)
			}
		})
	}
}

func TestStoppingWhatIsOverOrGoneIsNoError(t *testing.T) {
	r := newRig(t, cloudruntest.Options{})
	n := r.create(t, "pp-a", shell("true"))
	r.entry(t)
	for _, name := range []cloudrun.ExecutionName{n, {Project: project, Region: region, Job: "pp-none", Execution: "pp-none-x"}} {
		if err := r.CancelExecution(t.Context(), name); err != nil {
			t.Errorf("cancel %s: %v", name, err)
		}
		if err := r.DeleteJob(t.Context(), name.JobName()); err != nil {
			t.Errorf("delete job of %s: %v", name, err)
		}
	}
	if _, err := r.Execution(t.Context(), n); flowrun.FaultOf(err) != flowrun.NotFound {
		t.Errorf("the deleted job's execution: %v", err)
	}
}

func TestDeletingAJobEndsItsProcess(t *testing.T) {
	r := newRig(t, cloudruntest.Options{StopGrace: 100 * time.Millisecond})
	n := r.create(t, "pp-a", shell("echo; exec sleep 60"))
	r.started(t)
	if err := r.DeleteJob(t.Context(), n.JobName()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if x := r.server.Executions()[0]; x.State == cloudruntest.Deleted && x.PID == 0 {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%+v", x)
		}
	}
}

func TestListsHoldEverything(t *testing.T) {
	r := newRig(t, cloudruntest.Options{})
	for _, id := range []string{"pp-a", "pp-b"} {
		r.create(t, id, shell("true"))
		r.entry(t)
	}
	var jobs, executions []string
	for j, err := range r.Jobs(t.Context(), project, region) {
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, j.Name.Job)
	}
	for x, err := range r.Executions(t.Context(), project, region) {
		if err != nil {
			t.Fatal(err)
		}
		executions = append(executions, x.Name.Execution)
	}
	sorted := cmpopts.SortSlices(func(a, b string) bool { return a < b })
	if diff := cmp.Diff([]string{"pp-a", "pp-b"}, jobs, sorted); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"pp-a-x", "pp-b-x"}, executions, sorted); diff != "" {
		t.Error(diff)
	}
}

func TestOnlyPrefectsCommandListensForCancellation(t *testing.T) {
	for command, want := range map[string]bool{
		"prefect flow-run execute": true, "python -m prefect.engine": false, "": false,
	} {
		if got := (cloudrun.Execution{Command: []string{command}}).ListensForCancellation(); got != want {
			t.Errorf("%q: %v", command, got)
		}
	}
}

// TestEachReadIsAskedFor holds that no read is made, and no page of a list, that was refused.
func TestEachReadIsAskedFor(t *testing.T) {
	r := newRig(t, cloudruntest.Options{})
	for i := range 101 { // two pages
		r.create(t, fmt.Sprintf("job-%d", i), shell("true"))
		r.entry(t)
	}
	refused := &flowrun.Error{Fault: flowrun.Refused}
	name := cloudrun.JobName{Project: project, Region: region, Job: "job-0"}
	for act, c := range map[string]struct {
		read func(*cloudrun.Client) error
		want int
	}{
		"a job":      {func(c *cloudrun.Client) error { _, err := c.Job(t.Context(), name); return err }, 1},
		"all jobs":   {func(c *cloudrun.Client) error { return last(c.Jobs(t.Context(), project, region)) }, 2},
		"executions": {func(c *cloudrun.Client) error { return last(c.Executions(t.Context(), project, region)) }, 2},
		"a write": {func(c *cloudrun.Client) error {
			return c.DeleteJob(t.Context(), cloudrun.JobName{Project: project, Region: region, Job: "none"})
		}, 0},
		"an execution": {func(c *cloudrun.Client) error {
			_, err := c.Execution(t.Context(), name.Execution(cloudrun.Token))
			return err
		}, 1},
	} {
		asked, refuse := 0, false
		client := r.Asking(func(_ context.Context, p, in string) error {
			if asked++; p != project || in != region {
				t.Errorf("%s is asked for in %s/%s", act, p, in)
			}
			if refuse {
				return refused
			}
			return nil
		})
		if err := c.read(client); err != nil && flowrun.FaultOf(err) != flowrun.NotFound || asked != c.want {
			t.Errorf("%s is asked for %d times, want %d: %v", act, asked, c.want, err)
		}
		refuse = true
		if err := c.read(client); c.want > 0 && !errors.Is(err, refused) {
			t.Errorf("%s that was refused: %v", act, err)
		}
	}
}

// last goes through a list and returns its error.
func last[T any](list iter.Seq2[T, error]) (err error) {
	for _, err = range list {
	}
	return err
}
