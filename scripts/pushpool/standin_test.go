package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pushpool/pushpool/shared/message"
)

// standIns are commands that the pages name and a test has not, by their words, with the flags that each takes.
// TestTheStandInsTakeWhatTheRealCommandsTake asks the real ones.
var standIns = map[string]map[string][]string{
	"gcloud": {
		"logging read":                           {"--project", "--freshness", "--limit", "--order", "--format"},
		"pubsub topics publish":                  {"--project", "--message", "--attribute"},
		"secrets versions access":                {"--project", "--secret"},
		"secrets create":                         {"--project", "--data-file"},
		"storage buckets create":                 {"--project", "--location"},
		"storage buckets update":                 {"--versioning"},
		"pubsub subscriptions describe":          {"--project"},
		"services enable":                        {"--project"},
		"beta services identity create":          {"--service", "--project"},
		"storage service-agent":                  {"--project"},
		"builds triggers create github":          {"--project", "--name", "--repo-owner", "--repo-name", "--pull-request-pattern", "--branch-pattern", "--build-config", "--service-account", "--substitutions"},
		"iam service-accounts create":            {"--project"},
		"projects add-iam-policy-binding":        {"--member", "--role", "--condition"},
		"storage buckets add-iam-policy-binding": {"--member", "--role"},
		"scheduler jobs describe":                {"--project", "--location"},
		"run jobs list":                          {"--project", "--region", "--filter", "--limit"},
		"run revisions list":                     {"--project", "--region", "--service", "--limit"},
		"run services update-traffic":            {"--project", "--region", "--to-revisions"},
	},
	"terraform": {"init": {"-upgrade"}, "apply": {}, "plan": {}, "destroy": {}, "output": {"-raw"}},
	"prefect": {
		"work-pool resume": {}, "work-pool pause": {}, "work-pool inspect": {"--output"}, "work-pool set-concurrency-limit": {},
		"flow-run ls": {"--flow-name"}, "flow-run retry": {}, "flow-run cancel": {}, "deployment ls": {}, "automation resume": {}, "work-queue resume": {"--pool"},
	},
}

// standInForGo is go where it is to run this command from the clone, which is the test's own already.
func standInForGo() {
	if len(os.Args) < 3 || os.Args[1] != "run" || os.Args[2] != "./scripts/pushpool" {
		fmt.Fprintln(os.Stderr, "go: only go run ./scripts/pushpool is here")
		os.Exit(2)
	}
	os.Args = slices.Delete(os.Args, 1, 3)
	main()
}

// standIn is the command of that name: it takes what the real one takes, and does nothing.
func standIn(name string) {
	if err := taken(name, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s %s: %v\n", name, strings.Join(os.Args[1:], " "), err)
		os.Exit(2)
	}
	if name == "terraform" && slices.Equal(os.Args[1:], []string{"output", "-raw", "operator_env"}) {
		fmt.Println(os.Getenv("DOCS_OPERATOR_ENV"))
	}
	if name == "terraform" && slices.Equal(os.Args[1:], []string{"output", "-raw", "publish"}) {
		fmt.Println(`gcloud pubsub topics publish projects/my-project/topics/flow-runs --message='{"deployment": "weather/guide", "parameters": {"city": "Madrid"}}'`)
	}
	if name == "gcloud" && len(os.Args) > 2 && os.Args[1] == "secrets" && os.Args[2] == "versions" {
		fmt.Println(os.Getenv("WEBHOOK_SECRETS")) // the one secret that the pages ask for
	}
	os.Exit(0)
}

func taken(name string, args []string) error {
	line := strings.Join(args, " ")
	words := ""
	for w := range standIns[name] {
		if (line == w || strings.HasPrefix(line, w+" ")) && len(w) > len(words) {
			words = w
		}
	}
	if words == "" {
		return fmt.Errorf("there is no such command; if the real one has it, add it to standIns")
	}
	var positional []string
	for _, arg := range args[len(strings.Fields(words)):] {
		flag, value, _ := strings.Cut(arg, "=")
		switch {
		case !strings.HasPrefix(arg, "-"):
			positional = append(positional, arg)
		case !slices.Contains(standIns[name][words], flag):
			return fmt.Errorf("it has no flag %s", flag)
		case flag == "--message":
			if _, err := message.Decode([]byte(value), nil); err != nil {
				return err
			}
		}
	}
	if name == "gcloud" && words == "logging read" {
		if len(positional) != 1 {
			return fmt.Errorf("one filter, not %d", len(positional))
		}
		return logFilter(positional[0])
	}
	return nil
}

// condition is one of a filter of Cloud Logging (https://cloud.google.com/logging/docs/view/logging-query-language).
var condition = regexp.MustCompile(`^([a-zA-Z_]+(?:\.(?:[a-zA-Z_]+|"[^"]+"))*)(=|!=|>=|<=|>|<|:|=~)("[^"]*"|[A-Z]+|[0-9.]+|\*)( |$)`)

func logFilter(filter string) error {
	for rest := filter; rest != ""; {
		m := condition.FindString(rest)
		if m == "" {
			return fmt.Errorf("the filter cannot be parsed at %q", rest)
		}
		rest = rest[len(m):]
	}
	return nil
}

// TestTheStandInsTakeWhatTheRealCommandsTake holds the stand-ins to the help of the real ones:
// PUSHPOOL_TEST_WORKER is a virtual environment with Prefect 3, PUSHPOOL_TEST_GCLOUD the command gcloud.
func TestTheStandInsTakeWhatTheRealCommandsTake(t *testing.T) {
	real := map[string]string{"gcloud": os.Getenv("PUSHPOOL_TEST_GCLOUD")}
	if venv := os.Getenv("PUSHPOOL_TEST_WORKER"); venv != "" {
		real["prefect"] = filepath.Join(venv, "bin", "prefect")
	}
	for name, path := range real {
		t.Run(name, func(t *testing.T) {
			if path == "" {
				t.Skip("the real one is not named")
			}
			for words, flags := range standIns[name] {
				cmd := exec.CommandContext(t.Context(), path, append(strings.Fields(words), "--help")...)
				cmd.Env = []string{"HOME=" + t.TempDir(), "NO_COLOR=1", "PATH=" + filepath.Dir(path) + ":/usr/bin:/bin"}
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Errorf("%s %s: %v\n%s", name, words, err, out)
				}
				for _, flag := range flags {
					if !strings.Contains(string(out), flag) {
						t.Errorf("%s %s has no flag %s", name, words, flag)
					}
				}
			}
		})
	}
}
