package shared_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/message"
)

// nothing is a Prefect without blocks, and whose variables are all "v".
type nothing struct{}

func (nothing) BlockDocument(context.Context, string, string) (any, error) {
	return json.RawMessage(`{"value":"b"}`), nil
}
func (nothing) BlockDocumentByID(context.Context, string) (any, error) {
	return json.RawMessage(`{}`), nil
}
func (nothing) Variable(context.Context, string) (any, bool, error) {
	return json.RawMessage(`"v"`), true, nil
}

// TestWorkGrowsWithTheInput holds that resolving and decoding are linear in what they are given: for twice as
// much, what is allocated does not grow more than twofold, in number and in bytes. Copying what was read
// before, once for each part, is what makes such code quadratic.
func TestWorkGrowsWithTheInput(t *testing.T) {
	template, err := os.ReadFile("jobtemplate/testdata/vectors/001-defaults.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Template struct {
			Variables     json.RawMessage `json:"variables"`
			Configuration map[string]any  `json:"job_configuration"`
		} `json:"base_job_template"`
	}
	if err := json.Unmarshal(template, &v); err != nil {
		t.Fatal(err)
	}
	v.Template.Configuration["env"] = map[string]any{} // so that placeholders in job variables' env are resolved
	if template, err = json.Marshal(v.Template); err != nil {
		t.Fatal(err)
	}
	entry, err := os.ReadFile("cloudrun/testdata/failed-non-zero-exit.json")
	if err != nil {
		t.Fatal(err)
	}
	render := func(variables string) func() error {
		in := jobtemplate.Input{
			PoolType: "cloud-run-v2", BaseJobTemplate: json.RawMessage(template), FlowRunJobVariables: json.RawMessage(variables), DefaultProject: "p", DefaultImage: "i",
			FlowRun: jobtemplate.FlowRun{ID: "7d8bb74b-ae6b-4fe4-94df-6e4ec8a7f70f", Name: "n"}, Flow: jobtemplate.Flow{Name: "f"},
		}
		return func() error { _, err := jobtemplate.Render(t.Context(), in, nothing{}); return err }
	}
	env := func(one func(i int) string) func(n int) func() error {
		return func(n int) func() error {
			parts := make([]string, n)
			for i := range parts {
				parts[i] = one(i)
			}
			return render(`{"env":{` + strings.Join(parts, ",") + `}}`)
		}
	}
	repeat := func(before, part, after string, run func(string) func() error) func(n int) func() error {
		return func(n int) func() error { return run(before + strings.Repeat(part, n) + after) }
	}
	decode := func(data string) func() error {
		return func() error { _, err := message.Decode([]byte(data), nil); return err }
	}
	push := func(body string) func() error {
		endpoint := delivery.HTTP(func(context.Context, delivery.Delivery) error { return nil }, delivery.Options{Logger: slog.New(slog.DiscardHandler)})
		return func() error {
			w := httptest.NewRecorder()
			endpoint.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body)))
			if w.Code != http.StatusNoContent {
				return errors.New(w.Body.String())
			}
			return nil
		}
	}
	for name, of := range map[string]func(n int) func() error{
		"environment variables":          env(func(i int) string { return fmt.Sprintf(`"V%d":"v"`, i) }),
		"placeholders":                   env(func(i int) string { return fmt.Sprintf(`"V%d":"a {{ region }} b"`, i) }),
		"Prefect's variables":            env(func(i int) string { return fmt.Sprintf(`"V%d":"{{ prefect.variables.v%d }}"`, i, i) }),
		"blocks":                         env(func(i int) string { return fmt.Sprintf(`"V%d":"{{ prefect.blocks.secret.b%d }}"`, i, i) }),
		"keys with dots":                 func(n int) func() error { return render("{" + list(n, `"env.V%d":"v"`) + "}") },
		"placeholders in one string":     repeat(`{"env":{"A":"`, "a {{ region }} ", `"}}`, render),
		"braces that are no placeholder": repeat(`{"env":{"A":"`, "{{ {{ ", `"}}`, render),
		"a long string":                  repeat(`{"env":{"A":"`, "é\\n", `"}}`, render),
		"a long command":                 repeat(`{"command":"`, `sh 'a b' \\c `, `"}`, render),
		"a long name":                    repeat(`{"name":"`, "Größe ", `"}`, render),
		"nested lists": func(n int) func() error {
			return render(`{"x":` + strings.Repeat("[", n/20) + strings.Repeat("]", n/20) + "}")
		},
		"parameters of a run request": func(n int) func() error {
			return decode(`{"deployment":"f/d","parameters":{` + list(n, `"p%d":1`) + "}}")
		},
		"tags of a run request": repeat(`{"deployment":"f/d","tags":[`, `"a",`, `"a"]}`, decode),
		"a long parameter":      repeat(`{"deployment":"f/d","parameters":{"p":"`, "é", `"}}`, decode),
		"a push":                repeat(`{"message":{"messageId":"1","data":"`, "AAAA", `"}}`, push),
		"a long audit log entry": func(n int) func() error {
			data := strings.Replace(string(entry), "The container exited with an error.", strings.Repeat("It exited with an error. ", n), 1)
			return func() error { _, err := cloudrun.ReadEntry([]byte(data)); return err }
		},
	} {
		t.Run(name, func(t *testing.T) {
			const n = 400
			once, onceBytes := allocated(t, of(n))
			for _, times := range []uint64{2, 4} {
				more, moreBytes := allocated(t, of(int(times)*n))
				// A tenth more for what grows in steps, such as maps and buffers.
				if more > times*once*11/10 || moreBytes > times*onceBytes*14/10 {
					t.Errorf("%d times as much: %d allocations of %d bytes in all, and %d of %d for once", times, more, moreBytes, once, onceBytes)
				}
			}
		})
	}
}

// list returns n JSON values, of which each has its number.
func list(n int, format string) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf(format, i)
	}
	return strings.Join(parts, ",")
}

// allocated returns how often, and how much, do allocates: the least of some runs, as others in the process allocate, too.
func allocated(t *testing.T, do func() error) (count, bytes uint64) {
	t.Helper()
	var before, after runtime.MemStats
	count, bytes = math.MaxUint64, math.MaxUint64
	for range 6 {
		runtime.ReadMemStats(&before)
		if err := do(); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		count, bytes = min(count, after.Mallocs-before.Mallocs), min(bytes, after.TotalAlloc-before.TotalAlloc)
	}
	return count, bytes
}
