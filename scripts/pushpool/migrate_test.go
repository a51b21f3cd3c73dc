package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestMovingOverBesideARealWorker moves a deployment whose schedule never rests from a real worker to the
// installation and back, on a real Prefect 3, while both serve. It holds that of each time of the schedule there is
// one flow run, which was launched once and completed. PUSHPOOL_TEST_WORKER is a virtual environment with Prefect 3.
func TestMovingOverBesideARealWorker(t *testing.T) {
	venv := os.Getenv("PUSHPOOL_TEST_WORKER")
	if venv == "" {
		t.Skip("set PUSHPOOL_TEST_WORKER to a virtual environment with Prefect 3")
	}
	const every = 15 * time.Second
	environ := startStack(t, "--light-flow")
	apiURL := variable(environ, "PREFECT_API_URL")
	p, err := prefect.New(prefect.Config{APIURL: apiURL, RequestsPerMinute: 6000})
	if err != nil {
		t.Fatal(err)
	}
	template, err := p.WorkerMetadataTemplate(t.Context(), "process")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.CreateWorkPool(t.Context(), "workers", "process", template); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "etl.py"), []byte("from prefect import flow\n\n\n@flow\ndef etl():\n    print(\"done\")\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flow, err := p.CreateFlow(t.Context(), "etl")
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.CreateDeployment(t.Context(), prefect.NewDeployment{
		Name: "often", FlowID: flow.ID, WorkPool: "workers", Path: dir, Entrypoint: "etl.py:etl", Schedules: []prefect.Schedule{{Interval: every}},
	})
	if err != nil {
		t.Fatal(err)
	}
	startWorker(t, venv, dir, apiURL)

	completed := func(pool string) int {
		found, err := p.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{d.ID}, WorkPools: []string{pool}, StateTypes: []prefect.StateType{flowrun.StateCompleted}})
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	pushpool := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "pushpool", args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), environ...)
		out, err := cmd.CombinedOutput()
		t.Logf("%v:\n%s", args, out)
		if err != nil {
			t.Fatal(err)
		}
	}
	within(t, "the worker completes nothing", func() bool { return completed("workers") >= 2 })
	pushpool("migrate", "switch", "--from", "workers", "--to", "cloud-run", "--yes")
	within(t, "the installation completes nothing", func() bool { return completed("cloud-run") >= 3 })
	before := completed("workers")
	pushpool("migrate", "back", "--yes")
	within(t, "the worker completes nothing any more", func() bool { return completed("workers") >= before+2 })

	if err := p.SetDeploymentPaused(t.Context(), d.ID, true); err != nil {
		t.Fatal(err)
	}
	var all []prefect.FlowRun
	within(t, "they do not come to an end", func() bool {
		if all, err = p.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{d.ID}}); err != nil {
			t.Fatal(err)
		}
		// What was made again on the way and is not due yet is no schedule's any more.
		all = slices.DeleteFunc(all, func(fr prefect.FlowRun) bool {
			return fr.StateType == flowrun.StateScheduled && fr.Due().After(time.Now())
		})
		return !slices.ContainsFunc(all, func(fr prefect.FlowRun) bool { return !fr.StateType.Terminal() })
	})
	slices.SortFunc(all, func(a, b prefect.FlowRun) int { return a.ExpectedStartTime.Compare(*b.ExpectedStartTime) })
	for i, fr := range all {
		if fr.StateType != flowrun.StateCompleted {
			t.Errorf("flow run %s, due %s in work pool %s, is %s", fr.ID, fr.ExpectedStartTime, fr.WorkPoolName, fr.StateName)
		}
		if i > 0 && fr.ExpectedStartTime.Sub(*all[i-1].ExpectedStartTime) != every {
			t.Errorf("after the flow run due %s comes one due %s", all[i-1].ExpectedStartTime, fr.ExpectedStartTime)
		}
		states, err := p.FlowRunStates(t.Context(), fr.ID)
		if err != nil {
			t.Fatal(err)
		}
		launched, ran := 0, 0
		for _, s := range states {
			if s.Type == flowrun.StatePending && s.Name == "Pending" {
				launched++
			}
			if s.Type == flowrun.StateRunning {
				ran++
			}
		}
		if launched != 1 || ran != 1 {
			t.Errorf("flow run %s in work pool %s was claimed %d times and ran %d times", fr.ID, fr.WorkPoolName, launched, ran)
		}
	}
	t.Logf("%d flow runs, %d by the worker, %d by the installation", len(all), completed("workers"), completed("cloud-run"))
}

// startWorker starts `prefect worker`, which runs each flow run as a process.
func startWorker(t *testing.T, venv, dir, apiURL string) {
	t.Helper()
	var out strings.Builder
	cmd := exec.CommandContext(context.Background(), filepath.Join(venv, "bin", "prefect"), "worker", "start", "--pool", "workers", "--type", "process")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.Env = []string{
		"PATH=" + filepath.Join(venv, "bin") + ":/usr/bin:/bin", "HOME=" + dir, "PREFECT_HOME=" + filepath.Join(dir, "home"),
		"PREFECT_API_URL=" + apiURL, "NO_COLOR=1",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the worker:\n%s", out.String())
		}
	})
}

// within waits up to three minutes.
func within(t *testing.T, otherwise string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !done(); time.Sleep(500 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(otherwise)
		}
	}
}

func variable(environ []string, name string) string {
	for _, v := range environ {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	panic(fmt.Sprintf("%s is not set", name))
}
