package cloudruntest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// job is a job; s.mu guards it.
type job struct {
	proto           *runpb.Job
	project, region string
	id              string
	token           string // the last one that was given
	executions      []*execution
}

func (j *job) parent() string { return "projects/" + j.project + "/locations/" + j.region }

// CreateJob creates a job and, with a start_execution_token, its execution.
func (s *Server) CreateJob(_ context.Context, r *runpb.CreateJobRequest) (*longrunningpb.Operation, error) {
	project, region, err := s.parent(r.GetParent())
	if err != nil {
		return nil, err
	}
	token := cmp.Or(r.GetJob().GetStartExecutionToken(), r.GetJob().GetRunExecutionToken())
	if err := checkJobID(r.GetJobId(), token); err != nil {
		return nil, err
	}
	if err := checkJob(r.GetJob()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := r.GetParent() + "/jobs/" + r.GetJobId()
	if s.jobs[name] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "Resource '%s' already exists.", r.GetJobId())
	}
	count := 0
	for _, j := range s.jobs {
		if j.parent() == r.GetParent() {
			count++
		}
	}
	if count >= s.options.MaxJobs {
		return nil, status.Errorf(codes.ResourceExhausted, "Quota exceeded for total allowable count of jobs per project per region: %d.", s.options.MaxJobs)
	}
	if token != "" {
		if err := s.roomForExecution(r.GetParent()); err != nil {
			return nil, err
		}
	}
	created := now()
	j := &job{project: project, region: region, id: r.GetJobId()}
	j.proto = &runpb.Job{Name: name, Uid: uuid.NewString(), CreateTime: created, Creator: creator, LaunchStage: api.LaunchStage_GA}
	j.write(r.GetJob(), created)
	if r.GetValidateOnly() {
		return s.operation(r.GetParent(), j.proto, finished(j.proto)), nil
	}
	s.jobs[name] = j
	s.reconcile(j, token)
	return s.operation(r.GetParent(), j.proto, j.settled), nil
}

// creator is who made everything here.
const creator = "emulator@example.com"

// write replaces what users may set, with Cloud Run's defaults for what they left out.
func (j *job) write(from *runpb.Job, at *timestamppb.Timestamp) {
	p := proto.CloneOf(from)
	t := p.GetTemplate()
	t.TaskCount = max(t.GetTaskCount(), 1)
	task := t.GetTemplate()
	if task.Retries == nil {
		task.Retries = &runpb.TaskTemplate_MaxRetries{MaxRetries: defaultTries}
	}
	if task.Timeout == nil {
		task.Timeout = durationpb.New(defaultTime)
	}
	task.ExecutionEnvironment = runpb.ExecutionEnvironment_EXECUTION_ENVIRONMENT_GEN2
	task.ServiceAccount = cmp.Or(task.GetServiceAccount(), projectNumber+"-compute@developer.gserviceaccount.com")
	c := task.GetContainers()[0]
	if c.Resources == nil {
		c.Resources = &runpb.ResourceRequirements{}
	}
	limits := map[string]string{"cpu": "1000m", "memory": "512Mi"}
	maps.Copy(limits, c.Resources.Limits)
	c.Resources.Limits = limits
	own := j.proto
	own.Labels, own.Annotations, own.Template = p.GetLabels(), p.GetAnnotations(), t
	own.Client, own.ClientVersion, own.CreateExecution = p.GetClient(), p.GetClientVersion(), p.GetCreateExecution()
	own.BinaryAuthorization = p.GetBinaryAuthorization()
	own.LaunchStage = cmp.Or(p.GetLaunchStage(), own.GetLaunchStage())
	own.UpdateTime, own.LastModifier = at, creator
	own.Generation++
	own.ObservedGeneration = own.Generation
	own.Etag = fmt.Sprintf("%q", own.GetUid()+"/"+fmt.Sprint(own.GetGeneration()))
}

// reconcile makes the job ready, which with a token means to start an execution. The
// caller holds s.mu.
func (s *Server) reconcile(j *job, token string) {
	j.proto.Reconciling = true
	j.proto.TerminalCondition = condition("Ready", runpb.Condition_CONDITION_RECONCILING)
	settle := func() {
		if failure := s.unstartable(j.project, j.proto); failure != nil {
			failure.LastTransitionTime = now()
			j.proto.Reconciling = false
			j.proto.TerminalCondition = failure
			s.publish(creationEntry(j))
			return
		}
		if token == "" {
			j.ready()
			return
		}
		j.token = token
		s.start(j, j.id+"-"+token)
	}
	delay, _ := s.delays(j.id)
	if delay <= 0 {
		settle()
		return
	}
	generation := j.proto.GetGeneration()
	s.background(func() {
		if !s.pause(delay) {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.jobs[j.proto.GetName()] == j && j.proto.GetDeleteTime() == nil && j.proto.GetGeneration() == generation {
			settle()
		}
	})
}

func (j *job) ready() {
	j.proto.Reconciling = false
	j.proto.TerminalCondition = condition("Ready", runpb.Condition_CONDITION_SUCCEEDED)
}

// settled is how the operation of a creation or an update ends.
func (j *job) settled(op *longrunningpb.Operation) {
	t := j.proto.GetTerminalCondition()
	switch {
	case j.proto.GetReconciling():
	case t.GetState() == runpb.Condition_CONDITION_FAILED:
		finish(op, nil, status.New(failureCode(t), t.GetMessage()))
	default:
		finish(op, j.proto, nil)
	}
}

// GetJob reads a job.
func (s *Server) GetJob(_ context.Context, r *runpb.GetJobRequest) (*runpb.Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.job(r.GetName())
	if err != nil {
		return nil, err
	}
	return proto.CloneOf(j.proto), nil
}

// job finds a job. The caller holds s.mu.
func (s *Server) job(name string) (*job, error) {
	j := s.jobs[name]
	if j == nil {
		return nil, missing("JOB", name)
	}
	return j, nil
}

func missing(kind, name string) error {
	region := ""
	if p := strings.Split(name, "/"); len(p) > 4 {
		region = p[3]
	}
	return status.Errorf(codes.NotFound, "Resource '%s' of kind '%s' in region '%s' does not exist.", path.Base(name), kind, region)
}

// ListJobs lists the jobs of a region by name.
func (s *Server) ListJobs(_ context.Context, r *runpb.ListJobsRequest) (*runpb.ListJobsResponse, error) {
	if _, _, err := s.parent(r.GetParent()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*runpb.Job
	for _, j := range s.jobs {
		if j.parent() == r.GetParent() {
			found = append(found, j.proto)
		}
	}
	jobs, next := page(found, r.GetPageToken(), r.GetPageSize())
	return &runpb.ListJobsResponse{Jobs: jobs, NextPageToken: next}, nil
}

// What a page has where the caller does not say, and at most. Cloud Run's own are not documented;
// a caller that relies on them is to be told from one that asks.
const defaultPage, maxPage = 20, 1000

// page returns copies of what follows the token in the order of names.
func page[T interface {
	proto.Message
	GetName() string
}](all []T, token string, size int32) ([]T, string) {
	slices.SortFunc(all, func(a, b T) int { return cmp.Compare(a.GetName(), b.GetName()) })
	if size <= 0 {
		size = defaultPage
	}
	size = min(size, maxPage)
	var out []T
	for _, m := range all {
		if m.GetName() <= token {
			continue
		}
		if len(out) == int(size) {
			return out, out[len(out)-1].GetName()
		}
		out = append(out, proto.CloneOf(m))
	}
	return out, ""
}

// UpdateJob replaces a job. A token that the job had last starts nothing, one that names an
// execution that was there before is refused.
func (s *Server) UpdateJob(_ context.Context, r *runpb.UpdateJobRequest) (*longrunningpb.Operation, error) {
	token := cmp.Or(r.GetJob().GetStartExecutionToken(), r.GetJob().GetRunExecutionToken())
	if err := checkJob(r.GetJob()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.job(r.GetJob().GetName())
	if err != nil {
		return nil, err
	}
	if err := checkJobID(j.id, token); err != nil {
		return nil, err
	}
	if etag := r.GetJob().GetEtag(); etag != "" && etag != j.proto.GetEtag() {
		return nil, status.Errorf(codes.Aborted, "Conflict for resource '%s': version '%s' was specified but current version is '%s'.", j.id, etag, j.proto.GetEtag())
	}
	if token == j.token {
		token = ""
	}
	if token != "" && s.executions[j.proto.GetName()+"/executions/"+j.id+"-"+token] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "Resource '%s-%s' already exists.", j.id, token)
	}
	if token != "" {
		if err := s.roomForExecution(j.parent()); err != nil {
			return nil, err
		}
	}
	if r.GetValidateOnly() {
		return s.operation(j.parent(), j.proto, finished(j.proto)), nil
	}
	j.write(r.GetJob(), now())
	s.reconcile(j, token)
	return s.operation(j.parent(), j.proto, j.settled), nil
}

// DeleteJob stops the job's executions. The job and they are gone once their processes are.
func (s *Server) DeleteJob(_ context.Context, r *runpb.DeleteJobRequest) (*longrunningpb.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.job(r.GetName())
	if err != nil {
		return nil, err
	}
	if r.GetValidateOnly() {
		return s.operation(j.parent(), j.proto, finished(j.proto)), nil
	}
	if j.proto.GetDeleteTime() == nil {
		j.proto.DeleteTime = now()
		for _, x := range slices.Clone(j.executions) {
			s.delete(x)
		}
		s.forget(j)
	}
	return s.operation(j.parent(), j.proto, func(op *longrunningpb.Operation) {
		if s.jobs[j.proto.GetName()] != j {
			finish(op, j.proto, nil)
		}
	}), nil
}

// forget removes a deleted job without executions. The caller holds s.mu.
func (s *Server) forget(j *job) {
	if j.proto.GetDeleteTime() != nil && len(j.executions) == 0 && s.jobs[j.proto.GetName()] == j {
		delete(s.jobs, j.proto.GetName())
	}
}

// RunJob starts an execution with a random suffix. Overrides are not implemented.
func (s *Server) RunJob(_ context.Context, r *runpb.RunJobRequest) (*longrunningpb.Operation, error) {
	if r.GetOverrides() != nil {
		return nil, status.Error(codes.Unimplemented, "The emulator knows no overrides.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.job(r.GetName())
	if err != nil {
		return nil, err
	}
	if j.proto.GetDeleteTime() != nil || j.proto.GetTerminalCondition().GetState() == runpb.Condition_CONDITION_FAILED {
		return nil, status.Errorf(codes.FailedPrecondition, "Job '%s' is not ready: %s", j.id, j.proto.GetTerminalCondition().GetMessage())
	}
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	suffix := make([]byte, 5)
	for i := range suffix {
		suffix[i] = letters[rand.IntN(len(letters))]
	}
	// An execution started any other way makes the server drop the stored token.
	j.token = ""
	x := s.start(j, j.id+"-"+string(suffix))
	return s.operation(j.parent(), x.proto, x.settled), nil
}

func condition(kind string, state runpb.Condition_State) *runpb.Condition {
	return &runpb.Condition{Type: kind, State: state, LastTransitionTime: now()}
}

// now is the time as exactly as Cloud Run tells it.
func now() *timestamppb.Timestamp { return timestamppb.New(time.Now().Truncate(time.Microsecond)) }
