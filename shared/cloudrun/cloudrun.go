// Package cloudrun launches, finds and stops Cloud Run jobs and tells how executions ended.
package cloudrun

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strings"
	"time"

	run "cloud.google.com/go/run/apiv2"
	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	// Token is the start_execution_token of a job that is made for one launch: the execution is
	// named JOB-TOKEN. A slot's is made of the launch's id.
	Token = "x"
	// JobPrefix starts the id of every job of ours; the log sink selects by it.
	JobPrefix = "pp-"

	// CallTimeout bounds one call to Cloud Run.
	CallTimeout = 20 * time.Second
	// PageSize is how many jobs or executions one read of a list returns.
	PageSize = 100
)

// Labels of ours on every job and execution. They tie an execution to its launch without the ledger.
const (
	LabelFlowRun = "pushpool-flow-run"
	LabelLaunch  = "pushpool-launch"
	LabelInstall = "pushpool-install"
	// LabelRetries holds the launch's flowrun.Retries.
	LabelRetries = "pushpool-retries"

	// annotationKeep marks a job that is not to be deleted. It is none of the labels, of which
	// a job has 64 at most.
	annotationKeep = "pushpool-keep-job"
)

// Launch is a job to be created or updated for the launch ID, whose execution it starts.
type Launch struct {
	Name JobName
	ID   flowrun.LaunchID
	Job  *runpb.Job
}

// token is what Cloud Run names the execution by; a token is used once in one job.
func (l Launch) token() *runpb.Job_StartExecutionToken {
	return &runpb.Job_StartExecutionToken{StartExecutionToken: strings.TrimPrefix(l.Name.Launched(l.ID).Execution, l.Name.Job+"-")}
}

// Job is what launching and settling need to know of a job.
type Job struct {
	Name       JobName
	Labels     map[string]string
	CreateTime time.Time
	// Etag is the version of the job; see Client.UpdateJob.
	Etag string
	// Reconciling: the job is not ready yet, its execution not started. Waiting is what Cloud
	// Run says it waits for; it may be empty.
	Reconciling bool
	Waiting     string
	// Failure is why the job can never start its execution; nil where it can.
	Failure *flowrun.Outcome
	// Keep: somebody asked to have the job kept after its execution ended.
	Keep bool
	// Latest is the execution that the job started last; its name is empty where it started
	// none. Listings tell it too, and so what is alive without a call for each execution.
	Latest struct {
		Execution string // the last part of the name
		Completed time.Time
	}
}

// Ended reports when the job's last execution ended. A job that can never start one has ended
// when it was created.
func (j Job) Ended() (at time.Time, ended bool) {
	if j.Failure != nil {
		return j.CreateTime, true
	}
	return j.Latest.Completed, !j.Latest.Completed.IsZero()
}

// Alive reports whether the execution that the job started last has not ended.
func (j Job) Alive() bool { return j.Latest.Execution != "" && j.Latest.Completed.IsZero() }

// Execution is what launching and settling need to know of an execution.
type Execution struct {
	Name                                  ExecutionName
	Labels                                map[string]string
	CreateTime, StartTime, CompletionTime time.Time
	// Outcome is nil while the execution is alive.
	Outcome   *flowrun.Outcome
	Command   []string
	Resources flowrun.Resources
}

// ListensForCancellation reports whether the container notices by itself that its flow run
// is CANCELLING: only Prefect's `prefect flow-run execute` does.
func (x Execution) ListensForCancellation() bool {
	return strings.Contains(strings.Join(x.Command, " "), "prefect flow-run execute")
}

// Client speaks to the Cloud Run Admin API, in all projects and regions.
type Client struct {
	jobs       *run.JobsClient
	executions *run.ExecutionsClient
	tasks      *run.TasksClient
	// ask is asked before each read.
	ask func(ctx context.Context, project, region string) error
}

// New returns a client. The options are the Google API's, an emulator's endpoint for one.
func New(ctx context.Context, opts ...option.ClientOption) (*Client, error) {
	jobs, err := run.NewJobsClient(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("make a Cloud Run jobs client: %w", err)
	}
	executions, err := run.NewExecutionsClient(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("make a Cloud Run executions client: %w", err)
	}
	tasks, err := run.NewTasksClient(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("make a Cloud Run tasks client: %w", err)
	}
	free := func(context.Context, string, string) error { return nil }
	return &Client{jobs: jobs, executions: executions, tasks: tasks, ask: free}, nil
}

// Asking returns a client on the same connections that asks before each read, each page of a
// list included, whether it may be made. The read's error is then ask's.
func (c *Client) Asking(ask func(ctx context.Context, project, region string) error) *Client {
	asking := *c
	asking.ask = ask
	return &asking
}

// Close closes the client's connections.
func (c *Client) Close() error {
	return errors.Join(c.jobs.Close(), c.executions.Close(), c.tasks.Close())
}

// CreateJob creates the job, which starts its execution JOB-TOKEN in the same call. It does
// not wait for either: the answer says that Cloud Run has accepted the job. Faults: Exists,
// Refused (quota), Permanent (invalid or not permitted), Unclear.
func (c *Client) CreateJob(ctx context.Context, l Launch) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	l.Job.CreateExecution = l.token()
	_, err := c.jobs.CreateJob(ctx, &runpb.CreateJobRequest{
		Parent: location(l.Name.Project, l.Name.Region), JobId: l.Name.Job, Job: l.Job,
	})
	return classify("create job "+l.Name.String(), err)
}

// ErrChanged marks an update of a job that somebody else changed since it was read. It had no
// effect and never will have.
var ErrChanged = errors.New("the job was changed by somebody else")

// UpdateJob replaces the job, if it is still as it was when etag was read, and starts the
// execution of the launch. Faults: Exists where the execution has been started before,
// Refused (quota, ErrChanged), NotFound, Permanent, Unclear.
func (c *Client) UpdateJob(ctx context.Context, l Launch, etag string) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	l.Job.Name, l.Job.Etag, l.Job.CreateExecution = l.Name.String(), etag, l.token()
	_, err := c.jobs.UpdateJob(ctx, &runpb.UpdateJobRequest{Job: l.Job})
	act := "update job " + l.Name.String()
	if status.Code(err) == codes.Aborted {
		return &flowrun.Error{Fault: flowrun.Refused, Act: act, Err: fmt.Errorf("%w: %w", ErrChanged, err)}
	}
	return classify(act, err)
}

// SetLabels puts the labels on the job and on the executions that it starts.
func SetLabels(j *runpb.Job, labels map[string]string) {
	if j.Labels == nil {
		j.Labels = map[string]string{}
	}
	if j.Template == nil {
		j.Template = &runpb.ExecutionTemplate{}
	}
	if j.Template.Labels == nil {
		j.Template.Labels = map[string]string{}
	}
	maps.Copy(j.Labels, labels)
	maps.Copy(j.Template.Labels, labels)
}

// SetKeep marks the job as one that is not to be deleted when its execution has ended.
func SetKeep(j *runpb.Job) {
	if j.Annotations == nil {
		j.Annotations = map[string]string{}
	}
	j.Annotations[annotationKeep] = "true"
}

// Job reads a job. Fault NotFound where there is none.
func (c *Client) Job(ctx context.Context, n JobName) (Job, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if err := c.ask(ctx, n.Project, n.Region); err != nil {
		return Job{}, err
	}
	j, err := c.jobs.GetJob(ctx, &runpb.GetJobRequest{Name: n.String()}, reads)
	if err != nil {
		return Job{}, classify("read job "+n.String(), err)
	}
	return job(j), nil
}

// Jobs lists all jobs of a project in a region.
func (c *Client) Jobs(ctx context.Context, project, region string) iter.Seq2[Job, error] {
	it := c.jobs.ListJobs(ctx, &runpb.ListJobsRequest{Parent: location(project, region), PageSize: PageSize}, reads)
	return all("list jobs in "+location(project, region), c.asking(ctx, project, region, it.PageInfo()), it.Next, job)
}

// Execution reads an execution and, where it ended in a way that its conditions do not
// tell, the last attempt of the task that failed. Fault NotFound where there is none.
func (c *Client) Execution(ctx context.Context, n ExecutionName) (Execution, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if err := c.ask(ctx, n.Project, n.Region); err != nil {
		return Execution{}, err
	}
	x, err := c.executions.GetExecution(ctx, &runpb.GetExecutionRequest{Name: n.String()}, reads)
	if err != nil {
		return Execution{}, classify("read execution "+n.String(), err)
	}
	found := execution(x)
	if found.Outcome != nil && Vague(*found.Outcome) {
		if attempt := c.lastAttempt(ctx, n, found.Outcome.Text); attempt != nil {
			o := withAttempt(*found.Outcome, attempt)
			found.Outcome = &o
		}
	}
	return found, nil
}

// lastAttempt reads how the task ended that the condition's message names, the first one if
// it names none; nil where Cloud Run does not tell.
func (c *Client) lastAttempt(ctx context.Context, n ExecutionName, message string) *runpb.TaskAttemptResult {
	task := n.Execution + "-task0"
	if m := taskWording.FindStringSubmatch(message); m != nil {
		task = m[1]
	}
	if c.ask(ctx, n.Project, n.Region) != nil {
		return nil // it refines the message, no more
	}
	t, err := c.tasks.GetTask(ctx, &runpb.GetTaskRequest{Name: n.String() + "/tasks/" + task}, reads)
	if err != nil {
		return nil // likewise
	}
	return t.GetLastAttemptResult()
}

// Executions lists all executions of a project in a region, ended ones included.
func (c *Client) Executions(ctx context.Context, project, region string) iter.Seq2[Execution, error] {
	it := c.executions.ListExecutions(ctx, &runpb.ListExecutionsRequest{Parent: JobName{project, region, "-"}.String(), PageSize: PageSize}, reads)
	return all("list executions in "+location(project, region), c.asking(ctx, project, region, it.PageInfo()), it.Next, execution)
}

// CancelExecution asks Cloud Run to stop the execution: SIGTERM, 10 s, SIGKILL. It does not
// wait. An execution that is over or gone is no error.
func (c *Client) CancelExecution(ctx context.Context, n ExecutionName) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	_, err := c.executions.CancelExecution(ctx, &runpb.CancelExecutionRequest{Name: n.String()})
	if code := status.Code(err); code == codes.NotFound || code == codes.FailedPrecondition {
		return nil
	}
	return classify("cancel execution "+n.String(), err)
}

// DeleteJob deletes the job with its executions, running ones included. A job that is gone is no error.
func (c *Client) DeleteJob(ctx context.Context, n JobName) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	_, err := c.jobs.DeleteJob(ctx, &runpb.DeleteJobRequest{Name: n.String()})
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return classify("delete job "+n.String(), err)
}

func location(project, region string) string { return "projects/" + project + "/locations/" + region }

// reads are repeated while Cloud Run is unavailable; writes never are.
var reads = gax.WithRetry(func() gax.Retryer {
	return gax.OnCodes([]codes.Code{codes.Unavailable}, gax.Backoff{Initial: 200 * time.Millisecond, Max: 2 * time.Second, Multiplier: 2})
})

// asking returns what has to be done before the next item of a list is taken.
func (c *Client) asking(ctx context.Context, project, region string, page *iterator.PageInfo) func() error {
	first := true
	return func() error {
		if page.Remaining() > 0 || page.Token == "" && !first {
			return nil
		}
		first = false
		return c.ask(ctx, project, region)
	}
}

func all[P, T any](act string, before func() error, next func() (P, error), convert func(P) T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		for {
			if err := before(); err != nil {
				yield(zero, err)
				return
			}
			p, err := next()
			if errors.Is(err, iterator.Done) {
				return
			}
			if err != nil {
				yield(zero, classify(act, err))
				return
			}
			if !yield(convert(p), nil) {
				return
			}
		}
	}
}

func classify(act string, err error) error {
	if err == nil {
		return nil
	}
	e := &flowrun.Error{Act: act, Err: err}
	code := status.Code(err)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		code = codes.DeadlineExceeded
	}
	switch code {
	case codes.AlreadyExists:
		e.Fault = flowrun.Exists
	case codes.NotFound:
		e.Fault = flowrun.NotFound
	case codes.ResourceExhausted:
		e.Fault = flowrun.Refused
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented:
		e.Fault, e.Hint = flowrun.Permanent, "change the work pool's base job template or the job variables as Cloud Run says"
	case codes.PermissionDenied:
		e.Fault, e.Hint = flowrun.Permanent, "grant the dispatcher what the message names: roles/iam.serviceAccountUser on the job's service account, or run.jobs.create"
	case codes.Unauthenticated:
		e.Fault, e.Hint = flowrun.Refused, "the function has no valid credentials; check its service account"
	}
	return e
}
