package cloudruntest

import (
	"fmt"
	"path"
	"slices"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// Texts of Cloud Run. That of a disabled secret is assumed: no capture is known. Which signal it
// was stands in the log and in the task's last attempt only.
const (
	textExit      = "The container exited with an error."
	textTimeout   = "The configured timeout was reached."
	textMemory    = "The configured memory limit was reached."
	textCancelled = "Cancelled by user."
	textSignal    = "A signal terminated the container."
	lineSignal    = "Container terminated on signal %d."
	textDisabled  = "Secret Version [%s] is in DISABLED state."
)

// task is a task of an execution; s.mu guards it.
type task struct {
	proto       *runpb.Task
	pid         int    // of the attempt that is running, which leads a process group; else 0
	hostname    string // of that attempt's container
	outOfMemory bool   // what ends the attempt is the memory limit
}

func newTask(x *execution, index int32) *task {
	p, t := x.proto, x.proto.GetTemplate()
	name := fmt.Sprintf("%s-task%d", x.id, index)
	return &task{proto: &runpb.Task{
		Name: p.GetName() + "/tasks/" + name, Uid: uuid.NewString(), Generation: 1, ObservedGeneration: 1, Labels: p.GetLabels(),
		CreateTime: p.GetCreateTime(), ScheduledTime: p.GetCreateTime(), UpdateTime: p.GetCreateTime(), Job: p.GetJob(), Execution: x.id,
		Containers: t.GetContainers(), Volumes: t.GetVolumes(), MaxRetries: t.GetMaxRetries(), Timeout: t.GetTimeout(),
		ServiceAccount: t.GetServiceAccount(), ExecutionEnvironment: t.GetExecutionEnvironment(), Index: index, LogUri: p.GetLogUri(),
		Reconciling: true, Conditions: []*runpb.Condition{condition("Completed", runpb.Condition_CONDITION_RECONCILING)},
	}}
}

// ending is how an execution ended, as the entry and its API tell it.
type ending struct {
	code    codes.Code
	v1      string // reason of the condition Completed in the v1 API
	v2      runpb.Condition_ExecutionReason
	message string
}

// run takes an execution through its life.
func (s *Server) run(x *execution) {
	if _, delay := s.delays(x.job.id); delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-x.stop:
		case <-s.ctx.Done():
			return
		}
	}
	if s.begin(x) {
		var tasks errgroup.Group
		tasks.SetLimit(int(x.proto.GetParallelism())) // set at creation, never changed
		for _, t := range x.tasks {
			tasks.Go(func() error { s.runTask(x, t); return nil })
		}
		_ = tasks.Wait() // they return none
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() == nil {
		s.complete(x)
	}
}

// begin marks the execution as started, unless something prevents it.
func (s *Server) begin(x *execution) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.job.proto.GetReconciling() {
		x.job.ready()
	}
	if x.stopping {
		for _, t := range x.tasks {
			t.finish(&runpb.TaskAttemptResult{Status: &rpc.Status{Code: int32(codes.Canceled), Message: textCancelled}})
		}
		return false
	}
	for _, v := range x.proto.GetTemplate().GetContainers()[0].GetEnv() {
		ref := v.GetValueSource().GetSecretKeyRef()
		if ref == nil || !slices.Contains(s.options.DisabledSecrets, path.Base(ref.GetSecret())) {
			continue
		}
		text := fmt.Sprintf(textDisabled, secretVersion(x.job.project, ref))
		for _, t := range x.tasks {
			t.finish(&runpb.TaskAttemptResult{Status: &rpc.Status{Code: int32(codes.FailedPrecondition), Message: text}})
		}
		return false
	}
	x.state = Running
	x.proto.StartTime = now()
	x.proto.UpdateTime = x.proto.StartTime
	x.set(condition("ResourcesAvailable", runpb.Condition_CONDITION_SUCCEEDED))
	x.set(condition("Started", runpb.Condition_CONDITION_SUCCEEDED))
	x.reference(runpb.ExecutionReference_EXECUTION_RUNNING)
	return true
}

// runTask makes the attempts of a task.
func (s *Server) runTask(x *execution, t *task) {
	s.mu.Lock()
	t.proto.StartTime = now()
	x.proto.RunningCount++
	s.mu.Unlock()
	for attempt := int32(0); ; attempt++ {
		result := s.attempt(x, t, attempt)
		s.mu.Lock()
		if result.GetStatus().GetCode() == 0 || x.stopping || attempt >= t.proto.GetMaxRetries() || s.ctx.Err() != nil {
			t.finish(result)
			x.proto.RunningCount--
			s.mu.Unlock()
			return
		}
		t.proto.LastAttemptResult = result
		t.proto.Retried++
		if attempt == 0 { // the counter is of tasks, not of attempts
			x.proto.RetriedCount++
		}
		s.mu.Unlock()
	}
}

// finish records how the task's last attempt ended. The caller holds s.mu.
func (t *task) finish(r *runpb.TaskAttemptResult) {
	p := t.proto
	p.LastAttemptResult, p.Reconciling = r, false
	p.CompletionTime = now()
	p.UpdateTime = p.CompletionTime
	c := condition("Completed", runpb.Condition_CONDITION_SUCCEEDED)
	if r.GetStatus().GetCode() != 0 {
		c.State, c.Message = runpb.Condition_CONDITION_FAILED, r.GetStatus().GetMessage()
	}
	p.Conditions = []*runpb.Condition{c}
}

// complete records and publishes the end of an execution. The caller holds s.mu.
func (s *Server) complete(x *execution) {
	p := x.proto
	p.CompletionTime = now()
	p.UpdateTime, p.Reconciling = p.CompletionTime, false
	for _, t := range x.tasks {
		switch codes.Code(t.proto.GetLastAttemptResult().GetStatus().GetCode()) {
		case codes.OK:
			p.SucceededCount++
		case codes.Canceled:
			p.CancelledCount++
		default:
			p.FailedCount++
		}
	}
	x.end = x.ended()
	c := condition("Completed", runpb.Condition_CONDITION_FAILED)
	c.LastTransitionTime, c.Message = p.GetCompletionTime(), x.end.message
	if x.end.v2 != runpb.Condition_EXECUTION_REASON_UNDEFINED {
		c.Reasons = &runpb.Condition_ExecutionReason_{ExecutionReason: x.end.v2}
	}
	reference := runpb.ExecutionReference_EXECUTION_FAILED
	switch {
	case x.deleted:
		x.state = Deleted
	case p.GetCancelledCount() > 0:
		x.state, reference = Cancelled, runpb.ExecutionReference_EXECUTION_CANCELLED
	case p.GetFailedCount() > 0:
		x.state = Failed
	default:
		x.state, c.State, reference = Succeeded, runpb.Condition_CONDITION_SUCCEEDED, runpb.ExecutionReference_EXECUTION_SUCCEEDED
	}
	x.set(c)
	x.reference(reference)
	if x.deleted {
		s.delete(x) // a deleted execution has no entry
		return
	}
	s.publish(completionEntry(x))
}

// ended tells how the execution ended, from its tasks. The caller holds s.mu.
func (x *execution) ended() ending {
	p := x.proto
	switch {
	case x.deleted:
		return ending{code: codes.Canceled, v1: "Deleted", v2: runpb.Condition_DELETED, message: "Execution was deleted."}
	case p.GetCancelledCount() > 0:
		return ending{code: codes.Canceled, v1: "Cancelled", v2: runpb.Condition_CANCELLED, message: textCancelled}
	case p.GetFailedCount() == 0:
		took := p.GetCompletionTime().AsTime().Sub(p.GetStartTime().AsTime())
		return ending{message: fmt.Sprintf("Execution completed successfully in %.2fs.", took.Seconds())}
	}
	for _, t := range x.tasks {
		r := t.proto.GetLastAttemptResult()
		name, text := path.Base(t.proto.GetName()), r.GetStatus().GetMessage()
		e := ending{message: fmt.Sprintf("Task %s failed with exit code: %d and message: %s", name, r.GetExitCode(), text)}
		switch code := codes.Code(r.GetStatus().GetCode()); code {
		case codes.OK:
			continue
		case codes.FailedPrecondition: // the container never ran
			e.code, e.message = codes.Aborted, fmt.Sprintf("Task %s failed with message: %s", name, text)
		default:
			e.code = code
		}
		if r.GetExitCode() != 0 || r.GetTermSignal() != 0 {
			e.v1, e.v2 = "NonZeroExitCode", runpb.Condition_NON_ZERO_EXIT_CODE
		}
		return e
	}
	return ending{code: codes.Unknown}
}

// publish lets an entry out after its delay. The caller holds s.mu.
func (s *Server) publish(entry []byte) {
	if s.options.Publish == nil {
		return
	}
	s.background(func() {
		if !s.pause(s.options.EntryDelay) {
			return
		}
		for s.options.Publish(s.ctx, entry) != nil {
			if !s.pause(100 * time.Millisecond) {
				return
			}
		}
	})
}

func attemptResult(code codes.Code, text string) *runpb.TaskAttemptResult {
	return &runpb.TaskAttemptResult{Status: &rpc.Status{Code: int32(code), Message: text}}
}
