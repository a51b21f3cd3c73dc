package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Functions are the four functions: `pushpool serve` in a process of its own, so that it
// can die like an instance does.
type Functions struct {
	addr    string
	environ []string
	output  io.Writer

	mu    sync.Mutex
	cmd   *exec.Cmd
	done  chan struct{}
	lines []Line
}

// Line is a line that a function logged.
type Line struct {
	Time      time.Time `json:"time"`
	Function  string    `json:"function"`
	FlowRunID string    `json:"flow_run_id"`
	MessageID string    `json:"message_id"`
	Message   string    `json:"message"`
	Verdict   string    `json:"verdict"`
	StateType string    `json:"state_type"` // the webhook's: of the event
	Error     string    `json:"error"`
	// Took is the handler's time, in seconds.
	Took float64 `json:"took"`
}

// URL returns the function's address.
func (f *Functions) URL(function string) string { return "http://" + f.addr + "/" + function }

// Only returns a process of the one function on an address of its own, to be started.
func (f *Functions) Only(function, addr string) *Functions {
	return &Functions{addr: addr, environ: append(slices.Clone(f.environ), "FUNCTION_TARGET="+function), output: f.output}
}

// Environ is the functions' environment.
func (f *Functions) Environ() []string { return slices.Clone(f.environ) }

// Pid is the id of the process that was started last.
func (f *Functions) Pid() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cmd.Process.Pid
}

// CPU is the processor time that the process took which was started last, and has ended.
func (f *Functions) CPU() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cmd.ProcessState.UserTime() + f.cmd.ProcessState.SystemTime()
}

// Start starts the process and waits until it listens.
func (f *Functions) Start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "serve", "--addr", f.addr) //nolint:noctx // it ends with Stop or Kill, not with ctx
	cmd.Env = f.environ
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; it is stopped in its turn
	logs, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the functions: %w", err)
	}
	done := make(chan struct{})
	f.mu.Lock()
	f.cmd, f.done = cmd, done
	f.mu.Unlock()
	go func() {
		defer close(done)
		f.read(logs)
		_ = cmd.Wait()
	}()
	return f.wait(ctx, done)
}

func (f *Functions) wait(ctx context.Context, done chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var d net.Dialer
	for {
		if c, err := d.DialContext(ctx, "tcp", f.addr); err == nil {
			itself := c.LocalAddr().String() == f.addr // a connection to itself, where nobody listens
			if err := c.Close(); err != nil || !itself {
				return err
			}
		}
		select {
		case <-done:
			return errors.New("start the functions: the process ended; what it printed is above")
		case <-ctx.Done():
			return fmt.Errorf("start the functions: nothing listens on %s", f.addr)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (f *Functions) read(logs io.Reader) {
	scanner := bufio.NewScanner(logs)
	scanner.Buffer(nil, 4<<20)
	for scanner.Scan() {
		var l Line
		if json.Unmarshal(scanner.Bytes(), &l) != nil {
			fmt.Fprintf(os.Stderr, "functions: %s\n", scanner.Bytes())
			continue
		}
		f.mu.Lock()
		f.lines = append(f.lines, l)
		f.mu.Unlock()
		if f.output != nil {
			fmt.Fprintf(f.output, "%s\n", scanner.Bytes())
		}
	}
}

// Lines returns what the functions logged so far about a flow run; about all where it is empty.
func (f *Functions) Lines(flowRunID string) []Line {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []Line
	for _, l := range f.lines {
		if flowRunID == "" || l.FlowRunID == flowRunID {
			lines = append(lines, l)
		}
	}
	return lines
}

// Kill ends the process by SIGKILL and waits until it is gone.
func (f *Functions) Kill() { f.end(syscall.SIGKILL) }

// Stop asks the process to end and waits for it.
func (f *Functions) Stop() { f.end(syscall.SIGTERM) }

func (f *Functions) end(signal syscall.Signal) {
	f.mu.Lock()
	cmd, done := f.cmd, f.done
	f.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(signal)
	<-done
}
