// Command terraform-tables keeps the tables of inputs and outputs in the READMEs of Terraform modules.
//
//	terraform-tables DIR…          fails where a table is not what the module says
//	terraform-tables -write DIR…   writes them, between <!-- tables --> and <!-- /tables -->
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-config-inspect/tfconfig"
)

const begin, end = "<!-- tables -->\n", "<!-- /tables -->"

func main() {
	write := flag.Bool("write", false, "write the tables")
	flag.Parse()
	var errs []error
	for _, dir := range flag.Args() {
		errs = append(errs, update(dir, *write))
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func update(dir string, write bool) error {
	module, diagnostics := tfconfig.LoadModule(dir)
	if diagnostics.HasErrors() {
		return fmt.Errorf("read the module %s: %w", dir, diagnostics)
	}
	readme := filepath.Join(dir, "README.md")
	old, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s: there is no place for tables; write %s%s", readme, begin, end)
	}
	text := before + begin + tables(module) + end + after
	if text == string(old) {
		return nil
	}
	if !write {
		return fmt.Errorf("%s: the tables are not what the module says; run scripts/check-terraform --write", readme)
	}
	return os.WriteFile(readme, []byte(text), 0o644)
}

func tables(m *tfconfig.Module) string {
	var b strings.Builder
	inputs := slices.SortedFunc(maps.Values(m.Variables), func(x, y *tfconfig.Variable) int {
		return cmp.Or(cmp.Compare(x.Pos.Filename, y.Pos.Filename), cmp.Compare(x.Pos.Line, y.Pos.Line))
	})
	b.WriteString("| input | type | default | |\n|---|---|---|---|\n")
	for _, v := range inputs {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", v.Name, oneLine(v.Type), standard(v), oneLine(v.Description))
	}
	b.WriteString("\n| output | |\n|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(m.Outputs)) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", name, oneLine(m.Outputs[name].Description))
	}
	return b.String()
}

func standard(v *tfconfig.Variable) string {
	if v.Required {
		return "required"
	}
	text, err := json.Marshal(v.Default)
	if err != nil {
		return fmt.Sprint(v.Default)
	}
	return "`" + string(text) + "`"
}

// oneLine fits a text into a cell; comments in types are left out.
func oneLine(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, " # ")
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.ReplaceAll(strings.Join(strings.Fields(strings.Join(lines, " ")), " "), "|", "\\|")
}
