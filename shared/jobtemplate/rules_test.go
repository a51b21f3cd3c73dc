package jobtemplate

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A rule case is one input of a function of Prefect's or Python's, and what it returned; see
// testdata/regenerate.py.
type ruleCase struct {
	Rule   string
	Input  json.RawMessage
	Output json.RawMessage
}

// rules are our functions by the names of theirs. failed stands for whatever error.
var rules = map[string]func(input any) any{
	"str":  func(v any) any { return str(v) },
	"slug": func(v any) any { return orNull(Slug(v.(string), 55)) },
	"split": func(v any) any {
		words, err := split(v.(string))
		if err != nil {
			return failed
		}
		return words
	},
	"labels": func(v any) any { return sanitize(v.(*object)) },
	"int": func(v any) any {
		r := reader{from: &object{pairs: []pair{{"timeout", v}}}}
		n := r.seconds("timeout", math.MaxInt32, false)
		if r.err != nil {
			return failed
		}
		return json.Number(fmt.Sprint(n))
	},
	"bool": func(v any) any {
		r := reader{from: &object{pairs: []pair{{"keep_job", v}}}}
		b := r.flag("keep_job", false)
		if r.err != nil {
			return failed
		}
		return b
	},
	"lookup": func(v any) any {
		template, _ := v.(*object).get("template")
		values, _ := v.(*object).get("values")
		found, err := (&resolver{}).apply(template, values.(*object))
		switch {
		case err != nil:
			return failed
		case found == missing{}:
			return "<dropped>"
		}
		return found
	},
}

const failed = "an error"

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// wanted is a case's output in the form that rules return: ours take no number for a
// time-out that is not positive, or longer than any worker takes.
func (c ruleCase) wanted(t *testing.T) any {
	t.Helper()
	v := ordered(t, c.Output)
	if o, ok := v.(*object); ok && c.Rule != "labels" && c.Rule != "lookup" && o.find("error") >= 0 {
		return failed
	}
	if n, ok := v.(json.Number); ok && c.Rule == "int" {
		if i, err := n.Int64(); err != nil || i <= 0 || i > math.MaxInt32 {
			return failed
		}
	}
	return v
}

// ruleFiles are rules.json, and those that lie in a folder rules of a directory with further vectors.
func ruleFiles(t *testing.T) []string {
	t.Helper()
	files := []string{filepath.Join("testdata", "rules.json")}
	for _, d := range filepath.SplitList(os.Getenv("TEMPLATE_VECTORS")) {
		found, err := filepath.Glob(filepath.Join(d, "rules", "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	return files
}

func TestPythonsOwnRules(t *testing.T) {
	var cases []ruleCase
	for _, file := range ruleFiles(t) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var more []ruleCase
		unmarshalInto(t, b, &more)
		cases = append(cases, more...)
	}
	seen := map[string]bool{}
	for _, c := range cases {
		rule, ok := rules[c.Rule]
		if !ok {
			t.Fatalf("there is no rule %q", c.Rule)
		}
		seen[c.Rule] = true
		got := rule(ordered(t, c.Input))
		if diff := cmp.Diff(asPython(c.wanted(t)), asPython(got)); diff != "" {
			t.Errorf("%s of %s (-want +got):\n%s", c.Rule, c.Input, diff)
		}
	}
	for name := range rules {
		if !seen[name] {
			t.Errorf("no case for rule %q", name)
		}
	}
}
