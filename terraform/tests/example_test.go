package terraform_test

import (
	"os"
	"path/filepath"
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
