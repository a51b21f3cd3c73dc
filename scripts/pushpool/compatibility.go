package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// compatibilityCommand shows what scripts/prefect-compat found out.
type compatibilityCommand struct {
	Page  bool     `help:"As the page docs/compatibility.md."`
	Files []string `arg:"" help:"Results, one JSON object in a line."`
}

// ruleResult is what one server made of one rule; the suite in shared/prefect/prefecttest writes it.
type ruleResult struct {
	Server, Feature, Rule, Seen string
	OK                          bool
}

// comparison holds results in the order in which they came.
type comparison struct {
	servers, features []string
	rules             map[string][]string              // by feature
	results           map[string]map[string]ruleResult // by rule, then server
}

// Run prints the rules that a server broke or keeps otherwise than the others, or the page.
func (c *compatibilityCommand) Run() error {
	all := comparison{rules: map[string][]string{}, results: map[string]map[string]ruleResult{}}
	for _, name := range c.Files {
		if err := all.read(name); err != nil {
			return err
		}
	}
	if c.Page {
		fmt.Print(all.page())
		return nil
	}
	broken := 0
	for _, feature := range all.features {
		for _, rule := range all.rules[feature] {
			for _, server := range all.servers {
				if r, ok := all.results[rule][server]; ok && !r.OK {
					broken++
					fmt.Printf("FAILED  %-28s %s: %s\n", server, feature, rule)
				}
			}
		}
	}
	fmt.Printf("%d rules, %d servers, %d broken\n", len(all.results), len(all.servers), broken)
	return nil
}

func (c *comparison) read(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("read results: %w; did the server start? its log is beside them", err)
	}
	defer func() { _ = file.Close() }()
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		var r ruleResult
		if err := json.Unmarshal(scanner.Bytes(), &r); err != nil {
			return fmt.Errorf("read results of %s: %w", name, err)
		}
		if !slices.Contains(c.servers, r.Server) {
			c.servers = append(c.servers, r.Server)
		}
		if !slices.Contains(c.features, r.Feature) {
			c.features = append(c.features, r.Feature)
		}
		if c.results[r.Rule] == nil {
			c.results[r.Rule] = map[string]ruleResult{}
			c.rules[r.Feature] = append(c.rules[r.Feature], r.Rule)
		}
		c.results[r.Rule][r.Server] = r
	}
	return scanner.Err()
}

// page is one table of features, and one of the rules that servers keep differently.
func (c *comparison) page() string {
	var b strings.Builder
	b.WriteString("# Prefect servers\n\nWritten by `scripts/prefect-compat --page`, which runs the suite in `shared/prefect/prefecttest` against real servers,\n" +
		"on SQLite. Each figure is the rules kept of the rules tried; an empty field means that the server has no such feature,\n" +
		"and flow runs are found by the sweep. Prefect Cloud cannot be tested this way.\n\n")
	b.WriteString(c.row("feature", func(s string) string { return s }) + c.row("---", func(string) string { return "---" }))
	for _, feature := range c.features {
		b.WriteString(c.row(feature, func(server string) string {
			kept, tried := 0, 0
			for _, rule := range c.rules[feature] {
				if r, ok := c.results[rule][server]; ok {
					tried++
					if r.OK {
						kept++
					}
				}
			}
			if tried == 0 {
				return ""
			}
			return fmt.Sprintf("%d of %d", kept, tried)
		}))
	}
	b.WriteString("\nWhat servers answer differently, and pushpool reckons with:\n\n")
	b.WriteString(c.row("rule", func(s string) string { return s }) + c.row("---", func(string) string { return "---" }))
	for _, feature := range c.features {
		for _, rule := range slices.Sorted(slices.Values(c.rules[feature])) {
			if slices.ContainsFunc(c.servers, func(s string) bool { return c.results[rule][s].Seen != "" }) {
				b.WriteString(c.row(rule, func(server string) string { return c.results[rule][server].Seen }))
			}
		}
	}
	b.WriteString("\n## The rules\n\nEach is a test of this name. All of these servers keep it that were tried, but for those named with it.\n")
	for _, feature := range c.features {
		fmt.Fprintf(&b, "\n### %s\n\n", feature)
		for _, rule := range slices.Sorted(slices.Values(c.rules[feature])) {
			b.WriteString("- " + rule)
			if broken := slices.DeleteFunc(slices.Clone(c.servers), func(s string) bool {
				r, tried := c.results[rule][s]
				return !tried || r.OK
			}); len(broken) > 0 {
				fmt.Fprintf(&b, " **not kept by %s**", strings.Join(broken, ", "))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func (c *comparison) row(first string, cell func(server string) string) string {
	cells := []string{first}
	for _, s := range c.servers {
		cells = append(cells, cell(s))
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}
