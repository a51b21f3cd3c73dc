package functions_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/functions"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/ledger"
)

const (
	root      = ".." // of the module, which is packed as one source archive
	framework = "github.com/GoogleCloudPlatform/functions-framework-go"
)

var (
	all = []string{"dispatcher", "finalizer", "reconciler", "webhook"}
	// core is what the functions need that act on flow runs.
	core = []string{
		"GOOGLE_CLOUD_PROJECT=p", "PREFECT_API_URL=https://prefect.example.com/api", "WORK_POOLS=etl", "REGIONS=us-east1",
		"TASKS_QUEUE=projects/p/locations/l/queues/q", "TASKS_SERVICE_ACCOUNT=tasks@p.iam.gserviceaccount.com",
	}
	subscriber = append(slices.Clone(core), "DEAD_LETTER_TOPIC=dead")
	webhook    = []string{"GOOGLE_CLOUD_PROJECT=p", "WEBHOOK_SECRETS=a-secret-of-enough-characters"}
	whole      = append(slices.Clone(subscriber), webhook[1])
)

func TestEachFunctionDemandsItsOwnVariablesOnly(t *testing.T) {
	for target, environ := range map[string][]string{
		"webhook": webhook, "dispatcher": subscriber, "finalizer": subscriber, "reconciler": core, "": whole,
	} {
		t.Run(target, func(t *testing.T) {
			handlers, err := functions.Make(target, install.Surroundings{Environ: environ, Log: io.Discard, Memory: ledger.NewMemory()})
			if err != nil {
				t.Fatal(err)
			}
			want := []string{target}
			if target == "" {
				want = all
			}
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(handlers))); diff != "" {
				t.Errorf("made (-want +got):\n%s", diff)
			}
			for _, variable := range environ {
				name, _, _ := strings.Cut(variable, "=")
				less := slices.DeleteFunc(slices.Clone(environ), func(v string) bool { return v == variable })
				_, err := functions.Make(target, install.Surroundings{Environ: less, Log: io.Discard})
				if err == nil || !strings.HasPrefix(err.Error(), name+": not set; write ") || strings.Count(err.Error(), "\n") != 0 {
					t.Errorf("without %s: %v", name, err)
				}
			}
		})
	}
}

func TestWhatIsWrongIsSaidOnceForAllFunctions(t *testing.T) {
	// Every kind of value, and a secret among them.
	_, err := functions.Make("", install.Surroundings{Log: io.Discard, Environ: append(slices.Clone(subscriber),
		"INSTALL_NAME=No Name", "WEBHOOK_SECRETS=hunter2", "PREFECT_API_KEY=pnu_hunter2", "PREFECT_API_AUTH_STRING=hunter2",
		"LEASE=soon", "MAX_DELIVERY_ATTEMPTS=many", "PREFECT_CLIENT_CUSTOM_HEADERS=hunter2", "KEEP_JOBS_FOR=-1s", "LOG_LEVEL=LOUD",
	)})
	if err == nil {
		t.Fatal("all of it was taken")
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret shows in\n%v", err)
	}
	got := map[string]string{}
	for line := range strings.Lines(err.Error()) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		if _, again := got[name]; again || !strings.Contains(rest, "; write ") {
			t.Errorf("said again, or without what to write: %s", line)
		}
		got[name] = rest[strings.LastIndex(rest, " (")+1:]
	}
	const three, four = "(dispatcher, finalizer, reconciler)", "(webhook, dispatcher, finalizer, reconciler)"
	want := map[string]string{
		"INSTALL_NAME": four, "LOG_LEVEL": four, "WEBHOOK_SECRETS": "(webhook)", "PREFECT_API_AUTH_STRING": three, "LEASE": three,
		"MAX_DELIVERY_ATTEMPTS": "(dispatcher, finalizer)", "PREFECT_CLIENT_CUSTOM_HEADERS": three, "KEEP_JOBS_FOR": "(reconciler)",
		"CONTAINER_PREFECT_API_KEY_SECRET": "(dispatcher)", "CONTAINER_PREFECT_API_AUTH_STRING_SECRET": "(dispatcher)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("variables and functions in\n%v\n(-want +got):\n%s", err, diff)
	}
}

func TestAnUnknownFunctionIsToldTheFour(t *testing.T) {
	_, err := functions.Make("Dispatcher", install.Surroundings{Environ: whole, Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), `"Dispatcher"`) {
		t.Fatalf("got %v", err)
	}
	for _, name := range all {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name %s", err, name)
		}
	}
}

// The rules of the Go buildpack for the source archive of a function
// (https://github.com/GoogleCloudPlatform/buildpacks/blob/main/cmd/go/functions_framework/lib/lib.go).
func TestTheSourceArchiveKeepsTheBuildpacksRules(t *testing.T) {
	var mod struct {
		Module  struct{ Path string }
		Go      string
		Require []struct{ Path, Version string }
		Replace []struct {
			Old, New struct{ Path, Version string }
		}
	}
	if err := json.Unmarshal(run(t, "go", "mod", "edit", "-json"), &mod); err != nil {
		t.Fatal(err)
	}
	t.Run("the module's path begins with a domain", func(t *testing.T) {
		if first, _, _ := strings.Cut(mod.Module.Path, "/"); !strings.Contains(first, ".") {
			t.Errorf("module %s", mod.Module.Path)
		}
	})
	t.Run("the Go version is one that the runtime go126 has", func(t *testing.T) {
		minor := strings.Join(strings.SplitN(mod.Go, ".", 3)[:2], ".")
		if !slices.Contains([]string{"1.22", "1.23", "1.24", "1.25", "1.26"}, minor) {
			t.Errorf("go %s", mod.Go)
		}
	})
	t.Run("the module requires the framework itself", func(t *testing.T) {
		for _, r := range mod.Require {
			if r.Path == framework {
				return
			}
		}
		t.Errorf("go.mod lacks %s: the buildpack would add the version that it knows", framework)
	})
	t.Run("nothing is replaced by a directory outside the archive", func(t *testing.T) {
		for _, r := range mod.Replace {
			if r.New.Version == "" && !strings.HasPrefix(r.New.Path, "./") {
				t.Errorf("%s is replaced by %s", r.Old.Path, r.New.Path)
			}
		}
	})
	t.Run("no directory takes the buildpack's place, or turns vendoring on", func(t *testing.T) {
		for _, dir := range []string{"vendor", "serverless_function_source_code", "functions.local"} {
			if _, err := os.Stat(filepath.Join(root, dir)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", dir, err)
			}
		}
	})
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	packages, imports := map[string]bool{}, map[string]bool{}
	for _, name := range files { // tests too, as the buildpack does
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		packages[f.Name.Name] = true
		for _, i := range f.Imports {
			imports[strings.Trim(i.Path.Value, `"`)] = true
		}
	}
	t.Run("the root is one package, and not main", func(t *testing.T) {
		if diff := cmp.Diff(map[string]bool{"pushpool": true}, packages); diff != "" {
			t.Errorf("packages (-want +got):\n%s", diff)
		}
	})
	t.Run("the root imports the framework's registry itself", func(t *testing.T) {
		if !imports[framework+"/functions"] {
			t.Error("the buildpack would look for an exported function instead")
		}
	})
}

// buildpackMain is what the buildpack makes of a package that registers its functions.
const buildpackMain = `package main

import (
	"log"
	"os"

	"` + framework + `/funcframework"

	_ "github.com/pushpool/pushpool"
)

func main() {
	if err := funcframework.StartHostPort("127.0.0.1", os.Getenv("PORT")); err != nil {
		log.Fatal(err)
	}
}
`

func TestEachFunctionIsRegisteredUnderItsEntryPoint(t *testing.T) {
	program := buildFramework(t)
	for _, name := range all {
		t.Run(name, func(t *testing.T) {
			url := start(t, program, append(slices.Clone(whole), "FUNCTION_TARGET="+name))
			get(t, url, http.StatusMethodNotAllowed) // it is the function that answers, not the framework
		})
	}
	t.Run("all of them without a target", func(t *testing.T) {
		url := start(t, program, whole)
		for _, name := range all {
			get(t, url+name, http.StatusMethodNotAllowed)
		}
		get(t, url+"nothing", http.StatusNotFound)
	})
	t.Run("none with a broken configuration", func(t *testing.T) {
		stdout, stderr := refuses(t, exec.CommandContext(t.Context(), program), append(slices.Clone(webhook), "FUNCTION_TARGET=finalizer"))
		if !strings.Contains(stderr, "REGIONS: not set") || stdout != "" {
			t.Errorf("printed %s%s", stdout, stderr)
		}
	})
}

// A configuration error is for whoever deploys: all of it at once, and before a request can come.
func TestServeDoesNotListenWithABrokenConfiguration(t *testing.T) {
	program := build(t, "./scripts/pushpool")
	// Had it come to listen, it would complain about the address.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	stdout, stderr := refuses(t, exec.CommandContext(t.Context(), program, "serve", "--addr", taken.Addr().String()),
		[]string{"LEASE=soon", "WEBHOOK_SECRETS=hunter2", "PREFECT_API_URL=prefect"})
	for _, name := range []string{
		"GOOGLE_CLOUD_PROJECT", "LEASE", "WEBHOOK_SECRETS", "PREFECT_API_URL", "DEAD_LETTER_TOPIC", "WORK_POOLS", "REGIONS", "TASKS_QUEUE", "TASKS_SERVICE_ACCOUNT",
	} {
		if strings.Count(stderr, "\n"+name+": ") != 1 {
			t.Errorf("%s is not named once", name)
		}
	}
	if stdout != "" || strings.Contains(stderr, "listen") || strings.Contains(stderr, "hunter2") || t.Failed() {
		t.Errorf("printed %s%s", stdout, stderr)
	}
}

// refuses runs the program and returns what it printed before it ended with status 1.
func refuses(t *testing.T, cmd *exec.Cmd, environ []string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = environ, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("ended with %v, want status 1; printed %s%s", err, &out, &errs)
	}
	return out.String(), errs.String()
}

// buildFramework builds what the buildpack builds. The main package is laid over the source,
// as it has to be within the module. What it needs beyond go.sum is downloaded once, as the
// buildpack does.
func buildFramework(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a program, and may download what it needs")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "main.go")
	if err := os.WriteFile(file, []byte(buildpackMain), 0o600); err != nil {
		t.Fatal(err)
	}
	module, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(module, "functions.local", "app", "main.go"): file}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return build(t, "-modfile", filepath.Join(dir, "go.mod"), "-mod=mod", "-overlay", filepath.Join(dir, "overlay.json"), "./functions.local/app")
}

func build(t *testing.T, args ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a program")
	}
	program := filepath.Join(t.TempDir(), "program")
	run(t, "go", append([]string{"build", "-o", program}, args...)...)
	return program
}

// run runs a command at the module's root and returns what it printed.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Stderr = root, &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, &errs)
	}
	return out
}

// start starts the program on a free port and returns its URL once it listens.
func start(t *testing.T, program string, environ []string) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_ = free.Close()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program)
	cmd.Env, cmd.Stderr = append(slices.Clone(environ), "PORT="+port), &errs
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("it printed %s", &errs)
		}
	})
	for ctx.Err() == nil {
		if c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr); err == nil {
			_ = c.Close()
			return fmt.Sprintf("http://%s/", addr)
		}
		select {
		case <-time.After(10 * time.Millisecond): // another process tells in no other way
		case <-ctx.Done():
		}
	}
	t.Fatal("it does not listen")
	return ""
}

func get(t *testing.T, url string, want int) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != want {
		t.Errorf("GET %s: %s, want %d", url, resp.Status, want)
	}
}
