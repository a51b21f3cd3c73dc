package terraform_test

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// packed returns the files of the source archive, as the module source lists them.
func packed(t *testing.T) []string {
	t.Helper()
	list, _ := applied(t, installation).outputs["source_files"].Value.([]any)
	var files []string
	for _, name := range list {
		files = append(files, name.(string))
	}
	return files
}

// needed returns what the functions are built from: the module's packages that the root imports,
// with what they embed.
func needed(t *testing.T) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=Dir,Module,GoFiles,EmbedFiles", ".")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"go.mod", "go.sum"}
	for packages := json.NewDecoder(bytes.NewReader(out)); packages.More(); {
		var p struct {
			Dir                 string
			Module              *struct{ Main bool }
			GoFiles, EmbedFiles []string
		}
		if err := packages.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if p.Module == nil || !p.Module.Main {
			continue
		}
		dir, err := filepath.Rel(top, p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range append(p.GoFiles, p.EmbedFiles...) {
			files = append(files, filepath.ToSlash(filepath.Join(dir, name)))
		}
	}
	slices.Sort(files)
	return files
}

func TestTheArchiveHoldsWhatTheFunctionsNeedAndNothingElse(t *testing.T) {
	if diff := cmp.Diff(needed(t), packed(t)); diff != "" {
		t.Errorf("files (-needed +packed):\n%s", diff)
	}
}

// A newer one would be another toolchain than the one that everything was tested with; an older one does not build it.
func TestTheRuntimeIsTheOneOfGoMod(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^go (\d+)\.(\d+)`).FindStringSubmatch(string(text))
	if line == nil {
		t.Fatal("go.mod has no go line")
	}
	for _, f := range applied(t, installation).of("google_cloudfunctions2_function") {
		if got := f.block("build_config")["runtime"]; got != "go"+line[1]+line[2] {
			t.Errorf("%s: runtime %v, go.mod says %s", f.Address, got, line[0])
		}
	}
}

func TestTheArchiveIsSmall(t *testing.T) {
	var buffer bytes.Buffer
	archive := zip.NewWriter(&buffer)
	for _, name := range packed(t) {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		w, err := archive.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files, %d bytes", len(packed(t)), buffer.Len())
	if buffer.Len() >= 1<<20 {
		t.Errorf("the archive has %d bytes", buffer.Len())
	}
}

// buildpackMain is what the Go buildpack makes of a package that registers its functions
// (https://github.com/GoogleCloudPlatform/buildpacks/blob/main/cmd/go/functions_framework/lib/lib.go).
const buildpackMain = `package main

import (
	"log"

	"github.com/GoogleCloudPlatform/functions-framework-go/funcframework"

	_ "github.com/pushpool/pushpool"
)

func main() {
	if err := funcframework.Start("8080"); err != nil {
		log.Fatal(err)
	}
}
`

// The buildpack takes the archive's files and nothing else, lays its main package beside them, tidies
// and builds; only the module proxy is there. (It is not asked for anything but modules.)
func TestTheArchiveBuildsAsTheBuildpackBuildsIt(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range packed(t) {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		write(name, data)
	}
	write("functions.local/app/main.go", []byte(buildpackMain))
	for _, args := range [][]string{{"mod", "tidy"}, {"build", "-o", filepath.Join(dir, "program"), "./functions.local/app"}} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		// No version control beside the module proxy, and no workspace around the folder.
		cmd.Env = append(os.Environ(), "GOVCS=*:off", "GOWORK=off", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			lines := strings.Split(string(out), "\n")
			t.Fatalf("go %v: %v\n%s", args, err, strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
	}
}
