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

// Each permission of the module's own roles is in the table of who may do what.
func TestTheREADMESaysWhoMayDoWhat(t *testing.T) {
	text := readme(t)
	for _, role := range applied(t, installation).of("google_project_iam_custom_role") {
		for _, p := range role.Values["permissions"].([]any) {
			permission := p.(string)
			verb := permission[strings.LastIndex(permission, ".")+1:]
			if !strings.Contains(text, "`"+permission+"`") && !strings.Contains(text, "`"+verb+"`") {
				t.Errorf("the README does not say who may %s", permission)
			}
		}
	}
}

// appliers are the roles that whoever applies needs beside editor, which may set no policy: by what the module grants on.
var appliers = map[string]string{
	"google_project_iam_member":                      "roles/resourcemanager.projectIamAdmin",
	"google_project_iam_custom_role":                 "roles/iam.roleAdmin",
	"google_service_account_iam_member":              "roles/iam.serviceAccountAdmin",
	"google_artifact_registry_repository_iam_member": "roles/artifactregistry.admin",
	"google_cloud_run_v2_service_iam_member":         "roles/run.admin",
	"google_cloud_tasks_queue_iam_member":            "roles/cloudtasks.admin",
	"google_kms_crypto_key_iam_member":               "roles/cloudkms.admin",
	"google_logging_log_view_iam_member":             "roles/logging.admin",
	"google_logging_project_sink":                    "roles/logging.admin",
	"google_pubsub_subscription_iam_member":          "roles/pubsub.admin",
	"google_pubsub_topic_iam_member":                 "roles/pubsub.admin",
	"google_secret_manager_secret_iam_member":        "roles/secretmanager.admin",
	"google_storage_bucket_iam_member":               "roles/storage.admin",
}

func TestTheREADMESaysWhatWhoeverAppliesNeeds(t *testing.T) {
	text := readme(t)
	for _, r := range applied(t, installation).resources {
		role := appliers[r.Type]
		if strings.Contains(r.Type, "_iam_") && role == "" {
			t.Errorf("%s: say in appliers which role grants it", r.Type)
		}
		if !strings.Contains(text, "`"+role+"`") && role != "" {
			t.Errorf("the README does not say that %s takes %s", r.Type, role)
		}
	}
}
