package prefecttest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
)

// result is what one server made of one rule.
type result struct {
	Server  string `json:"server"`
	Feature string `json:"feature"`
	Rule    string `json:"rule"`
	OK      bool   `json:"ok"`
	// Seen is the outcome of a rule that not all servers keep alike.
	Seen string `json:"seen,omitempty"`
}

// feature runs the rules of one feature.
func (p *prefectServer) feature(t *testing.T, name string, rules func(*testing.T, *prefectServer)) {
	t.Run(name, func(t *testing.T) {
		p.under = name
		rules(t, p)
	})
}

// rule runs the test of one rule, and notes its result where PUSHPOOL_TEST_RESULTS names a file.
func (p *prefectServer) rule(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	if p.rules != nil {
		p.rules[p.under+": "+name]++
	}
	t.Run(name, func(t *testing.T) {
		defer func() { p.note(t, name) }()
		test(t)
	})
}

func (p *prefectServer) note(t *testing.T, rule string) {
	if p.results == "" {
		return
	}
	r := result{Server: p.version, Feature: p.under, Rule: rule, OK: !t.Failed()}
	if p.noEvents {
		r.Server += " without events"
	}
	if _, differs := differences[rule]; differs && r.OK {
		r.Seen = fmt.Sprint(expected[any](p, rule))
	}
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(p.results, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(file, "%s\n", line)
	if cerr := file.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
}
