package terraform_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caarlos0/env/v11"

	"github.com/pushpool/pushpool/functions"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/ledger"
)

// environments returns the environment that each function is given, by its entry point.
func environments(t *testing.T, o outcome) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	for _, f := range o.of("google_cloudfunctions2_function") {
		target, _ := f.block("build_config")["entry_point"].(string)
		config := f.block("service_config")
		environment := map[string]string{}
		plain, _ := config["environment_variables"].(map[string]any)
		for name, value := range plain {
			environment[name], _ = value.(string)
		}
		secrets, _ := config["secret_environment_variables"].([]any)
		for _, s := range secrets {
			name, _ := s.(map[string]any)["key"].(string)
			environment[name] = "user:a-secret-of-enough-characters"
		}
		all[target] = environment
	}
	if len(all) != len(functions.All()) {
		t.Fatalf("Terraform makes the functions %v", slices.Sorted(maps.Keys(all)))
	}
	return all
}

// The function itself reads what Terraform sets, as it does before it listens.
func TestEachFunctionStartsWithTheEnvironmentThatTerraformSets(t *testing.T) {
	for target, environment := range environments(t, applied(t, installation)) {
		t.Run(target, func(t *testing.T) {
			var environ []string
			for name, value := range environment {
				environ = append(environ, name+"="+value)
			}
			if _, err := functions.Make(target, install.Surroundings{Environ: environ, Log: io.Discard, Memory: ledger.NewMemory()}); err != nil {
				t.Errorf("it would not start:\n%v", err)
			}
		})
	}
}

// A variable that no code reads is a typing error, or a setting that does nothing.
func TestEveryVariableThatTerraformSetsIsRead(t *testing.T) {
	for target, environment := range environments(t, applied(t, installation)) {
		known := variables(t, filepath.Join(root, "functions", target, "*.go"))
		maps.Copy(known, variables(t, filepath.Join(root, "shared", "install", "*.go")))
		for name := range environment {
			if !known[name] {
				t.Errorf("%s is given %s, which it does not read", target, name)
			}
		}
	}
}

// variables returns the environment variables that the files' struct tags name.
func variables(t *testing.T, pattern string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no files: %v", pattern, err)
	}
	found := map[string]bool{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if f, ok := n.(*ast.Field); ok && f.Tag != nil {
				tag, err := strconv.Unquote(f.Tag.Value)
				if err != nil {
					t.Fatal(err)
				}
				name, _, _ := strings.Cut(reflect.StructTag(tag).Get("env"), ",")
				found[name] = true
			}
			return true
		})
	}
	return found
}

// What the output operator_env prints is what the operator's command takes.
func TestTheOperatorsCommandTakesItsEnvironment(t *testing.T) {
	text, _ := applied(t, installation).outputs["operator_env"].Value.(string)
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := operator.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.DeadLetterSubscriptions) != 2 || cfg.WebhookURL == "" || cfg.Project != "my-project" || cfg.APIKey != "" {
		t.Errorf("it reads %+v", cfg)
	}
	// Jobs are rendered as the dispatcher does, with all that it goes by.
	if _, err := functions.Make("dispatcher", install.Surroundings{Environ: cfg.Environ, Log: io.Discard}); err != nil {
		t.Errorf("the dispatcher of the command: %v", err)
	}
	have := env.ToMap(cfg.Environ)
	for name, value := range environments(t, applied(t, installation))["dispatcher"] {
		if value != "" && have[name] != value && !strings.HasPrefix(value, "user:") && name != "MAX_DELIVERY_ATTEMPTS" {
			t.Errorf("%s is %q for the dispatcher and %q for the command", name, value, have[name])
		}
	}
}
