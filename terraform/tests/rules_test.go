package terraform_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// An idle subscription vanishes after 31 days unless it is told never to: dead letters would go
// with it, and nobody would notice.
func TestSubscriptionsNeverExpire(t *testing.T) {
	subscriptions := applied(t, installation).of("google_pubsub_subscription")
	if len(subscriptions) != 4 {
		t.Errorf("%d subscriptions, want two to push and two for dead letters", len(subscriptions))
	}
	for _, s := range subscriptions {
		if p := s.block("expiration_policy"); p == nil || p["ttl"] != "" {
			t.Errorf("%s expires: %v", s.Address, p)
		}
		kept, err := time.ParseDuration(s.text("message_retention_duration"))
		if err != nil || kept < 7*24*time.Hour {
			t.Errorf("%s keeps messages for %s", s.Address, s.text("message_retention_duration"))
		}
	}
}

// With a shorter deadline a message that is worked on would be delivered again at the same time.
func TestSubscriptionsWaitForTheFunction(t *testing.T) {
	o := applied(t, installation)
	environment := environments(t, o)
	pushed := 0
	for _, s := range o.of("google_pubsub_subscription") {
		push := s.block("push_config")
		if push == nil {
			continue
		}
		pushed++
		function := s.text("name")[strings.LastIndex(s.text("name"), "-")+1:]
		for _, f := range o.of("google_cloudfunctions2_function") {
			if f.block("build_config")["entry_point"] == function {
				timeout, _ := f.block("service_config")["timeout_seconds"].(float64)
				if deadline, _ := s.Values["ack_deadline_seconds"].(float64); timeout == 0 || deadline < timeout {
					t.Errorf("%s waits %v s, %s may take %v s", s.Address, deadline, function, timeout)
				}
			}
		}
		attempts, _ := s.block("dead_letter_policy")["max_delivery_attempts"].(float64)
		if told := environment[function]["MAX_DELIVERY_ATTEMPTS"]; told != strconv.Itoa(int(attempts)) {
			t.Errorf("%s delivers %v times, %s is told %q", s.Address, attempts, function, told)
		}
		token, _ := push["oidc_token"].([]any)
		if len(token) != 1 || token[0].(map[string]any)["audience"] != push["push_endpoint"] {
			t.Errorf("%s: the token's audience is not the function: %v", s.Address, push)
		}
	}
	if pushed != 2 {
		t.Errorf("%d subscriptions push, want 2", pushed)
	}
}

// What is created before it is destroyed has all that it depends on replaced so, too, and names that are taken then stop the apply.
func TestNothingIsCreatedBeforeItIsDestroyed(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "terraform", "*.tf"))
	modules, moduleErr := filepath.Glob(filepath.Join(root, "terraform", "modules", "*", "*.tf"))
	if err != nil || moduleErr != nil || len(files) == 0 || len(modules) == 0 {
		t.Fatal(err, moduleErr)
	}
	for _, name := range append(files, modules...) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "create_before_destroy") {
			t.Errorf("%s: create_before_destroy", name)
		}
	}
}

// logs are the strings in the functions' code: messages and keys of log lines are among them.
func logs(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, dir := range []string{"functions", "shared"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if s, err := strconv.Unquote(l.Value); err == nil {
						found[s] = true
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

var (
	logKey   = regexp.MustCompile(`jsonPayload((?:\.\w+)+)`)
	logValue = regexp.MustCompile(`jsonPayload(?:\.\w+)+="([^"]+)"`)
)

// unlogged returns what a text selects or extracts from log lines that no code writes.
func unlogged(text string, written map[string]bool) []string {
	var missing []string
	for _, m := range logKey.FindAllStringSubmatch(text, -1) {
		for key := range strings.SplitSeq(m[1][1:], ".") {
			if !written[key] && key != "message" {
				missing = append(missing, key)
			}
		}
	}
	for _, m := range logValue.FindAllStringSubmatch(text, -1) {
		if !written[m[1]] && m[1] != strings.ToUpper(m[1]) { // OUTCOME is for the reader to fill in
			missing = append(missing, m[1])
		}
	}
	return missing
}

func TestMetricsAreMadeOfLinesThatTheCodeWrites(t *testing.T) {
	metrics := applied(t, installation).of("google_logging_metric")
	written := logs(t)
	if len(metrics) == 0 {
		t.Error("there are none")
	}
	for _, m := range metrics {
		for _, text := range []string{m.text("filter"), m.text("value_extractor")} {
			if missing := unlogged(text, written); missing != nil {
				t.Errorf("%s: no code writes %q", m.Address, missing)
			}
		}
		extractors, _ := m.Values["label_extractors"].(map[string]any)
		for label, e := range extractors {
			if missing := unlogged(e.(string), written); missing != nil {
				t.Errorf("%s: no code writes %q", m.Address, missing)
			}
			if label != "work_pool" && label != "outcome" {
				t.Errorf("%s: label %s has values without bound", m.Address, label)
			}
		}
	}
}

// metricName is one of ours as PromQL spells it, without what it appends to distributions.
var metricName = regexp.MustCompile(`logging_googleapis_com:user_(\w+?)(?:_bucket|_sum|_count)?\{`)

func TestAlertsAndDashboardAskForMetricsThatThereAre(t *testing.T) {
	o := applied(t, installation)
	known := map[string]bool{}
	for _, m := range o.of("google_logging_metric") {
		known[strings.ReplaceAll(m.text("name"), "/", "_")] = true
	}
	check := func(where, text string) int {
		names := metricName.FindAllStringSubmatch(text, -1)
		for _, name := range names {
			if !known[name[1]] {
				t.Errorf("%s asks for %s", where, name[1])
			}
		}
		return len(names)
	}
	asked := 0
	for _, p := range o.of("google_monitoring_alert_policy") {
		if promql, _ := p.block("conditions")["condition_prometheus_query_language"].([]any); len(promql) == 1 {
			asked += check(p.Address, promql[0].(map[string]any)["query"].(string))
		}
	}
	for _, d := range o.of("google_monitoring_dashboard") {
		asked += check(d.Address, d.text("dashboard_json"))
	}
	if asked < len(known) {
		t.Errorf("%d metrics are asked for %d times", len(known), asked)
	}
}

// At three in the morning the alert is all that there is.
func TestEveryAlertHasItsPlaybook(t *testing.T) {
	written := logs(t)
	policies := applied(t, installation).of("google_monitoring_alert_policy")
	if len(policies) < 8 {
		t.Errorf("%d alerts", len(policies))
	}
	for _, p := range policies {
		content, _ := p.block("documentation")["content"].(string)
		for _, part := range []string{"**What it means.**", "**What happens by itself.**", "**Look.**", "**Do"} {
			if !strings.Contains(content, part) {
				t.Errorf("%s: its playbook lacks %s", p.Address, part)
			}
		}
		if len(content) > 8192 {
			t.Errorf("%s: %d characters, Cloud Monitoring takes 8,192", p.Address, len(content))
		}
		if missing := unlogged(content, written); missing != nil {
			t.Errorf("%s: its playbook asks the log for %q, which no code writes", p.Address, missing)
		}
		if channels, _ := p.Values["notification_channels"].([]any); len(channels) != 1 {
			t.Errorf("%s goes nowhere", p.Address)
		}
	}
}

func TestUnloggedFindsWhatNoCodeWrites(t *testing.T) {
	written := map[string]bool{"kind": true, "swept": true}
	for text, want := range map[string]int{
		`jsonPayload.message="swept"`: 0, `jsonPayload.kind:*`: 0, `jsonPayload.message="sweeped"`: 1, `EXTRACT(jsonPayload.kind.dispatch)`: 1,
	} {
		if got := unlogged(text, written); len(got) != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}
