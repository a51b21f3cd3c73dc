package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

const docs = "../../docs"

// TestTheConfigurationReferenceIsUpToDate holds docs/configuration.md to the code. After a change
// of a config.go: go test ./scripts/pushpool -run Reference -update
func TestTheConfigurationReferenceIsUpToDate(t *testing.T) {
	want := reference(t)
	file := filepath.Join(docs, "configuration.md")
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("run: go test ./scripts/pushpool -run Reference -update\n(-code +page):\n%s", diff)
	}
}

// group is a struct whose fields are variables.
type group struct {
	name   string // install.Core
	fields []field
}

type field struct{ variable, fallback, expect, doc string }

// sources are where variables are declared, and groups those structs in the order of the page.
var (
	sources = []string{"shared/install", "functions/webhook", "functions/dispatcher", "functions/finalizer", "functions/reconciler", "scripts/pushpool/operator"}
	titles  = []struct{ group, title, intro string }{
		{"install.Common", "Every function", ""},
		{"webhook.config", "webhook", ""},
		{"install.Subscriber", "dispatcher and finalizer: their subscription", ""},
		{"install.Core", "dispatcher, finalizer, reconciler: the installation", ""},
		{"install.Prefect", "… Prefect", ""},
		{"install.Deadlines", "… deadlines", ""},
		{"install.Retrying", "… retries", "A flow run's job variables `pushpool_retries` and `pushpool_retry_started` go before these."},
		{"dispatcher.config", "dispatcher", ""},
		{"finalizer.config", "finalizer", ""},
		{"reconciler.config", "reconciler", ""},
		{"operator.Config", "The command pushpool", "Beside those of the dispatcher. `terraform output -raw operator_env` prints them all, but for secrets."},
	}
)

func reference(t *testing.T) string {
	groups := map[string]group{}
	for _, dir := range sources {
		for _, g := range declared(t, filepath.Join("../..", dir)) {
			groups[g.name] = g
		}
	}
	var b strings.Builder
	b.WriteString(`# Configuration

<!-- Written by: go test ./scripts/pushpool -run Reference -update -->

Functions and command are configured by environment variables. On Google Cloud [the module's variables](../terraform/README.md#inputs-and-outputs)
set them; what has no variable of its own there goes into ` + "`settings`, for example `settings = { CANCEL_GRACE = \"120s\" }`" + `. A value that is wrong
ends a function at its start, with every variable that is wrong and what to write. Durations are written like 90s, 5m or 24h.

`)
	shown := map[string]bool{}
	for _, title := range titles {
		g := groups[title.group]
		shown[g.name] = true
		if len(g.fields) == 0 {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n", title.title)
		if title.intro != "" {
			fmt.Fprintf(&b, "%s\n\n", title.intro)
		}
		b.WriteString("| variable | write | default |\n|---|---|---|\n")
		for _, f := range g.fields {
			text := cell(f.expect)
			if f.doc != "" {
				text += ". " + cell(f.doc)
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.variable, text, f.fallback)
		}
		b.WriteString("\n")
	}
	for name, g := range groups {
		if !shown[name] && len(g.fields) > 0 {
			t.Errorf("the variables of %s are on no page: name it in titles", name)
		}
	}
	b.WriteString(`## Job variables

Options of one flow run, of a deployment, or of a work pool (as a default among ` + "`variables.properties`" + ` of its base job template), in this order. A bad value
ends the flow run CRASHED, naming the variable and what to write.

| job variable | write |
|---|---|
`)
	for _, f := range jobVariables(t) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", f.variable, cell(f.expect))
	}
	return b.String()
}

func cell(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, "|", `\|`), "\n", " ") }

// declared returns the structs of a package whose fields have a tag env, or embed such.
func declared(t *testing.T, dir string) (groups []group) {
	pkg := filepath.Base(dir)
	for _, file := range parse(t, dir) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			structure, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			g := group{name: pkg + "." + spec.Name.Name}
			for _, f := range structure.Fields.List {
				if f.Tag == nil {
					continue
				}
				text, err := strconv.Unquote(f.Tag.Value)
				if err != nil {
					t.Fatal(err)
				}
				tag := reflect.StructTag(text)
				variable, options, _ := strings.Cut(tag.Get("env"), ",")
				if variable == "" {
					continue
				}
				fallback := "–"
				if v := tag.Get("envDefault"); v != "" {
					fallback = "`" + v + "`"
				}
				if strings.Contains(options, "notEmpty") {
					fallback = "required"
				}
				g.fields = append(g.fields, field{variable, fallback, tag.Get("expect"), comment(f, variable)})
			}
			groups = append(groups, g)
			return true
		})
	}
	return groups
}

// comment is a field's comment as a sentence about the variable; none where it is about code.
func comment(f *ast.Field, variable string) string {
	text := strings.Join(strings.Fields(f.Doc.Text()), " ")
	name := f.Names[0].Name
	rest, ok := strings.CutPrefix(text, name)
	if !ok {
		return ""
	}
	rest = strings.TrimPrefix(rest, ":")
	return "`" + variable + "`" + map[bool]string{true: ":"}[strings.HasPrefix(text, name+":")] + rest
}

func parse(t *testing.T, dir string) (files []*ast.File) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v", dir, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// jobVariables are the options of shared/launch, with what to write.
func jobVariables(t *testing.T) (found []field) {
	for _, file := range parse(t, "../../shared/launch") {
		ast.Inspect(file, func(n ast.Node) bool {
			pair, ok := n.(*ast.KeyValueExpr)
			if !ok {
				return true
			}
			name, ok := pair.Key.(*ast.BinaryExpr)
			value, isOption := pair.Value.(*ast.CompositeLit)
			if !ok || !isOption {
				return true
			}
			for _, e := range value.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok && fmt.Sprint(kv.Key) == "expect" {
					found = append(found, field{variable: "pushpool_" + text(t, name.Y), expect: text(t, kv.Value)})
				}
			}
			return false
		})
	}
	if len(found) == 0 {
		t.Fatal("shared/launch has no options: has the table moved?")
	}
	slices.SortFunc(found, func(a, b field) int { return strings.Compare(a.variable, b.variable) })
	return found
}

func text(t *testing.T, e ast.Expr) string {
	t.Helper()
	literal, ok := e.(*ast.BasicLit)
	if !ok {
		t.Fatalf("%v is no text", e)
	}
	s, err := strconv.Unquote(literal.Value)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
