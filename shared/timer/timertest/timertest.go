// Package timertest is Cloud Tasks on one machine: named tasks that make HTTP requests when due.
package timertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"github.com/google/uuid"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Limits and defaults of Cloud Tasks (https://cloud.google.com/tasks/docs/quotas, and
// RetryConfig in https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2).
const (
	maxAhead        = 30 * 24 * time.Hour
	maxTask         = 1 << 20
	maxAttempts     = 100
	minBackoff      = 100 * time.Millisecond
	maxBackoff      = time.Hour
	defaultDeadline = 10 * time.Minute
)

var (
	queueName = regexp.MustCompile(`^projects/[^/]+/locations/[^/]+/queues/[A-Za-z0-9-]{1,100}$`)
	taskID    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,500}$`)
)

// Server is a Cloud Tasks emulator. It knows CreateTask, GetTask, DeleteTask and ListTasks on
// queues of any name. A task's name stays taken after the task is gone. A request that is not
// answered with 2xx is repeated with back-off, 100 times at most.
type Server struct {
	cloudtaskspb.UnimplementedCloudTasksServer

	grpc     *grpc.Server
	listener net.Listener
	http     *http.Client
	ctx      context.Context // ends with Close; every request to a target descends from it
	stop     context.CancelFunc
	requests sync.WaitGroup

	mu    sync.Mutex
	tasks map[string]*task
	taken map[string]bool // every name ever used
}

type task struct {
	proto *cloudtaskspb.Task // replaced, never changed
	timer *time.Timer
}

// New starts an emulator on addr (host:port; empty: a free port on 127.0.0.1). Close it.
func New(addr string) (*Server, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for Cloud Tasks: %w", err)
	}
	s := &Server{
		grpc: grpc.NewServer(), listener: listener, tasks: map[string]*task{}, taken: map[string]bool{},
		http: &http.Client{
			Transport:     http.DefaultTransport.(*http.Transport).Clone(),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	cloudtaskspb.RegisterCloudTasksServer(s.grpc, s)
	go func() { _ = s.grpc.Serve(listener) }() // ends with Close
	return s, nil
}

// Addr returns host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// ClientOptions connect a client of cloud.google.com/go/cloudtasks/apiv2.
func (s *Server) ClientOptions() []option.ClientOption {
	return []option.ClientOption{
		option.WithEndpoint(s.Addr()), option.WithoutAuthentication(), option.WithTelemetryDisabled(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
}

// Close forgets all tasks, ends requests under way and waits for them.
func (s *Server) Close() {
	s.grpc.Stop()
	s.mu.Lock()
	s.stop()
	for _, t := range s.tasks {
		t.timer.Stop()
	}
	s.mu.Unlock()
	s.requests.Wait()
	s.http.CloseIdleConnections()
}

// CreateTask stores a task and lets it fire at its schedule time.
func (s *Server) CreateTask(_ context.Context, r *cloudtaskspb.CreateTaskRequest) (*cloudtaskspb.Task, error) {
	now := time.Now()
	t, err := checked(r, now)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[t.Name] {
		if s.tasks[t.Name] == nil {
			return nil, status.Error(codes.AlreadyExists, "The task cannot be created because a task with this name existed too recently.")
		}
		return nil, status.Error(codes.AlreadyExists, "Requested entity already exists")
	}
	s.taken[t.Name] = true
	kept := &task{proto: t}
	s.tasks[t.Name] = kept
	kept.timer = time.AfterFunc(t.ScheduleTime.AsTime().Sub(now), func() { s.fire(kept) })
	return view(t, r.ResponseView), nil
}

// GetTask returns a task that has not been done yet.
func (s *Server) GetTask(_ context.Context, r *cloudtaskspb.GetTaskRequest) (*cloudtaskspb.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[r.Name]
	if t == nil {
		return nil, status.Error(codes.NotFound, "The task was not found.")
	}
	return view(t.proto, r.ResponseView), nil
}

// DeleteTask forgets a task; a request under way goes on.
func (s *Server) DeleteTask(_ context.Context, r *cloudtaskspb.DeleteTaskRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[r.Name]
	if t == nil {
		return nil, status.Error(codes.NotFound, "The task was not found.")
	}
	t.timer.Stop()
	delete(s.tasks, r.Name)
	return &emptypb.Empty{}, nil
}

// Waiting returns the body of the request of each task that has still to fire.
func (s *Server) Waiting() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bodies [][]byte
	for _, t := range s.tasks {
		bodies = append(bodies, t.proto.GetHttpRequest().GetBody())
	}
	return bodies
}

// ListTasks returns all tasks of a queue, by name, in one page.
func (s *Server) ListTasks(_ context.Context, r *cloudtaskspb.ListTasksRequest) (*cloudtaskspb.ListTasksResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list cloudtaskspb.ListTasksResponse
	for name, t := range s.tasks {
		if strings.HasPrefix(name, r.Parent+"/tasks/") {
			list.Tasks = append(list.Tasks, view(t.proto, r.ResponseView))
		}
	}
	slices.SortFunc(list.Tasks, func(a, b *cloudtaskspb.Task) int { return strings.Compare(a.Name, b.Name) })
	return &list, nil
}

// checked returns the task to store, or what Cloud Tasks has against it.
func checked(r *cloudtaskspb.CreateTaskRequest, now time.Time) (*cloudtaskspb.Task, error) {
	invalid := func(format string, args ...any) (*cloudtaskspb.Task, error) {
		return nil, status.Errorf(codes.InvalidArgument, format, args...)
	}
	if !queueName.MatchString(r.Parent) {
		return invalid("parent %q is not projects/P/locations/L/queues/Q", r.Parent)
	}
	target := r.Task.GetHttpRequest()
	if target == nil {
		return invalid("task.http_request is missing; nothing else is emulated")
	}
	if !strings.HasPrefix(target.Url, "http://") && !strings.HasPrefix(target.Url, "https://") {
		return invalid("task.http_request.url %q must begin with http:// or https://", target.Url)
	}
	t := proto.CloneOf(r.Task)
	if t.Name == "" {
		t.Name = r.Parent + "/tasks/" + uuid.NewString()
	}
	if id, ok := strings.CutPrefix(t.Name, r.Parent+"/tasks/"); !ok || !taskID.MatchString(id) {
		return invalid("task.name %q is not %s/tasks/ID with up to 500 of A-Z a-z 0-9 - _", t.Name, r.Parent)
	}
	if t.ScheduleTime == nil || t.ScheduleTime.AsTime().Before(now) {
		t.ScheduleTime = timestamppb.New(now)
	}
	if t.ScheduleTime.AsTime().Sub(now) > maxAhead {
		return invalid("task.schedule_time must not be more than 30 days ahead")
	}
	if d := t.DispatchDeadline; d != nil && (d.AsDuration() < 15*time.Second || d.AsDuration() > 30*time.Minute) {
		return invalid("task.dispatch_deadline must be within 15 s and 30 min")
	}
	if proto.Size(t) > maxTask {
		return invalid("the task is larger than 1 MB")
	}
	t.CreateTime = timestamppb.New(now)
	return t, nil
}

// view hides the body unless all was asked for, as Cloud Tasks does.
func view(t *cloudtaskspb.Task, v cloudtaskspb.Task_View) *cloudtaskspb.Task {
	t = proto.CloneOf(t)
	t.View = v
	if v != cloudtaskspb.Task_FULL {
		t.View = cloudtaskspb.Task_BASIC
		t.GetHttpRequest().Body = nil
	}
	return t
}

// fire makes one attempt, and sets the timer of the next one if it fails.
func (s *Server) fire(t *task) {
	s.mu.Lock()
	p := t.proto
	if s.ctx.Err() != nil || s.tasks[p.Name] != t {
		s.mu.Unlock()
		return
	}
	s.requests.Add(1) // under the lock, so before Close waits
	s.mu.Unlock()
	defer s.requests.Done()

	ok := s.send(p)

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tasks[p.Name] != t {
		return
	}
	p = proto.CloneOf(p)
	p.DispatchCount++
	t.proto = p
	if ok || p.DispatchCount >= maxAttempts {
		delete(s.tasks, p.Name)
		return
	}
	wait := maxBackoff
	if p.DispatchCount <= 16 {
		wait = min(maxBackoff, minBackoff<<(p.DispatchCount-1))
	}
	p.ScheduleTime = timestamppb.New(time.Now().Add(wait))
	if s.ctx.Err() == nil {
		t.timer = time.AfterFunc(wait, func() { s.fire(t) })
	}
}

func (s *Server) send(t *cloudtaskspb.Task) bool {
	deadline := defaultDeadline
	if t.DispatchDeadline != nil {
		deadline = t.DispatchDeadline.AsDuration()
	}
	ctx, cancel := context.WithTimeout(s.ctx, deadline)
	defer cancel()
	target := t.GetHttpRequest()
	method := http.MethodPost
	if target.HttpMethod != cloudtaskspb.HttpMethod_HTTP_METHOD_UNSPECIFIED {
		method = target.HttpMethod.String()
	}
	r, err := http.NewRequestWithContext(ctx, method, target.Url, bytes.NewReader(target.Body))
	if err != nil {
		return false
	}
	for key, value := range target.Headers {
		r.Header.Set(key, value)
	}
	queue, id, _ := strings.Cut(t.Name, "/tasks/")
	r.Header.Set("User-Agent", "Google-Cloud-Tasks")
	r.Header.Set("X-CloudTasks-QueueName", queue[strings.LastIndex(queue, "/")+1:])
	r.Header.Set("X-CloudTasks-TaskName", id)
	r.Header.Set("X-CloudTasks-TaskRetryCount", strconv.Itoa(int(t.DispatchCount)))
	if target.GetOauthToken() != nil || target.GetOidcToken() != nil {
		r.Header.Set("Authorization", "Bearer emulator")
	}
	response, err := s.http.Do(r)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode >= 200 && response.StatusCode < 300
}
