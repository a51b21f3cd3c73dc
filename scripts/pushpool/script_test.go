package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joho/godotenv"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pushpool/pushpool/shared/prefect"
)

// TestMain lets the test's own binary be the command pushpool, in scripts and for the stack.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "stand-in") { // of a stack in the test's own process
		main()
		return
	}
	testscript.Main(m, map[string]func(){
		"pushpool": main,
		"gcloud":   func() { standIn("gcloud") }, "terraform": func() { standIn("terraform") }, "prefect": func() { standIn("prefect") },
		"go": standInForGo,
	})
}

// TestCommands runs the operator's commands against an embedded local stack: real processes,
// the real wire, a stand-in for Prefect.
func TestCommands(t *testing.T) {
	t.Parallel()
	environ := startStack(t)
	// Of a stack that has done nothing yet the whole output is known.
	t.Run("first", func(t *testing.T) { scripts(t, "testdata/script-first", environ) })
	t.Run("beside each other", func(t *testing.T) { scripts(t, "testdata/script", environ) })
	// This one pauses the work pool that the others need; scripts of one folder go in parallel.
	t.Run("alone", func(t *testing.T) { scripts(t, "testdata/script-alone", environ) })
}

func scripts(t *testing.T, dir string, environ []string) {
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, environ...)
			return nil
		},
		RequireExplicitExec: true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"publish": publishMessage, "until": until, "flow-run": nameFlowRun, "status": exitStatus, "deploy": deploy, "mask": mask},
		UpdateScripts:       *update,
	})
}

// mask writes the standard output of the last command, or what else it is told, to the file out, without what differs each time.
func mask(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(masked(ts.ReadFile(append(args, "stdout")[0]))), 0o600))
}

// publishMessage publishes a message with attributes: publish TOPIC DATA [NAME=VALUE…].
func publishMessage(ts *testscript.TestScript, _ bool, args []string) {
	attributes := map[string]string{}
	for _, a := range args[2:] {
		name, value, _ := strings.Cut(a, "=")
		attributes[name] = value
	}
	body, err := json.Marshal(map[string]any{"messages": []any{map[string]any{"data": []byte(args[1]), "attributes": attributes}}})
	ts.Check(err)
	url := fmt.Sprintf("http://%s/v1/projects/%s/topics/%s:publish", ts.Getenv("PUBSUB_EMULATOR_HOST"), ts.Getenv("GOOGLE_CLOUD_PROJECT"), args[0])
	resp, err := http.Post(url, "application/json", bytes.NewReader(body))
	ts.Check(err)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("publish: %s", resp.Status)
	}
}

// exitStatus runs a command that ends with the status: status N COMMAND….
func exitStatus(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || strconv.Itoa(exit.ExitCode()) != args[0] {
		ts.Fatalf("status: %v where exit status %s was due", err, args[0])
	}
}

// deploy makes a deployment of the flow weather, with a schedule if not said otherwise, and its work pool:
// deploy NAME WORK_POOL WORK_QUEUE [unscheduled].
func deploy(ts *testscript.TestScript, _ bool, args []string) {
	p, err := prefect.New(prefect.Config{APIURL: ts.Getenv("PREFECT_API_URL")})
	ts.Check(err)
	template, err := p.WorkerMetadataTemplate(context.Background(), "cloud-run-v2")
	ts.Check(err)
	ts.Check(p.CreateWorkPool(context.Background(), args[1], "cloud-run-v2", template))
	flow, err := p.CreateFlow(context.Background(), "weather")
	ts.Check(err)
	d := prefect.NewDeployment{Name: args[0], FlowID: flow.ID, WorkPool: args[1], WorkQueue: args[2]}
	if len(args) == 3 {
		// The first is due soon, as migrate sees it, and not before a slow machine is done.
		d.Schedules = []prefect.Schedule{{Interval: 170 * time.Second}}
	}
	_, err = p.CreateDeployment(context.Background(), d)
	ts.Check(err)
}

// nameFlowRun sets FLOW_RUN to the flow run's id in the standard output of the last command,
// JSON or text.
func nameFlowRun(ts *testscript.TestScript, _ bool, _ []string) {
	m := regexp.MustCompile(`(?:flow_run_id":\s*"|^flow run [a-z0-9-]+, )([0-9a-f-]{36})|flow run [a-z0-9-]+, ([0-9a-f-]{36})`).FindStringSubmatch(ts.ReadFile("stdout"))
	if m == nil {
		ts.Fatalf("flow-run: the last command named none")
	}
	ts.Setenv("FLOW_RUN", m[1]+m[2])
}

// until repeats a command until its standard output matches, for up to half a minute:
// until PATTERN exec COMMAND….
func until(ts *testscript.TestScript, _ bool, args []string) {
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := ts.Exec(args[2], args[3:]...)
		if err == nil && pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("until: %v; %s did not print %q", err, strings.Join(args[2:], " "), args[0])
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// startStack starts `pushpool local`, embedded if nothing else is said, and returns the variables that find it.
func startStack(t *testing.T, how ...string) []string {
	t.Helper()
	pushpool, err := exec.LookPath("pushpool") // which TestMain made
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "local.env")
	var out bytes.Buffer
	if how == nil {
		how = []string{"--embedded"}
	}
	cmd := exec.CommandContext(context.Background(), pushpool, append([]string{"local", "--sweep", "1s", "--entry-delay", "100ms", "--env-out", file}, how...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := <-ended; err != nil {
			t.Errorf("pushpool local: %v\n%s", err, out.String())
		}
	})
	deadline := time.After(4 * time.Minute) // a real server's first start on a slow machine
	for {
		values, err := godotenv.Read(file)
		if err == nil && len(values) > 0 {
			var environ []string
			for name, value := range values {
				environ = append(environ, name+"="+value)
			}
			return environ
		}
		select {
		case err := <-ended:
			ended <- nil
			t.Fatalf("pushpool local ended: %v\n%s", err, out.String())
		case <-deadline:
			t.Fatalf("pushpool local did not start: %v\n%s", errors.Join(err, fmt.Errorf("no variables in %s", file)), strings.TrimSpace(out.String()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
