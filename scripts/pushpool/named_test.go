package main

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// repository hands each file of the repository that is no test and no page, or each test, to see.
func repository(t *testing.T, tests bool, see func(text string)) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(docs, ".."), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return filepath.SkipDir
		}
		if d.IsDir() || strings.HasSuffix(path, "_test.go") != tests || strings.HasSuffix(path, ".md") {
			return nil
		}
		data, err := os.ReadFile(path)
		see(string(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTheTestsThatPagesNameExist holds that what a page promises by a test's name is tested.
func TestTheTestsThatPagesNameExist(t *testing.T) {
	defined := map[string]bool{}
	declaration := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	repository(t, true, func(text string) {
		for _, m := range declaration.FindAllStringSubmatch(text, -1) {
			defined[m[1]] = true
		}
	})
	named := 0
	for name, page := range pages(t) {
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w+)`").FindAllStringSubmatch(page, -1) {
			if named++; !defined[m[1]] {
				t.Errorf("%s: there is no %s", name, m[1])
			}
		}
	}
	if named == 0 {
		t.Error("no page names a test")
	}
}

var (
	span       = regexp.MustCompile("`([^`\n]+)`")
	aName      = regexp.MustCompile(`^([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|[a-z][a-z0-9]*(?:_[a-z0-9]+)+)(?:$| *= )`)
	tfOutput   = regexp.MustCompile(`terraform output -raw (\w+)`)
	tfVariable = regexp.MustCompile(`(?:TF_VAR_(\w+)|(?m:^ *([a-z_]+) += "))`)
)

// TestWhatPagesNameIsThere holds for commands, scripts, variables and settings: no page names one that is gone.
func TestWhatPagesNameIsThere(t *testing.T) {
	var code strings.Builder
	repository(t, false, func(text string) { code.WriteString(text) })
	there := func(name, what string, is bool) {
		if !is {
			t.Errorf("%s: there is no %s", name, what)
		}
	}
	commands := leaves(newParser().Model.Node, "")
	for name, page := range pages(t) {
		for _, m := range tfOutput.FindAllStringSubmatch(page, -1) {
			there(name, "output "+m[1], strings.Contains(code.String(), `output "`+m[1]+`"`))
		}
		for _, b := range blocks(page) {
			if b.info != "sh" {
				continue
			}
			for _, m := range tfVariable.FindAllStringSubmatch(b.text, -1) {
				there(name, "variable "+m[1]+m[2], strings.Contains(code.String(), `variable "`+m[1]+m[2]+`"`))
			}
		}
		for _, m := range span.FindAllStringSubmatch(page, -1) {
			first, rest, _ := strings.Cut(strings.TrimPrefix(m[1], "go run ./scripts/"), " ")
			if w := aName.FindStringSubmatch(m[1]); w != nil && w[1] != "on_crashed" { // Prefect's
				there(name, w[1], strings.Contains(code.String(), w[1]))
			}
			if strings.HasPrefix(first, "scripts/") {
				_, err := os.Stat(filepath.Join(docs, "..", first))
				there(name, first, err == nil)
			}
			if c, _, _ := strings.Cut(rest, " "); first == "pushpool" && c != strings.ToUpper(c) {
				there(name, "command "+m[1], slices.ContainsFunc(slices.Collect(maps.Keys(commands)), func(path string) bool { return path == c || strings.HasPrefix(path, c+" ") }))
			}
		}
	}
}

var (
	unit    = `(?:ms|µs|s|min|h|%|[kMGT]i?B|USD|vCPU|[a-z-]* ?(?:seconds?|minutes?|hours?|days?|weeks?|months?|times|calls|reads|writes|jobs|launches|messages|attempts|flow runs|executions|round trips|lines|characters))`
	figure  = regexp.MustCompile(`\d[\d,.]* ?` + unit + `(?:[^\w]|$)|\b(?:two|three|four|five|six|seven|eight|nine|ten|some|few) (?:seconds|minutes|hours|days|weeks)\b|\ba (?:minute|day|week) (?:or|later|after)\b`)
	sourced = regexp.MustCompile("https?://|Test[A-Z]\\w|go test |scripts/[a-z]|pushpool drill|\\.tf\\)|benchmarks\\.md|`[A-Z]+_[A-Z_]+`|configuration\\.md#")
)

// TestEveryFigureHasItsSource holds that a paragraph or table with a figure names the test, the command or the setting that it comes from,
// or links to who says so. What is generated from the code is left out, and what a block prints.
func TestEveryFigureHasItsSource(t *testing.T) {
	left := regexp.MustCompile("(?s) *```.*?```|<!-- tables -->.*?<!-- /tables -->")
	apart := regexp.MustCompile(`\n\n+`)
	found := 0
	for name, page := range pages(t) {
		if name == "configuration.md" {
			continue
		}
		var paragraphs []string
		joined := false
		for _, p := range apart.Split(left.ReplaceAllString(page, ""), -1) {
			last := len(paragraphs) - 1
			// What a colon leads to, and commands or arithmetic set apart, are one with what is around.
			apart := strings.HasPrefix(p, "    ")
			if last >= 0 && (strings.HasSuffix(paragraphs[last], ":") || apart || joined) {
				paragraphs[last] += "\n" + p
				joined = apart
				continue
			}
			joined = apart
			paragraphs = append(paragraphs, p)
		}
		for _, p := range paragraphs {
			f := figure.FindString(p)
			if f == "" {
				continue
			}
			if found++; !sourced.MatchString(p) {
				t.Errorf("%s: where does %q come from?\n%s", name, f, p)
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d paragraphs with figures were found", found)
	}
}
