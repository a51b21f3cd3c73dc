package terraform_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "terraform", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The tables of costs count what is made, and their sums are those of their rows.
func TestTheCostTablesAddUp(t *testing.T) {
	o := applied(t, installation)
	conditions := 0
	for _, p := range o.of("google_monitoring_alert_policy") {
		each, _ := p.Values["conditions"].([]any)
		conditions += len(each)
	}
	text := readme(t)
	for _, want := range []string{
		fmt.Sprintf("| %d job × 0.10 |", len(o.of("google_cloud_scheduler_job"))),
		fmt.Sprintf("| %d conditions × 0.10, and %d × 43,800 series", conditions, conditions),
		fmt.Sprintf("⏰ %d alerts, each with its playbook", len(o.of("google_monitoring_alert_policy"))),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the README does not say %q", want)
		}
	}
	tables := 0
	sums := map[int]float64{} // by column, of the table that is being read
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 3 {
			clear(sums)
			continue
		}
		total := strings.Contains(line, "**sum**")
		if total {
			tables++
		}
		for i, cell := range cells[3:] {
			value, err := strconv.ParseFloat(strings.Trim(firstWord(cell), "*"), 64)
			switch {
			case err != nil:
			case !total:
				sums[i] += value
			case math.Abs(value-sums[i]) > 0.006:
				t.Errorf("the rows add up to %.4f, the sum says %v: %s", sums[i], value, line)
			}
		}
	}
	if tables != 2 {
		t.Errorf("%d tables have a sum, want 2", tables)
	}
}

func firstWord(cell string) string {
	word, _, _ := strings.Cut(strings.TrimSpace(cell), " ")
	return word
}

// How much the functions take at a time is what their files say.
func TestTheREADMESaysWhatTheFunctionsTake(t *testing.T) {
	said := regexp.MustCompile(`(?m)^\| functions \| (.*?) \|`).FindStringSubmatch(readme(t))
	if said == nil {
		t.Fatal("there is no row on functions")
	}
	for _, f := range applied(t, installation).of("google_cloudfunctions2_function") {
		config := f.block("service_config")
		want := fmt.Sprintf("%s %v × %v", f.block("build_config")["entry_point"], config["max_instance_count"], config["max_instance_request_concurrency"])
		if !strings.Contains(said[1], want) {
			t.Errorf("the README says %q, and not %q", said[1], want)
		}
	}
}
