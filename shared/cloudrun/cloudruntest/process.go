package cloudruntest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/uuid"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// attempt runs the task's container once and tells how it ended.
func (s *Server) attempt(x *execution, t *task, number int32) *runpb.TaskAttemptResult {
	if s.options.Run != nil {
		return s.emulate(x, t, number)
	}
	cmd, err := s.command(x, t, number)
	if err != nil {
		s.write(x, nil, "Application exec likely failed")
		s.write(x, nil, "terminated: Application failed to start: "+err.Error())
		return exited(1)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return attemptResult(codes.Internal, err.Error())
	}
	cmd.Stdout, cmd.Stderr = writer, writer
	s.mu.Lock()
	if x.stopping || s.closed {
		s.mu.Unlock()
		_, _ = reader.Close(), writer.Close()
		return attemptResult(codes.Canceled, textCancelled)
	}
	if err = cmd.Start(); err == nil {
		t.pid, t.hostname, t.outOfMemory = cmd.Process.Pid, hostname(cmd), false
	}
	s.mu.Unlock()
	_ = writer.Close() // the process has its own
	if err != nil {
		_ = reader.Close()
		s.write(x, nil, "terminated: Application failed to start: "+err.Error())
		return exited(1)
	}
	copied := make(chan struct{})
	go func() { s.copyLines(x, reader); close(copied) }()
	stopped := s.wait(x, t, cmd)

	s.mu.Lock()
	pid, outOfMemory := t.pid, t.outOfMemory
	t.pid = 0
	s.mu.Unlock()
	killContainer(pid, hostname(cmd)) // a container's processes end with its first one
	// Children that left the group may keep the pipe open.
	_ = reader.SetReadDeadline(time.Now().Add(time.Second))
	<-copied
	_ = reader.Close()

	ws, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case stopped != nil:
		return stopped
	case outOfMemory:
		return attemptResult(codes.Aborted, textMemory)
	case ws.Signaled():
		s.write(x, nil, fmt.Sprintf(lineSignal, ws.Signal()))
		return signalled(int(ws.Signal()))
	default:
		return exited(ws.ExitStatus())
	}
}

// emulate makes an attempt without a process.
func (s *Server) emulate(x *execution, t *task, number int32) *runpb.TaskAttemptResult {
	ctx, cancel := context.WithTimeout(s.ctx, t.proto.GetTimeout().AsDuration())
	defer cancel()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-x.stop:
			cancel()
		case <-ended:
		}
	}()
	s.mu.Lock()
	snapshot := x.snapshot()
	s.mu.Unlock()
	exitCode, signal := s.options.Run(ctx, snapshot, s.environ(x, t, number), argv(s.options.Entrypoint, t))
	s.mu.Lock()
	stopping := x.stopping
	s.mu.Unlock()
	switch {
	case stopping:
		return attemptResult(codes.Canceled, textCancelled)
	case ctx.Err() != nil:
		return attemptResult(codes.DeadlineExceeded, textTimeout)
	case signal != 0:
		return signalled(signal)
	}
	return exited(exitCode)
}

func signalled(signal int) *runpb.TaskAttemptResult {
	r := attemptResult(codes.Aborted, textSignal)
	r.TermSignal = int32(signal)
	return r
}

func exited(code int) *runpb.TaskAttemptResult {
	if code == 0 {
		return &runpb.TaskAttemptResult{Status: &rpc.Status{}}
	}
	r := attemptResult(codes.Aborted, textExit)
	r.ExitCode = int32(code)
	return r
}

// wait waits for the process and stops it when it has to be. The result is nil where the
// process ended by itself.
func (s *Server) wait(x *execution, t *task, cmd *exec.Cmd) *runpb.TaskAttemptResult {
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }() // how it ended is in cmd.ProcessState
	timeout := time.NewTimer(t.proto.GetTimeout().AsDuration())
	defer timeout.Stop()
	var why *runpb.TaskAttemptResult
	select {
	case <-done:
		return nil
	case <-x.stop:
		why = attemptResult(codes.Canceled, textCancelled)
	case <-timeout.C:
		why = attemptResult(codes.DeadlineExceeded, textTimeout)
	case <-s.ctx.Done():
		killContainer(cmd.Process.Pid, hostname(cmd))
		<-done
		return attemptResult(codes.Canceled, textCancelled)
	}
	// SIGTERM is for the container's first process, SIGKILL for all.
	_ = cmd.Process.Signal(syscall.SIGTERM)
	grace := time.NewTimer(s.options.StopGrace)
	defer grace.Stop()
	select {
	case <-done:
		return why
	case <-grace.C:
	case <-s.ctx.Done():
	}
	killContainer(cmd.Process.Pid, hostname(cmd))
	<-done
	return why
}

// environ is the environment of an attempt's container, by name.
func (s *Server) environ(x *execution, t *task, attempt int32) []string {
	c := t.proto.GetContainers()[0]
	env := map[string]string{}
	for _, v := range s.options.Env {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	for _, v := range c.GetEnv() {
		env[v.GetName()] = v.GetValue()
		if ref := v.GetValueSource().GetSecretKeyRef(); ref != nil {
			env[v.GetName()] = s.options.Secrets[path.Base(ref.GetSecret())]
		}
	}
	env[hostnameVariable] = uuid.NewString()
	env["CLOUD_RUN_JOB"] = x.job.id
	env["CLOUD_RUN_EXECUTION"] = x.id
	env["CLOUD_RUN_TASK_INDEX"] = strconv.Itoa(int(t.proto.GetIndex()))
	env["CLOUD_RUN_TASK_ATTEMPT"] = strconv.Itoa(int(attempt))
	env["CLOUD_RUN_TASK_COUNT"] = strconv.Itoa(len(x.tasks))

	all := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		all = append(all, name+"="+env[name])
	}
	return all
}

// argv is what a task's container executes.
func argv(entrypoint []string, t *task) []string {
	c := t.proto.GetContainers()[0]
	if len(c.GetCommand()) > 0 {
		entrypoint = c.GetCommand()
	}
	return slices.Concat(entrypoint, c.GetArgs())
}

// command makes the process of an attempt, not started yet.
func (s *Server) command(x *execution, t *task, attempt int32) (*exec.Cmd, error) {
	c := t.proto.GetContainers()[0]
	environ, argv := s.environ(x, t, attempt), argv(s.options.Entrypoint, t)
	list := ""
	for _, v := range environ {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			list = value
		}
	}
	file, err := lookPath(argv[0], list)
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: file, Args: argv, Dir: s.options.Dir, Env: environ, SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}
	if info, err := os.Stat(c.GetWorkingDir()); err == nil && info.IsDir() {
		cmd.Dir = c.GetWorkingDir()
	}
	return cmd, nil
}

// lookPath finds a program in the container's own PATH.
func lookPath(name, list string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(list) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("failed to resolve binary path: error finding executable %q in PATH [%s]: no such file or directory",
		name, strings.Join(filepath.SplitList(list), " "))
}

// copyLines passes on what the container writes, until it has ended.
func (s *Server) copyLines(x *execution, from io.Reader) {
	var file io.Writer
	if s.options.LogDir != "" {
		f, err := os.OpenFile(filepath.Join(s.options.LogDir, x.id+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			s.write(x, nil, "no log file: "+err.Error())
		} else {
			defer func() { _ = f.Close() }()
			file = f
		}
	}
	r := bufio.NewReaderSize(from, 64<<10)
	for {
		// A line longer than the buffer comes in parts.
		line, _, err := r.ReadLine()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
				s.write(x, file, "read the container's output: "+err.Error())
			}
			return
		}
		s.write(x, file, string(line))
	}
}

// write keeps a line and passes it on.
func (s *Server) write(x *execution, file io.Writer, line string) {
	x.lines.add(line)
	if file != nil {
		_, _ = io.WriteString(file, line+"\n")
	}
	if s.options.Output != nil {
		s.output.Lock()
		defer s.output.Unlock()
		_, _ = io.WriteString(s.options.Output, x.id+" | "+line+"\n")
	}
}

// tail keeps the last lines of an execution.
type tail struct {
	mu    sync.Mutex
	lines []logLine
}

type logLine struct {
	at   time.Time
	text string
}

const keptLines = 200

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == keptLines {
		t.lines = slices.Delete(t.lines, 0, 1)
	}
	t.lines = append(t.lines, logLine{time.Now(), line})
}

func (t *tail) last() []logLine {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.lines)
}

func (t *tail) texts() []string {
	var all []string
	for _, l := range t.last() {
		all = append(all, l.text)
	}
	return all
}
