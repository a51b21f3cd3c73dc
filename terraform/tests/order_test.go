package terraform_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// edge is a line of what `terraform graph` says: the first needs the second.
var edge = regexp.MustCompile(`^\s*"([^"]+)" -> "([^"]+)";`)

// graph returns what each resource of the installation needs, by its address without keys.
func graph(t *testing.T) map[string][]string {
	t.Helper()
	applied(t, installation) // skips where nothing is
	text, err := os.ReadFile(filepath.Join(os.Getenv(variable), "graph.dot"))
	if err != nil {
		t.Fatal(err)
	}
	needs := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if m := edge.FindStringSubmatch(line); m != nil {
			needs[m[1]] = append(needs[m[1]], m[2])
		}
	}
	return needs
}

// In a new project nothing is there before its API is enabled: what does not wait for that fails the first apply.
func TestEverythingWaitsForItsAPI(t *testing.T) {
	needs := graph(t)
	seen := map[string]bool{}
	for _, r := range applied(t, installation).resources {
		address := regexp.MustCompile(`\[[^\]]*\]`).ReplaceAllString(r.Address, "")
		if strings.HasPrefix(r.Type, "google_") && r.Type != "google_project" && r.Type != "google_project_service" {
			seen[address] = true
		}
	}
	if len(seen) < 30 {
		t.Errorf("%d resources are looked at", len(seen))
	}
	for address := range seen {
		if !reaches(needs, address, "google_project_service.api", map[string]bool{}) {
			t.Errorf("%s does not wait for its API: write depends_on = [google_project_service.api]", address)
		}
	}
}

// A first apply mostly stops where a build does not see a grant yet. Had the webhook's random secret been
// written by then, the next apply would tell Prefect another one.
func TestTheWebhooksSecretIsWrittenWhenTheOtherFunctionsAreThere(t *testing.T) {
	needs := graph(t)
	for _, function := range []string{"module.dispatcher.module.function", "module.finalizer.module.function", "module.reconciler"} {
		if !reaches(needs, "google_secret_manager_secret_version.webhook", function+".google_cloudfunctions2_function.this", map[string]bool{}) {
			t.Errorf("it does not wait for %s", function)
		}
	}
}

func reaches(needs map[string][]string, from, to string, visited map[string]bool) bool {
	if from == to {
		return true
	}
	visited[from] = true
	for _, next := range needs[from] {
		if !visited[next] && reaches(needs, next, to, visited) {
			return true
		}
	}
	return false
}
