package terraform_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// An entry is what Cloud Logging holds, as JSON.
type entry map[string]any

// set returns a copy with another value; nil takes the field out.
func (e entry) set(path string, value any) entry {
	head, rest, deeper := strings.Cut(path, ".")
	c := maps.Clone(e)
	if c == nil {
		c = entry{}
	}
	switch {
	case deeper:
		child, _ := c[head].(map[string]any)
		c[head] = map[string]any(entry(child).set(rest, value))
	case value == nil:
		delete(c, head)
	default:
		c[head] = value
	}
	return c
}

func (e entry) get(path string) (string, bool) {
	head, rest, deeper := strings.Cut(path, ".")
	if deeper {
		child, _ := e[head].(map[string]any)
		return entry(child).get(rest)
	}
	s, ok := e[head].(string)
	return s, ok
}

// matches evaluates the part of the Logging query language that the filter is written in:
// AND, OR, parentheses, = and =~ (https://cloud.google.com/logging/docs/view/logging-query-language).
// What it does not know is an error, not a match.
func matches(filter string, e entry) (bool, error) {
	p := query{tokens: word.FindAllString(filter, -1), entry: e}
	if strings.Join(strings.Fields(filter), "") != strings.Join(strings.Fields(strings.Join(p.tokens, "")), "") {
		return false, fmt.Errorf("%q has parts that are not understood", filter)
	}
	value := p.or()
	if p.err == nil && len(p.tokens) > 0 {
		p.err = fmt.Errorf("%q is left over", p.tokens)
	}
	return value, p.err
}

var word = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|=~|=|[()]|[\w./-]+`)

type query struct {
	tokens []string
	entry  entry
	err    error
}

func (p *query) next() string {
	if len(p.tokens) == 0 {
		if p.err == nil {
			p.err = fmt.Errorf("the filter ends early")
		}
		return ""
	}
	first := p.tokens[0]
	p.tokens = p.tokens[1:]
	return first
}

func (p *query) take(what string) bool {
	if len(p.tokens) == 0 || p.tokens[0] != what {
		return false
	}
	p.next()
	return true
}

func (p *query) or() bool {
	value := p.and()
	for p.take("OR") {
		right := p.and()
		value = value || right
	}
	return value
}

func (p *query) and() bool {
	value := p.term()
	for p.take("AND") {
		right := p.term()
		value = value && right
	}
	return value
}

func (p *query) term() bool {
	if p.take("(") {
		value := p.or()
		if !p.take(")") && p.err == nil {
			p.err = fmt.Errorf("a parenthesis stays open")
		}
		return value
	}
	field, operator, value := p.next(), p.next(), strings.Trim(p.next(), `"`)
	got, ok := p.entry.get(field)
	switch operator {
	case "=":
		return ok && got == value
	case "=~":
		r, err := regexp.Compile(value)
		if err != nil {
			p.err = err
			return false
		}
		return ok && r.MatchString(got)
	default:
		if p.err == nil {
			p.err = fmt.Errorf("operator %q is not understood", operator)
		}
		return false
	}
}

// samples returns the entries that real jobs left, as entries of a job of ours in my-project.
func samples(t *testing.T) map[string]entry {
	t.Helper()
	names, err := filepath.Glob("testdata/audit-events/*.json")
	if err != nil || len(names) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	all := map[string]entry{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var e entry
		if err := json.Unmarshal(data, &e); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e["protoPayload"] == nil { // some keep the payload only
			e = entry{"protoPayload": map[string]any(e)}
		}
		e = e.set("logName", "projects/my-project/logs/cloudaudit.googleapis.com%2Fsystem_event").
			set("resource", map[string]any{"type": "cloud_run_job", "labels": map[string]any{
				"job_name": "pp-weather-0a1b2c", "location": "europe-west1", "project_id": "my-project",
			}})
		all[strings.TrimSuffix(filepath.Base(name), ".json")] = e
	}
	return all
}

func TestTheSinkTakesTheEndsOfOurExecutionsOnly(t *testing.T) {
	sinks := applied(t, installation).of("google_logging_project_sink")
	if len(sinks) != 1 {
		t.Fatalf("%d sinks", len(sinks))
	}
	filter := sinks[0].text("filter")
	all := samples(t)
	got, want := map[string]bool{}, map[string]bool{}
	expect := func(name string, e entry, taken bool) {
		t.Helper()
		is, err := matches(filter, e)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got[name], want[name] = is, taken
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		e := all[name]
		expect(name, e, true)
		expect(name+", split, without response", e.set("protoPayload.response", nil).set("split", map[string]any{"uid": "u"}), true)
		expect(name+", severity not told", e.set("severity", nil), true)
		expect(name+", job of somebody else", e.set("resource.labels.job_name", "etl-jobs"), false)
		expect(name+", job with our prefix inside", e.set("resource.labels.job_name", "app-jobs"), false)
		expect(name+", other project", e.set("logName", "projects/other/logs/cloudaudit.googleapis.com%2Fsystem_event"), false)
		expect(name+", call of the API", e.set("logName", "projects/my-project/logs/cloudaudit.googleapis.com%2Fdata_access"), false)
		expect(name+", service", e.set("resource.type", "cloud_run_revision"), false)
		expect(name+", job deleted", e.set("protoPayload.methodName", "/Jobs.DeleteJob"), false)
		for _, made := range []string{"CreateJob", "UpdateJob"} {
			job := e.set("protoPayload.methodName", "/Jobs."+made)
			expect(name+", "+made+", it can never start", job.set("severity", "ERROR"), true)
			expect(name+", "+made+", it is ready", job.set("severity", "INFO"), false)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\ntakes (-want +got):\n%s", filter, diff)
	}
}

func TestAFilterThatIsNotUnderstoodIsNoMatch(t *testing.T) {
	for _, filter := range []string{`a=`, `(a="b"`, `a="b" a="c"`, `a!="b"`, `a:"b"`, `NOT a="b"`, `a=~"("`} {
		if _, err := matches(filter, entry{"a": "b"}); err == nil {
			t.Errorf("%s was evaluated", filter)
		}
	}
}
