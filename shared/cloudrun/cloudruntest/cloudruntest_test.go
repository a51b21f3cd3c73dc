package cloudruntest_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	run "cloud.google.com/go/run/apiv2"
	"cloud.google.com/go/run/apiv2/runpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const parent = "projects/p/locations/r"

type rig struct {
	*cloudruntest.Server
	jobs  *run.JobsClient
	tasks *run.TasksClient
}

func start(t *testing.T, o cloudruntest.Options) rig {
	t.Helper()
	o.Env = append(o.Env, "PATH=/usr/bin:/bin")
	s, err := cloudruntest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	jobs, err := run.NewJobsClient(t.Context(), s.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := run.NewTasksClient(t.Context(), s.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = jobs.Close(); _ = tasks.Close() })
	return rig{s, jobs, tasks}
}

func job(script string) *runpb.Job {
	return &runpb.Job{
		CreateExecution: &runpb.Job_StartExecutionToken{StartExecutionToken: "x"},
		Template: &runpb.ExecutionTemplate{Template: &runpb.TaskTemplate{
			Retries:    &runpb.TaskTemplate_MaxRetries{},
			Containers: []*runpb.Container{{Image: "image", Command: []string{"sh", "-c", script}, Env: []*runpb.EnvVar{{Name: "OWN", Values: &runpb.EnvVar_Value{Value: "own"}}}}},
		}},
	}
}

func (r rig) create(ctx context.Context, id string, j *runpb.Job) error {
	_, err := r.jobs.CreateJob(ctx, &runpb.CreateJobRequest{Parent: parent, JobId: id, Job: j})
	return err
}

// until waits for the only execution to be so.
func (r rig) until(t *testing.T, what string, so func(cloudruntest.Execution) bool) cloudruntest.Execution {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if all := r.Executions(); len(all) == 1 && so(all[0]) {
			return all[0]
		}
	}
	t.Fatalf("waited for this: %s; executions: %+v", what, r.Executions())
	return cloudruntest.Execution{}
}

func ended(x cloudruntest.Execution) bool { return !x.Completed.IsZero() }

func TestAContainerHasTheEnvironmentOfCloudRun(t *testing.T) {
	r := start(t, cloudruntest.Options{Env: []string{"IMAGE=of-the-image"}})
	script := `echo "$OWN $IMAGE $CLOUD_RUN_JOB $CLOUD_RUN_EXECUTION $CLOUD_RUN_TASK_INDEX $CLOUD_RUN_TASK_ATTEMPT $CLOUD_RUN_TASK_COUNT"`
	if err := r.create(t.Context(), "j", job(script)); err != nil {
		t.Fatal(err)
	}
	x := r.until(t, "it ended", ended)
	if got, want := strings.Join(x.LastLines, "\n"), "own of-the-image j j-x 0 0 1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAFailedTaskIsTriedAgain(t *testing.T) {
	r := start(t, cloudruntest.Options{})
	j := job(`echo "attempt $CLOUD_RUN_TASK_ATTEMPT"; exit $((CLOUD_RUN_TASK_ATTEMPT < 2))`)
	j.Template.Template.Retries = &runpb.TaskTemplate_MaxRetries{MaxRetries: 2}
	if err := r.create(t.Context(), "j", j); err != nil {
		t.Fatal(err)
	}
	if x := r.until(t, "it ended", ended); x.State != cloudruntest.Succeeded {
		t.Errorf("%+v", x)
	}
}

func TestATaskTellsItsLastAttempt(t *testing.T) {
	r := start(t, cloudruntest.Options{})
	if err := r.create(t.Context(), "j", job("exit 7")); err != nil {
		t.Fatal(err)
	}
	x := r.until(t, "it ended", ended)
	task, err := r.tasks.GetTask(t.Context(), &runpb.GetTaskRequest{Name: x.Name + "/tasks/j-x-task0"})
	if err != nil || task.GetLastAttemptResult().GetExitCode() != 7 {
		t.Errorf("%v, %v", task.GetLastAttemptResult(), err)
	}
}

// TestAnExecutionsEndIsTheEndOfAllItsProcesses: as on Cloud Run, where the container is gone.
func TestAnExecutionsEndIsTheEndOfAllItsProcesses(t *testing.T) {
	for name, child := range map[string]string{
		"of its group": "sleep 600", "of another group": "setsid sleep 600", // as Prefect starts its engine
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat("/proc/self/environ"); err != nil && name == "of another group" {
				t.Skip("this machine has no /proc to find the process by")
			}
			t.Parallel()
			r := start(t, cloudruntest.Options{})
			if err := r.create(t.Context(), "j", job(child+" & echo child $!; wait")); err != nil {
				t.Fatal(err)
			}
			x := r.until(t, "it wrote its child's id", func(x cloudruntest.Execution) bool { return len(x.LastLines) > 0 })
			var pid int
			if _, err := fmt.Sscanf(x.LastLines[0], "child %d", &pid); err != nil {
				t.Fatal(err)
			}
			if err := r.Kill(x.Name); err != nil {
				t.Fatal(err)
			}
			r.until(t, "it ended", ended)
			for deadline := time.Now().Add(20 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("process %d outlived its container", pid)
				}
			}
		})
	}
}

// TestAKilledContainerTellsNobody: none of its processes sees another one die.
func TestAKilledContainerTellsNobody(t *testing.T) {
	if _, err := os.Stat("/proc/self/environ"); err != nil {
		t.Skip("this machine has no /proc to find the process by")
	}
	for i := range 5 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			r := start(t, cloudruntest.Options{})
			if err := r.create(t.Context(), "j", job("sleep 600 | setsid sh -c 'echo up; cat >/dev/null; echo told'")); err != nil {
				t.Fatal(err)
			}
			x := r.until(t, "it is up", func(x cloudruntest.Execution) bool { return len(x.LastLines) > 0 })
			if err := r.Kill(x.Name); err != nil {
				t.Fatal(err)
			}
			x = r.until(t, "it ended", ended)
			if slices.Contains(x.LastLines, "told") {
				t.Errorf("it wrote %q", x.LastLines)
			}
		})
	}
}

func TestCreateJobRefusesWhatCloudRunRefuses(t *testing.T) {
	r := start(t, cloudruntest.Options{Regions: []string{"r"}, MaxJobs: 2})
	long := strings.Repeat("a", 50)
	labelled := job("true")
	labelled.Labels = map[string]string{"Upper": "x"}
	for _, test := range []struct {
		name, id string
		job      *runpb.Job
		want     codes.Code
	}{
		{"", "first", job("true"), codes.OK},
		{"a name that is taken", "first", job("true"), codes.AlreadyExists},
		{"upper case", "First", job("true"), codes.InvalidArgument},
		{"a digit first", "1st", job("true"), codes.InvalidArgument},
		{"a dash last", "first-", job("true"), codes.InvalidArgument},
		{"too long", strings.Repeat("a", 64), job("true"), codes.InvalidArgument},
		{"job and token together too long", long + long[:13], job("true"), codes.InvalidArgument},
		{"a label's key in upper case", "a", labelled, codes.InvalidArgument},
		{"no template", "a", &runpb.Job{}, codes.InvalidArgument},
		{"up to the quota", "second", job("true"), codes.OK},
		{"beyond the quota", "third", job("true"), codes.ResourceExhausted},
	} {
		if err := r.create(t.Context(), test.id, test.job); status.Code(err) != test.want {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	_, err := r.jobs.CreateJob(t.Context(), &runpb.CreateJobRequest{Parent: "projects/p/locations/nowhere", JobId: "a", Job: job("true")})
	if err == nil {
		t.Error("a job was created in a region that does not exist")
	}
}

// TestAJobIsReconcilingUntilItsExecutionStarts: what whoever looks early sees.
func TestAJobIsReconcilingUntilItsExecutionStarts(t *testing.T) {
	r := start(t, cloudruntest.Options{ReadyDelay: 300 * time.Millisecond})
	if err := r.create(t.Context(), "j", job("true")); err != nil {
		t.Fatal(err)
	}
	j, err := r.jobs.GetJob(t.Context(), &runpb.GetJobRequest{Name: parent + "/jobs/j"})
	if err != nil || !j.GetReconciling() || len(r.Executions()) != 0 {
		t.Errorf("%v, %v, %d executions", j, err, len(r.Executions()))
	}
	r.until(t, "it ended", ended)
}
