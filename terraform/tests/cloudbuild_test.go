package terraform_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tool puts a program of that name on the PATH which writes down how it is called.
func tool(t *testing.T, dir, name string) {
	t.Helper()
	script := "#!/bin/sh\necho " + name + " \"$@\" >>" + filepath.Join(dir, "calls") + "\n"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
}

// The steps that cloudbuild.yaml runs are those that the script runs for a pull request and for main.
func TestCloudBuildRunsTheScriptsSteps(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "cloudbuild.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var steps [][]string
	for _, m := range regexp.MustCompile(`(?m)^    entrypoint: (\w+)\n    args: \[(.*)\]$`).FindAllStringSubmatch(string(text), -1) {
		args := strings.Split(strings.NewReplacer(`"`, "", "${_DIR}", "terraform", "${_APPLY}", "true").Replace(m[2]), ", ")
		steps = append(steps, append([]string{m[1]}, args...))
	}
	planned := []string{
		"go vet ./...", "go test ./...", "terraform -chdir=terraform init -input=false",
		"terraform -chdir=terraform plan -input=false -lock-timeout=5m -out=plan.tfplan",
	}
	applied := append(slices.Clone(planned), "terraform -chdir=terraform apply -input=false -lock-timeout=5m plan.tfplan")
	for event, want := range map[string]struct {
		commands [][]string
		calls    []string
	}{
		"a pull request":  {[][]string{{"scripts/cloudbuild", "pull-request", "terraform"}}, planned},
		"main":            {[][]string{{"scripts/cloudbuild", "main", "terraform"}}, applied},
		"cloudbuild.yaml": {steps, applied},
	} {
		dir := t.TempDir()
		tool(t, dir, "go")
		tool(t, dir, "terraform")
		for _, command := range want.commands {
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", event, err, out)
			}
		}
		calls, err := os.ReadFile(filepath.Join(dir, "calls"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.calls, strings.Split(strings.TrimSpace(string(calls)), "\n")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", event, diff)
		}
	}
}

func TestCloudBuildRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{{}, {"deploy"}, {"plan"}, {"plan", "nowhere"}, {"apply", "terraform"}, {"apply", "terraform", "yes"}} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(root, "scripts", "cloudbuild"), args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "write ") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}
