// Package shared_test holds the module to the arrows between its packages.
package shared_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/pushpool/pushpool/"
	google = "cloud.google.com/go/"
)

// arrows says what a package of shared may import besides the standard library and other
// people's modules: packages of shared, and Google's clients. The domain is open to all.
var arrows = map[string]struct{ shared, clients []string }{
	"flowrun": {},
	// Adapters: each knows one technology, and none knows another, but for what travels.
	"message":      {},
	"telemetry":    {},
	"delivery":     {shared: []string{"message", "telemetry"}},
	"publish":      {shared: []string{"message"}, clients: []string{"pubsub"}},
	"timer":        {shared: []string{"message"}, clients: []string{"cloudtasks"}},
	"followup":     {shared: []string{"message"}},
	"ledger":       {clients: []string{"firestore"}},
	"quota":        {},
	"jobtemplate":  {clients: []string{"run"}},
	"prefect":      {},
	"cloudrun":     {clients: []string{"run"}},
	"containerlog": {clients: []string{"logging"}},
	// What the ledger records, told to others.
	"lifecycle": {shared: []string{"message", "ledger"}},
	// Use cases: what is done with the adapters.
	"settle":    {shared: adapters},
	"launch":    {shared: append([]string{"settle"}, adapters...)},
	"lookahead": {shared: adapters},
	"sweep":     {shared: append([]string{"settle", "lookahead"}, adapters...)},
	// What the functions' wire.go have in common.
	"install": {shared: append([]string{"settle", "launch", "lifecycle"}, adapters...), clients: []string{"pubsub", "cloudtasks", "firestore", "run", "logging"}},
}

var adapters = []string{
	"message", "telemetry", "delivery", "publish", "timer", "followup", "ledger", "quota", "jobtemplate", "prefect", "cloudrun", "containerlog",
}

// file is a Go file of the module.
type file struct {
	path, dir string // from the module's root, with slashes
	test      bool
	imports   []string
}

// inTests reports whether the file is compiled for tests only, or for a test package.
func (f file) inTests() bool { return f.test || strings.HasSuffix(f.dir, "test") }

// sharedName is the package of shared that dir is, or belongs to.
func sharedName(dir string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(dir, "shared/")
	name, _, _ = strings.Cut(rest, "/")
	return name, ok
}

func files(t *testing.T) []file {
	t.Helper()
	const root = ".."
	var found []file
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := d.Name(); d.IsDir() && name != root && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		relative = filepath.ToSlash(relative)
		f := file{path: relative, dir: path.Dir(relative), test: strings.HasSuffix(name, "_test.go")}
		for _, i := range parsed.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, imported)
		}
		found = append(found, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// rules are asked about each import; own is the imported directory where it is of this module.
var rules = map[string]func(f file, imported, own string) bool{
	"the domain imports nothing but the standard library": func(f file, imported, _ string) bool {
		first, _, _ := strings.Cut(imported, "/")
		return f.dir != "shared/flowrun" || f.test || !strings.Contains(first, ".")
	},
	"a package of shared imports only what its arrows allow": func(f file, _, own string) bool {
		from, ok := sharedName(f.dir)
		if !ok || own == "" || f.inTests() {
			return true
		}
		to, ok := sharedName(own)
		return ok && (to == "flowrun" || to == from || slices.Contains(arrows[from].shared, to))
	},
	"a package of shared names only the Google clients that are its technology": func(f file, imported, _ string) bool {
		from, ok := sharedName(f.dir)
		client, isClient := strings.CutPrefix(imported, google)
		client, _, _ = strings.Cut(client, "/")
		return !ok || !isClient || f.inTests() || slices.Contains(arrows[from].clients, client)
	},
	"a pure package knows Google's messages, not its clients": func(f file, imported, _ string) bool {
		return f.dir != "shared/jobtemplate" || f.test || !strings.HasPrefix(imported, google) || strings.HasSuffix(imported, "pb")
	},
	"functions never import each other": func(f file, _, own string) bool {
		// The package functions itself ties them.
		return !strings.HasPrefix(f.dir, "functions/") || own == f.dir || own != "functions" && !strings.HasPrefix(own, "functions/")
	},
	"only wire.go names real clients": func(f file, imported, _ string) bool {
		wired := f.dir == "." || f.dir == "functions" || strings.HasPrefix(f.dir, "functions/") || f.dir == "shared/install"
		return !wired || f.test || path.Base(f.path) == "wire.go" ||
			!strings.HasPrefix(imported, google) || strings.HasSuffix(imported, "pb")
	},
	"fakes are for tests and for the local stack": func(f file, _, own string) bool {
		return !strings.HasSuffix(own, "test") || f.inTests() || strings.HasPrefix(f.dir, "scripts/")
	},
	"nothing of the product imports a script": func(f file, _, own string) bool {
		return !strings.HasPrefix(own, "scripts/") || strings.HasPrefix(f.dir, "scripts/") || f.inTests()
	},
}

func TestImportsFollowTheArrows(t *testing.T) {
	all := files(t)
	for rule, holds := range rules {
		t.Run(rule, func(t *testing.T) {
			for _, f := range all {
				for _, imported := range f.imports {
					own, isOwn := strings.CutPrefix(imported, module)
					if !isOwn {
						own = ""
					}
					if !holds(f, imported, own) {
						t.Errorf("%s imports %s", f.path, imported)
					}
				}
			}
		})
	}
}

// A further file beside tests is a sign that something belongs in shared.
func TestAFunctionFolderHasItsThreeFiles(t *testing.T) {
	folders := map[string][]string{}
	for _, f := range files(t) {
		if name, ok := strings.CutPrefix(f.dir, "functions/"); ok && !strings.HasSuffix(f.path, "_test.go") {
			folders[name] = append(folders[name], path.Base(f.path))
		}
	}
	if len(folders) != 4 {
		t.Errorf("%d functions, want 4", len(folders))
	}
	for name, got := range folders {
		want := []string{"config.go", name + ".go", "wire.go"}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Errorf("functions/%s has %v, want %v", name, got, want)
		}
	}
}

func TestEveryPackageOfSharedHasItsArrows(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range files(t) {
		if name, ok := sharedName(f.dir); ok {
			seen[name] = true
		}
	}
	for name := range seen {
		if _, ok := arrows[name]; !ok {
			t.Errorf("shared/%s is new: say here and in the design what it may import", name)
		}
	}
	for name := range arrows {
		if !seen[name] {
			t.Errorf("shared/%s is gone: take it out of the arrows", name)
		}
	}
}

// The rules have to tell right from wrong: what breaks one of them each.
func TestRulesSeeWhatBreaksThem(t *testing.T) {
	for _, wrong := range []struct{ path, imported, rule string }{
		{"shared/flowrun/x.go", "github.com/google/uuid", "the domain imports nothing but the standard library"},
		{"shared/prefect/x.go", module + "shared/cloudrun", "a package of shared imports only what its arrows allow"},
		{"shared/settle/x.go", module + "shared/launch", "a package of shared imports only what its arrows allow"},
		{"shared/launch/x.go", module + "functions/webhook", "a package of shared imports only what its arrows allow"},
		{"shared/prefect/x.go", google + "run/apiv2", "a package of shared names only the Google clients that are its technology"},
		{"shared/jobtemplate/x.go", google + "run/apiv2", "a pure package knows Google's messages, not its clients"},
		{"functions/webhook/wire.go", module + "functions/finalizer", "functions never import each other"},
		{"functions/webhook/webhook.go", google + "pubsub/v2", "only wire.go names real clients"},
		{"shared/install/config.go", google + "firestore", "only wire.go names real clients"},
		{"function.go", google + "pubsub/v2", "only wire.go names real clients"},
		{"functions/webhook/wire.go", module + "shared/timer/timertest", "fakes are for tests and for the local stack"},
		{"shared/install/install.go", module + "scripts/pushpool/local", "nothing of the product imports a script"},
	} {
		t.Run(wrong.rule, func(t *testing.T) {
			own, isOwn := strings.CutPrefix(wrong.imported, module)
			if !isOwn {
				own = ""
			}
			if rules[wrong.rule](file{path: wrong.path, dir: path.Dir(wrong.path)}, wrong.imported, own) {
				t.Errorf("%s may import %s", wrong.path, wrong.imported)
			}
		})
	}
}
