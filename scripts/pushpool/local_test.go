package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestWithoutPythonTheDemoGoesOnEmbedded holds that it says so, and shows the scenario all the same.
func TestWithoutPythonTheDemoGoesOnEmbedded(t *testing.T) {
	pushpool, err := exec.LookPath("pushpool")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), pushpool, "demo", "--entry-delay", "100ms", "1")
	empty := t.TempDir()
	cmd.Env = []string{"PATH=" + empty, "HOME=" + empty, "PYENV_ROOT=" + empty}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, text := range []string{"Python 3.10 to 3.13", "going on with a stand-in for the Prefect server and the flow", "Completed; its artifact weather-report"} {
		if !strings.Contains(string(out), text) {
			t.Errorf("it does not say %q:\n%s", text, out)
		}
	}
}

// TestCtrlCLeavesNoProcess holds that everything the stack started ends with it, a container
// that still runs among them.
func TestCtrlCLeavesNoProcess(t *testing.T) {
	var before []process
	t.Run("the stack", func(t *testing.T) { // Ctrl-C comes when this ends
		environ := startStack(t)
		request := exec.CommandContext(t.Context(), "pushpool", "request", "weather/guide", "--param", "pause_seconds=120")
		request.Env = append(os.Environ(), environ...)
		if out, err := request.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for deadline := time.Now().Add(time.Minute); ; {
			before = descendants(t, os.Getpid())
			for _, p := range before {
				if strings.Contains(p.args, "stand-in") {
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("no container runs: %v", before)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	for _, p := range processes(t) {
		for _, b := range before {
			if p.pid == b.pid && p.args == b.args && !strings.HasPrefix(b.args, "ps ") {
				t.Errorf("process %s is left: %s", p.pid, p.args)
			}
		}
	}
}

type process struct{ pid, parent, args string }

// processes are all of the machine that have not ended.
func processes(t *testing.T) (all []process) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ps", "-A", "-o", "pid=,ppid=,stat=,args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) > 3 && !strings.HasPrefix(f[2], "Z") {
			all = append(all, process{f[0], f[1], strings.Join(f[3:], " ")})
		}
	}
	return all
}

// descendants are the processes that a process started, and those that they started.
func descendants(t *testing.T, pid int) (found []process) {
	t.Helper()
	ours := map[string]bool{strconv.Itoa(pid): true}
	all := processes(t)
	for more := true; more; {
		more = false
		for _, p := range all {
			if ours[p.parent] && !ours[p.pid] {
				ours[p.pid], more = true, true
				found = append(found, p)
			}
		}
	}
	return found
}
