package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Release is a version of Prefect, and the list of all that is installed with it.
type Release struct{ Version, Requirements string }

// The releases that pushpool is held to. The stack runs the first.
var (
	Prefect3 = Release{"3.8.8", "prefect-3.txt"}
	Prefect2 = Release{"2.20.25", "prefect-2.txt"}
)

var errNoPython = errors.New("there is no Python 3.10 to 3.13 here (name one with --python)")

// Venv returns a virtual environment with Prefect, and makes it if it is not there. The
// error is errNoPython where no Python is found to make it with.
func Venv(ctx context.Context, root string, r Release, python string, say func(string, ...any)) (string, error) {
	dir := filepath.Join(root, ".cache", "prefect-"+r.Version)
	requirements := filepath.Join(root, "scripts", "requirements", r.Requirements)
	list, err := os.ReadFile(requirements)
	if err != nil {
		return "", err
	}
	if python, err = FindPython(ctx, python); err != nil {
		return "", err
	}
	// What was installed with which Python is written last, so a broken installation is made anew.
	want := []byte(python + "\n" + string(list))
	done := filepath.Join(dir, "installed.txt")
	if have, err := os.ReadFile(done); err == nil && string(have) == string(want) {
		return dir, nil
	}
	say("installing Prefect %s into .cache (about 250 MB; once, one to four minutes)", r.Version)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := run(ctx, say, "make a virtual environment", python, "-m", "venv", dir); err != nil {
		return "", err
	}
	pip := filepath.Join(dir, "bin", "python")
	if err := run(ctx, say, "install Prefect", pip, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r", requirements); err != nil {
		return "", err
	}
	return dir, os.WriteFile(done, want, 0o644)
}

// FindPython returns the first Python that Prefect runs with and that can make virtual
// environments: python, or where that is empty one from the PATH.
func FindPython(ctx context.Context, python string) (string, error) {
	candidates := []string{python}
	if python == "" {
		candidates = pythons()
	}
	const probe = "import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 14))"
	for _, c := range candidates {
		if path, err := exec.LookPath(c); err == nil && exec.CommandContext(ctx, path, "-c", probe).Run() == nil {
			return path, nil
		}
	}
	if python != "" {
		return "", fmt.Errorf("--python %s: it is not a Python 3.10 to 3.13 with the modules venv and ensurepip", python)
	}
	return "", errNoPython
}

// pythons returns where a Python can be, the best first. With 3.11 a Prefect server on SQLite
// was seen to stand still for a minute under load, with 3.12 it never did. What pyenv has
// installed counts whether or not it is switched on.
func pythons() []string {
	home, _ := os.UserHomeDir()
	pyenv := cmp.Or(os.Getenv("PYENV_ROOT"), filepath.Join(home, ".pyenv"))
	var all []string
	for _, version := range []string{"3.12", "3.13", "3.11", "3.10"} {
		installed, _ := filepath.Glob(filepath.Join(pyenv, "versions", version+".*", "bin", "python"))
		all = append(append(all, "python"+version), installed...)
	}
	return append(all, "python3", "python")
}

// run runs a command and says every ten seconds that it goes on.
func run(ctx context.Context, say func(string, ...any), act, name string, args ...string) error {
	start := time.Now()
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	type result struct {
		out []byte
		err error
	}
	ended := make(chan result, 1)
	go func() {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		ended <- result{out, err}
	}()
	for {
		select {
		case r := <-ended:
			if r.err != nil {
				return fmt.Errorf("%s: %w:\n%s", act, r.err, r.out)
			}
			return nil
		case <-ticker.C:
			say("  … %s: %d s", act, int(time.Since(start).Seconds()))
		}
	}
}
