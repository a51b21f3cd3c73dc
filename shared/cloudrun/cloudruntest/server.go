// Package cloudruntest is Cloud Run Jobs on one machine: the real API over gRPC, with a
// real process for every task.
//
// Jobs, executions, tasks and operations follow the Admin API v2 in names, conditions,
// counters, errors and validation; ends of executions are published as audit LogEntries
// shaped like Cloud Run's own, and what containers wrote is read by Cloud Logging's API. Where no capture of the real thing is known, the wording is
// marked as assumed beside its constant.
//
// Images are not pulled: a container's command is run on this machine, with an environment
// of its own. An image whose name ends with /missing is one that does not exist. Volumes,
// networks, CPU and memory are checked but not applied, and only jobs of one container run.
package cloudruntest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"sync"
	"time"

	"cloud.google.com/go/logging/apiv2/loggingpb"
	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"cloud.google.com/go/run/apiv2/runpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Phase is when Options.Intercept is called.
type Phase int

// The phases of a call.
const (
	Before Phase = iota // nothing has happened yet
	After               // the call has taken effect, its caller has not been answered
)

// Options of an emulator. The zero value listens on a free port and does everything at once.
type Options struct {
	// Addr to listen on, host:port; empty: a free port of 127.0.0.1.
	Addr string
	// Regions that exist; none: all do.
	Regions []string
	// MaxJobs of a project in a region; 0: 1000, as Cloud Run's quota.
	MaxJobs int
	// MaxExecutions that may be alive in a region of a project; 0: any number. 1000 is Cloud Run's quota.
	MaxExecutions int
	// WritesPerMinute and ReadsPerMinute are quotas of calls in a region of a project; 0: none.
	// 180 and 3000 are Cloud Run's. A call that an Intercept answers is not counted.
	WritesPerMinute, ReadsPerMinute int

	// Env that containers have without asking, as "NAME=value": PATH and HOME for two.
	Env []string
	// Entrypoint of every image, for containers without a command. Where it is empty such a
	// job fails like one whose image is missing.
	Entrypoint []string
	// Dir is every image's working directory. A container's own working_dir is used where
	// this machine has it.
	Dir string
	// Secrets by name (the last part of it). A job that wants another one never starts.
	Secrets map[string]string
	// DisabledSecrets exist but cannot be read: executions that want one fail at their start.
	DisabledSecrets []string

	// Run, if set, is the container of every task attempt, in place of a process. It returns how
	// it ended: an exit code, or the signal that ended it. ctx ends when the container is to stop.
	Run func(ctx context.Context, x Execution, environ, argv []string) (exitCode, signal int)

	// ReadyDelay passes between the creation of a job and that of its execution, as while an
	// image is imported; the job is reconciling.
	ReadyDelay time.Duration
	// StartDelay passes between the creation of an execution and the start of its processes.
	StartDelay time.Duration
	// Delays, if set, gives both for an execution of the job, in place of ReadyDelay and StartDelay.
	Delays func(job string) (ready, start time.Duration)
	// StopGrace passes between SIGTERM and SIGKILL; 0: 10 s, as on Cloud Run.
	StopGrace time.Duration
	// EntryDelay passes between an execution's end and its audit entry; some 3 s on Cloud Run.
	EntryDelay time.Duration

	// Publish receives each audit LogEntry as JSON: ends of executions, and jobs that can
	// never start theirs. It is repeated until it returns nil. nil: no entries.
	Publish func(ctx context.Context, entry []byte) error
	// Intercept sees every call, by its name in the API (CreateJob). An error answers the
	// caller instead: use package status. It may block. nil: no faults.
	Intercept func(ctx context.Context, method string, phase Phase, req any) error

	// LogDir receives a file EXECUTION.log for each execution; empty: no files.
	LogDir string
	// Output receives the lines that containers write, each after its execution's name; nil: none.
	Output io.Writer
}

// Server is a Cloud Run Jobs emulator for any number of projects and regions.
type Server struct {
	runpb.UnimplementedJobsServer
	runpb.UnimplementedExecutionsServer
	runpb.UnimplementedTasksServer
	longrunningpb.UnimplementedOperationsServer

	options  Options
	grpc     *grpc.Server
	listener net.Listener
	output   sync.Mutex      // one line at a time to Options.Output
	ctx      context.Context // ends with Close; processes and publications descend from it
	stop     context.CancelFunc
	work     sync.WaitGroup

	mu         sync.Mutex // guards everything below and what it points to
	closed     bool
	jobs       map[string]*job       // by full name
	executions map[string]*execution // by full name
	history    []*execution          // all there ever were, deleted ones included
	operations map[string]func() *longrunningpb.Operation
	meters     map[string]*meter // by kind of call and region
	refused    map[string]int    // calls by method
}

// Start starts an emulator. Close it.
func Start(o Options) (*Server, error) {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for Cloud Run: %w", err)
	}
	s := New(o)
	s.listener, s.grpc = listener, grpc.NewServer(grpc.UnaryInterceptor(s.Intercept))
	s.Register(s.grpc)
	go func() { _ = s.grpc.Serve(listener) }() // ends with Close
	return s, nil
}

// New returns an emulator that listens nowhere, for Register. Close it.
func New(o Options) *Server {
	if o.MaxJobs == 0 {
		o.MaxJobs = 1000
	}
	if o.StopGrace == 0 {
		o.StopGrace = 10 * time.Second
	}
	s := &Server{
		options: o,
		jobs:    map[string]*job{}, executions: map[string]*execution{}, operations: map[string]func() *longrunningpb.Operation{},
		meters: map[string]*meter{}, refused: map[string]int{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Register makes the emulator's services known to a server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	runpb.RegisterJobsServer(r, s)
	runpb.RegisterExecutionsServer(r, s)
	runpb.RegisterTasksServer(r, s)
	longrunningpb.RegisterOperationsServer(r, s)
	loggingpb.RegisterLoggingServiceV2Server(r, &logs{server: s})
}

// delays are those of an execution of the job.
func (s *Server) delays(job string) (ready, start time.Duration) {
	if s.options.Delays != nil {
		return s.options.Delays(job)
	}
	return s.options.ReadyDelay, s.options.StartDelay
}

// Addr returns host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// ClientOptions connect the clients of cloud.google.com/go/run/apiv2.
func (s *Server) ClientOptions() []option.ClientOption {
	return []option.ClientOption{
		option.WithEndpoint(s.Addr()), option.WithoutAuthentication(), option.WithTelemetryDisabled(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
}

// Close answers no more calls, kills all processes and waits for them. Entries that were
// not published yet are lost.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	if s.grpc != nil {
		s.grpc.Stop()
	}
	s.work.Wait()
}

// background runs f until it returns; Close waits for it. The caller holds s.mu.
func (s *Server) background(f func()) {
	if s.closed {
		return
	}
	s.work.Go(f)
}

// pause waits, and reports whether the emulator is still open.
func (s *Server) pause(d time.Duration) bool {
	if d <= 0 {
		return s.ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// Intercept does before and after a call what the options say: quotas, faults.
func (s *Server) Intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	method := path.Base(info.FullMethod)
	if s.options.Intercept == nil {
		if err := s.charge(method, req); err != nil {
			return nil, err
		}
		return handle(ctx, req)
	}
	if err := s.options.Intercept(ctx, method, Before, req); err != nil {
		return nil, err
	}
	if err := s.charge(method, req); err != nil {
		return nil, err
	}
	res, err := handle(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := s.options.Intercept(ctx, method, After, req); err != nil {
		return nil, err
	}
	return res, nil
}

// State is where an execution is in its life.
type State string

// The states of an execution.
const (
	Pending   State = "pending"   // created, no process yet
	Running   State = "running"   // a process runs
	Succeeded State = "succeeded" // all tasks succeeded
	Failed    State = "failed"    // a task failed for good
	Cancelled State = "cancelled" // CancelExecution ended it
	Deleted   State = "deleted"   // it, or its job, was deleted
)

// Execution is a snapshot for tests and for people.
type Execution struct {
	Name   string // projects/P/locations/R/jobs/J/executions/E
	Labels map[string]string
	State  State
	// PID is of the first task's process, which leads its process group; 0 while there is none.
	PID int
	// Message is of the condition Completed.
	Message string
	// JobCreated is when CreateJob was accepted. Times that have not come are zero.
	JobCreated, Created, Started, Completed time.Time
	// LastLines are the last lines that the containers wrote.
	LastLines []string
}

// Executions returns all executions there ever were, deleted ones included, oldest first.
func (s *Server) Executions() []Execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Execution, len(s.history))
	for i, x := range s.history {
		out[i] = x.snapshot()
	}
	return out
}

// ErrNotRunning: the execution has no process, or there is no such execution.
var ErrNotRunning = errors.New("the execution is not running")

// Kill sends SIGKILL to the process groups of an execution, given its full name.
func (s *Server) Kill(execution string) error { return s.kill(execution, false) }

// ExhaustMemory kills the processes of an execution as Cloud Run does at the memory limit.
func (s *Server) ExhaustMemory(execution string) error { return s.kill(execution, true) }

func (s *Server) kill(name string, outOfMemory bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.executions[name]
	if x == nil {
		return fmt.Errorf("kill %s: %w", name, ErrNotRunning)
	}
	killed := false
	for _, t := range x.tasks {
		if t.pid != 0 {
			t.outOfMemory = outOfMemory
			killContainer(t.pid, t.hostname)
			killed = true
		}
	}
	if !killed {
		return fmt.Errorf("kill %s: %w", name, ErrNotRunning)
	}
	return nil
}
