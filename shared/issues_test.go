package shared_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var issueOf = regexp.MustCompile(`_(Prefect[0-9A-Z_]+)$`)

// issueTests returns the tests with an issue's number in their names, as package.Test.
func issueTests(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, dir := range []string{".", "../functions"} {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && issueOf.MatchString(f.Name.Name) {
					found = append(found, filepath.Base(filepath.Dir(name))+"."+f.Name.Name)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// TestEveryIssueOfTheListHasItsTest holds docs/prefect-issues.md to the tests that it names, and these to it.
func TestEveryIssueOfTheListHasItsTest(t *testing.T) {
	data, err := os.ReadFile("../docs/prefect-issues.md")
	if err != nil {
		t.Fatal(err)
	}
	there := issueTests(t)
	listed := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 || strings.HasPrefix(cells[0], "-") || strings.TrimSpace(cells[0]) == "issues" {
			continue
		}
		issue, _, _ := strings.Cut(strings.TrimSpace(cells[0]), ",")
		for _, test := range strings.Split(cells[3], ",") {
			test = strings.TrimSpace(test)
			listed[test] = true
			if !slices.Contains(there, test) {
				t.Errorf("%s: there is no test %s; where it was renamed or moved, say so in docs/prefect-issues.md", issue, test)
			}
			m := issueOf.FindStringSubmatch(test)
			if m == nil || !slices.Contains(strings.Split(strings.TrimPrefix(m[1], "Prefect"), "_"), strings.ToUpper(issue)) {
				t.Errorf("%s: it is not in the name of %s", issue, test)
			}
		}
	}
	for _, test := range there {
		if !listed[test] {
			t.Errorf("docs/prefect-issues.md does not name %s", test)
		}
	}
	if len(listed) < 20 {
		t.Errorf("it lists %d tests", len(listed))
	}
}
