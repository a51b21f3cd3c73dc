package terraform_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The example deploys the flow that scripts/demo runs. A Docker build takes no file from outside its folder.
func TestTheExamplesFlowIsTheDemos(t *testing.T) {
	demo, err := os.ReadFile(filepath.Join(root, "scripts", "demo-flow", "weather.py"))
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile(filepath.Join(root, "terraform", "examples", "weather", "weather.py"))
	if err != nil {
		t.Fatal(err)
	}
	if string(demo) != string(example) {
		t.Error("examples/weather/weather.py differs from scripts/demo-flow/weather.py: copy it")
	}
}

// Prefect puts a step's outputs beside the ids of steps: an id that is the name of an output is lost, and
// what refers to it is left out (seen with prefect 3.8.8 and prefect-docker 0.7.4).
func TestTheExamplesStepsReferToEachOther(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "terraform", "examples", "weather", "prefect.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	outputs := []string{"image_name", "tag", "image", "image_id", "additional_tags"}
	var ids []string
	for _, m := range regexp.MustCompile(`(?m)^ +id: (\S+)`).FindAllStringSubmatch(string(text), -1) {
		ids = append(ids, m[1])
		if slices.Contains(outputs, m[1]) {
			t.Errorf("the id %s is an output's name, too", m[1])
		}
	}
	references := regexp.MustCompile(`\{\{ ([^$ }]+) \}\}`).FindAllStringSubmatch(string(text), -1)
	if len(references) != 3 {
		t.Errorf("%d references, want name and tag for the push, and the image for the job", len(references))
	}
	for _, m := range references {
		id, output, _ := strings.Cut(m[1], ".")
		if !slices.Contains(ids, id) || !slices.Contains(outputs, output) {
			t.Errorf("{{ %s }}: there is no such step, or no such output", m[1])
		}
	}
}
