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

// In a new project nothing is there before its API is enabled: what does not wait for that fails the first apply.
func TestEverythingWaitsForItsAPI(t *testing.T) {
	graph, err := os.ReadFile(filepath.Join(os.Getenv(variable), "graph.dot"))
	if os.Getenv(variable) != "" && err != nil {
		t.Fatal(err)
	}
	needs := map[string][]string{}
	for line := range strings.Lines(string(graph)) {
		if m := edge.FindStringSubmatch(line); m != nil {
			needs[m[1]] = append(needs[m[1]], m[2])
		}
	}
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
