// Package terraform_test holds what Terraform makes of the module against the functions' code.
//
// scripts/check-terraform applies the module to mocks and hands the outcome over; without
// Terraform these tests have nothing to look at, and skip.
package terraform_test

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// root is the repository's root.
const root = "../.."

// resource is one that Terraform made.
type resource struct {
	Address string
	Type    string
	Name    string
	Values  map[string]any
}

func (r resource) text(key string) string {
	s, _ := r.Values[key].(string)
	return s
}

// block returns the only block of that name; nil where there is none.
func (r resource) block(name string) map[string]any {
	blocks, _ := r.Values[name].([]any)
	if len(blocks) != 1 {
		return nil
	}
	b, _ := blocks[0].(map[string]any)
	return b
}

type module struct {
	Resources    []resource
	ChildModules []module `json:"child_modules"`
}

func (m module) all() []resource {
	found := m.Resources
	for _, child := range m.ChildModules {
		found = append(found, child.all()...)
	}
	return found
}

// outcome is what `terraform test -json -verbose` said about a module's runs applied and planned_again.
type outcome struct {
	text      string // all of it
	resources []resource
	outputs   map[string]struct{ Value any }
	again     []change // what a second plan would do
}

type change struct {
	Address string
	Change  struct{ Actions []string }
}

// of returns the resources of a type.
func (o outcome) of(typ string) []resource {
	var found []resource
	for _, r := range o.resources {
		if r.Type == typ {
			found = append(found, r)
		}
	}
	return found
}

// The modules that scripts/check-terraform applies, by the names of the files with their outcome.
const (
	installation = "terraform"
	connection   = "terraform-modules-prefect_connection"
)

// variable names the folder of these files.
const variable = "PUSHPOOL_TEST_TERRAFORM"

var outcomes = map[string]func() (outcome, error){
	installation: sync.OnceValues(func() (outcome, error) { return read(installation) }),
	connection:   sync.OnceValues(func() (outcome, error) { return read(connection) }),
}

func read(name string) (outcome, error) {
	var o outcome
	file, err := os.Open(filepath.Join(os.Getenv(variable), name+".json"))
	if err != nil {
		return o, err
	}
	defer func() { _ = file.Close() }()
	var text strings.Builder
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var line struct {
			Run   string `json:"@testrun"`
			State struct {
				Root    module `json:"root_module"`
				Outputs map[string]struct{ Value any }
			} `json:"test_state"`
			Plan struct {
				Changes []change `json:"resource_changes"`
			} `json:"test_plan"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return o, err
		}
		text.Write(lines.Bytes())
		o.resources = append(o.resources, line.State.Root.all()...)
		if line.State.Outputs != nil {
			o.outputs = line.State.Outputs
		}
		if line.Run == "planned_again" {
			o.again = append(o.again, line.Plan.Changes...)
		}
	}
	o.text = text.String()
	return o, lines.Err()
}

func applied(t *testing.T, name string) outcome {
	t.Helper()
	if os.Getenv(variable) == "" {
		t.Skip(variable + " is not set: scripts/check-terraform sets it")
	}
	o, err := outcomes[name]()
	if err != nil {
		t.Fatal(err)
	}
	if len(o.resources) == 0 || len(o.again) == 0 {
		t.Fatal("nothing was applied, or nothing planned afterwards")
	}
	return o
}

func TestASecondPlanIsEmpty(t *testing.T) {
	for name := range outcomes {
		for _, c := range applied(t, name).again {
			for _, action := range c.Change.Actions {
				if action != "no-op" && action != "read" {
					t.Errorf("%s: %s: %s", name, c.Address, action)
				}
			}
		}
	}
}

// The values that the tests give as secrets all begin so.
func TestNoSecretIsInStateOrPlan(t *testing.T) {
	for name := range outcomes {
		o := applied(t, name)
		if i := strings.Index(o.text, "sentinel"); i >= 0 {
			t.Errorf("%s: a secret is in …%s…", name, o.text[max(0, i-200):min(len(o.text), i+40)])
		}
	}
	written := 0
	for _, r := range applied(t, installation).of("google_secret_manager_secret_version") {
		if r.Values["secret_data"] == nil && r.Values["secret_data_wo"] == nil && r.Values["secret_data_wo_version"] != nil {
			written++
		}
	}
	if written != 3 {
		t.Errorf("%d secrets are written, want 3", written)
	}
}
