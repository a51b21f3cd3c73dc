package cloudruntest

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// execution is an execution; s.mu guards it.
type execution struct {
	job        *job
	id         string
	proto      *runpb.Execution
	jobCreated time.Time
	tasks      []*task
	state      State
	stopping   bool          // by CancelExecution or a deletion
	deleted    bool          // by a deletion
	stop       chan struct{} // closed when stopping becomes true
	lines      tail
	end        ending // once it is complete
}

func (x *execution) snapshot() Execution {
	return Execution{
		Name: x.proto.GetName(), Labels: maps.Clone(x.proto.GetLabels()), State: x.state, PID: x.tasks[0].pid,
		Message: x.condition("Completed").GetMessage(), JobCreated: x.jobCreated,
		Created: at(x.proto.GetCreateTime()), Started: at(x.proto.GetStartTime()), Completed: at(x.proto.GetCompletionTime()),
		LastLines: x.lines.texts(),
	}
}

func at(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func (x *execution) condition(kind string) *runpb.Condition {
	for _, c := range x.proto.GetConditions() {
		if c.GetType() == kind {
			return c
		}
	}
	return nil
}

func (x *execution) set(c *runpb.Condition) {
	for i, old := range x.proto.GetConditions() {
		if old.GetType() == c.GetType() {
			x.proto.Conditions[i] = c
			return
		}
	}
	x.proto.Conditions = append(x.proto.Conditions, c)
}

// start creates an execution of the job and lets it run. The caller holds s.mu.
func (s *Server) start(j *job, id string) *execution {
	created := now()
	t := j.proto.GetTemplate()
	x := &execution{job: j, id: id, jobCreated: at(j.proto.GetCreateTime()), state: Pending, stop: make(chan struct{})}
	x.proto = &runpb.Execution{
		Name: j.proto.GetName() + "/executions/" + id, Uid: uuid.NewString(), Creator: creator, Generation: 1, ObservedGeneration: 1,
		Labels: maps.Clone(t.GetLabels()), Annotations: maps.Clone(t.GetAnnotations()), LaunchStage: j.proto.GetLaunchStage(),
		CreateTime: created, UpdateTime: created, Job: j.id, Parallelism: t.GetParallelism(), TaskCount: t.GetTaskCount(),
		Template: proto.CloneOf(t.GetTemplate()), Reconciling: true, LogUri: logURI(j, id), Etag: fmt.Sprintf("%q", uuid.NewString()),
	}
	if x.proto.Parallelism == 0 {
		x.proto.Parallelism = x.proto.GetTaskCount()
	}
	// In the order of real executions.
	x.set(condition("Completed", runpb.Condition_CONDITION_RECONCILING))
	x.set(condition("ResourcesAvailable", runpb.Condition_CONDITION_RECONCILING))
	x.set(condition("Started", runpb.Condition_CONDITION_RECONCILING))
	x.set(condition("ContainerReady", runpb.Condition_CONDITION_SUCCEEDED))
	x.set(&runpb.Condition{
		Type: "Retry", State: runpb.Condition_CONDITION_SUCCEEDED, Severity: runpb.Condition_INFO, LastTransitionTime: created,
		Message: "System will retry after 0:00:00 from lastTransitionTime for attempt 0.",
		Reasons: &runpb.Condition_Reason{Reason: runpb.Condition_IMMEDIATE_RETRY},
	})
	for i := range x.proto.GetTaskCount() {
		x.tasks = append(x.tasks, newTask(x, i))
	}
	s.executions[x.proto.GetName()] = x
	s.history = append(s.history, x)
	j.executions = append(j.executions, x)
	j.proto.ExecutionCount++
	j.proto.LatestCreatedExecution = &runpb.ExecutionReference{
		Name: id, CreateTime: created, CompletionStatus: runpb.ExecutionReference_EXECUTION_PENDING,
	}
	s.background(func() { s.run(x) })
	return x
}

func logURI(j *job, execution string) string {
	filter := fmt.Sprintf("resource.type=\"cloud_run_job\"\nresource.labels.job_name=%q\nresource.labels.location=%q\nlabels.\"run.googleapis.com/execution_name\"=%q", j.id, j.region, execution)
	return "https://console.cloud.google.com/logs/viewer?project=" + j.project + "&advancedFilter=" + url.QueryEscape(filter)
}

// reference changes the job's reference to the execution, where that is its latest. The caller holds s.mu.
func (x *execution) reference(status runpb.ExecutionReference_CompletionStatus) {
	if r := x.job.proto.GetLatestCreatedExecution(); r.GetName() == x.id {
		r.CompletionStatus, r.CompletionTime = status, x.proto.GetCompletionTime()
	}
}

// halt makes the execution's processes stop: SIGTERM, then SIGKILL. The caller holds s.mu.
func (x *execution) halt() {
	if !x.stopping {
		x.stopping = true
		close(x.stop)
	}
}

// settled is how RunJob's operation ends. A cancelled execution is a response, no error.
func (x *execution) settled(op *longrunningpb.Operation) {
	if x.proto.GetCompletionTime() == nil {
		return
	}
	if x.state == Failed {
		finish(op, nil, status.New(x.end.code, x.end.message))
		return
	}
	finish(op, x.proto, nil)
}

// GetExecution reads an execution.
func (s *Server) GetExecution(_ context.Context, r *runpb.GetExecutionRequest) (*runpb.Execution, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.execution(r.GetName())
	if err != nil {
		return nil, err
	}
	return proto.CloneOf(x.proto), nil
}

// execution finds an execution. The caller holds s.mu.
func (s *Server) execution(name string) (*execution, error) {
	x := s.executions[name]
	if x == nil {
		return nil, missing("EXECUTION", name)
	}
	return x, nil
}

// ListExecutions lists the executions of a job, or of all jobs (jobs/-) of a region, by name.
func (s *Server) ListExecutions(_ context.Context, r *runpb.ListExecutionsRequest) (*runpb.ListExecutionsResponse, error) {
	region, id, found := strings.Cut(r.GetParent(), "/jobs/")
	if !found || id == "" || strings.Contains(id, "/") {
		return nil, status.Errorf(codes.InvalidArgument, "Invalid resource parent %q: expected projects/PROJECT/locations/LOCATION/jobs/JOB.", r.GetParent())
	}
	if _, _, err := s.parent(region); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*runpb.Execution
	for _, x := range s.executions {
		if x.job.parent() == region && (id == "-" || id == x.job.id) {
			all = append(all, x.proto)
		}
	}
	executions, next := page(all, r.GetPageToken(), r.GetPageSize())
	return &runpb.ListExecutionsResponse{Executions: executions, NextPageToken: next}, nil
}

// CancelExecution stops an execution: SIGTERM, after the grace SIGKILL.
func (s *Server) CancelExecution(_ context.Context, r *runpb.CancelExecutionRequest) (*longrunningpb.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.execution(r.GetName())
	if err != nil {
		return nil, err
	}
	if x.proto.GetCompletionTime() != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "Execution '%s' cannot be cancelled because it is not running.", x.id)
	}
	if !r.GetValidateOnly() && !x.stopping {
		x.halt()
		c := condition("Completed", runpb.Condition_CONDITION_RECONCILING)
		c.Reasons = &runpb.Condition_ExecutionReason_{ExecutionReason: runpb.Condition_CANCELLING}
		x.set(c)
	}
	return s.operation(x.job.parent(), x.proto, func(op *longrunningpb.Operation) {
		if x.proto.GetCompletionTime() != nil {
			finish(op, x.proto, nil)
		}
	}), nil
}

// DeleteExecution stops an execution. It is gone once its processes are.
func (s *Server) DeleteExecution(_ context.Context, r *runpb.DeleteExecutionRequest) (*longrunningpb.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.execution(r.GetName())
	if err != nil {
		return nil, err
	}
	if !r.GetValidateOnly() {
		s.delete(x)
	}
	return s.operation(x.job.parent(), x.proto, func(op *longrunningpb.Operation) {
		if r.GetValidateOnly() || s.executions[x.proto.GetName()] != x {
			finish(op, x.proto, nil)
		}
	}), nil
}

// delete stops an execution and removes it, now or when it has ended. The caller holds s.mu.
func (s *Server) delete(x *execution) {
	if !x.deleted {
		x.deleted = true
		x.proto.DeleteTime = now()
	}
	if x.proto.GetCompletionTime() == nil {
		x.halt()
		return
	}
	delete(s.executions, x.proto.GetName())
	x.job.executions = slices.DeleteFunc(x.job.executions, func(o *execution) bool { return o == x })
	s.forget(x.job)
}

// GetTask reads a task of an execution.
func (s *Server) GetTask(_ context.Context, r *runpb.GetTaskRequest) (*runpb.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	execution, _, _ := strings.Cut(r.GetName(), "/tasks/")
	if x := s.executions[execution]; x != nil {
		for _, t := range x.tasks {
			if t.proto.GetName() == r.GetName() {
				return proto.CloneOf(t.proto), nil
			}
		}
	}
	return nil, missing("TASK", r.GetName())
}

// ListTasks lists the tasks of an execution by name.
func (s *Server) ListTasks(_ context.Context, r *runpb.ListTasksRequest) (*runpb.ListTasksResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*runpb.Task
	for name, x := range s.executions {
		if name == r.GetParent() || path.Base(r.GetParent()) == "-" && path.Dir(name) == path.Dir(r.GetParent()) {
			for _, t := range x.tasks {
				all = append(all, t.proto)
			}
		}
	}
	tasks, next := page(all, r.GetPageToken(), r.GetPageSize())
	return &runpb.ListTasksResponse{Tasks: tasks, NextPageToken: next}, nil
}
