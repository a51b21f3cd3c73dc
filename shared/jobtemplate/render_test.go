package jobtemplate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// noLookup is a Prefect without blocks and variables.
type noLookup struct{}

func (noLookup) BlockDocument(context.Context, string, string) (any, error) {
	return nil, &flowrun.Error{Fault: flowrun.NotFound, Act: "read block"}
}

func (noLookup) BlockDocumentByID(context.Context, string) (any, error) {
	return nil, &flowrun.Error{Fault: flowrun.NotFound, Act: "read block"}
}

func (noLookup) Variable(context.Context, string) (any, bool, error) { return nil, false, nil }

// defaultInput launches a flow run from the default template of a cloud-run-v2 work pool.
func defaultInput(t testing.TB) Input {
	t.Helper()
	return readVector(t, filepath.Join("testdata", "vectors", "001-defaults.json")).input(t)
}

// countingLookup answers everything with data, or err, and counts the calls.
type countingLookup struct {
	data  any
	err   error
	calls *int
}

func (l countingLookup) BlockDocument(context.Context, string, string) (any, error) {
	*l.calls++
	return l.data, l.err
}

func (l countingLookup) BlockDocumentByID(context.Context, string) (any, error) {
	*l.calls++
	return l.data, l.err
}

func (l countingLookup) Variable(context.Context, string) (any, bool, error) {
	*l.calls++
	return l.data, true, l.err
}

func TestRenderStatesRegionProjectAndTimeout_Prefect17511(t *testing.T) {
	for _, c := range []struct {
		name, variables string
		want            Rendered
	}{
		{"defaults", `{}`, Rendered{Region: "us-central1", Project: "adc", Timeout: 10 * time.Minute}},
		{
			"job variables", `{"name":"n","region":"europe-west1","timeout":90,"keep_job":true,"credentials":{"project":"other"}}`,
			Rendered{Name: "n", Region: "europe-west1", Project: "other", Timeout: 90 * time.Second, KeepJob: true},
		},
		{"seven days", `{"timeout":604800}`, Rendered{Region: "us-central1", Project: "adc", Timeout: 7 * 24 * time.Hour}},
		{
			"a key of a service account names its project", `{"credentials":{"service_account_info":{"project_id":"other"}}}`,
			Rendered{Region: "us-central1", Project: "other", ServiceAccountKey: true, Timeout: 10 * time.Minute},
		},
		{
			"and is a key as text too", `{"credentials":{"service_account_info":"{\"type\":\"service_account\"}","project":"mine"}}`,
			Rendered{Region: "us-central1", Project: "mine", ServiceAccountKey: true, Timeout: 10 * time.Minute},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := defaultInput(t)
			in.FlowRunJobVariables, in.DefaultProject = json.RawMessage(c.variables), "adc"
			got, err := Render(t.Context(), in, noLookup{})
			if err != nil {
				t.Fatal(err)
			}
			if c.want.Name == "" {
				c.want.Name = in.FlowRun.Name
			}
			got.Body = nil
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestANullConnectorIsNoVPC_PrefectGCP251 holds that Cloud Run is not given an access without a connector, which it refuses.
func TestANullConnectorIsNoVPC_PrefectGCP251(t *testing.T) {
	in := defaultInput(t)
	in.FlowRunJobVariables = json.RawMessage(`{"vpc_connector_name":null}`)
	r, err := Render(t.Context(), in, noLookup{})
	if err != nil {
		t.Fatal(err)
	}
	job, err := r.Job()
	if err != nil {
		t.Fatal(err)
	}
	if access := job.GetTemplate().GetTemplate().GetVpcAccess(); access != nil {
		t.Errorf("the job has VPC access %v", access)
	}
}

func TestErrorsNameTheFieldAndNotItsValue(t *testing.T) {
	for _, c := range []struct{ name, variables, act string }{
		{"a time-out out of bounds", `{"timeout":604801}`, "resolve `timeout`"},
		{"labels that are no text", `{"labels":{"team":["SECRET"]}}`, "resolve `labels.team`"},
		{"env that is no object", `{"env":"SECRET"}`, "resolve `env`"},
		{"a secret without version", `{"env_from_secrets":{"A":{"secret":"SECRET"}}}`, "resolve `env_from_secrets.A`"},
		{"a flag that is none", `{"keep_job":"SECRET"}`, "resolve `keep_job`"},
		{"a command with an open quotation mark", `{"command":"run 'SECRET"}`, "resolve `command`"},
		{"a key file", `{"credentials":{"service_account_file":"/SECRET"}}`, "resolve `credentials.service_account_file`"},
		{"a key that is no JSON", `{"credentials":{"service_account_info":"SECRET"}}`, "resolve `credentials.service_account_info`"},
		{"dotted keys in each other's way", `{"a.b":"SECRET","a.b.c":1}`, `resolve job variable "a.b.c"`},
		{"a block that is not there", `{"image":"{{ prefect.blocks.secret.gone }}"}`, "resolve {{ prefect.blocks.secret.gone }}"},
		{"a block document that is not there", `{"image":{"$ref":{"block_document_id":"b1"}}}`, "resolve $ref b1"},
		{"job variables that are no object", `["SECRET"]`, "resolve the flow run's job variables"},
		{"job variables that are no JSON", `{"a":SECRET}`, "resolve the flow run's job variables"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := defaultInput(t)
			in.FlowRunJobVariables = json.RawMessage(c.variables)
			_, err := Render(t.Context(), in, noLookup{})
			var e *flowrun.Error
			if !errors.As(err, &e) || e.Fault != flowrun.Permanent || e.Hint == "" || e.Act != c.act {
				t.Fatalf("error is %v, want %s", err, c.act)
			}
			if strings.Contains(err.Error(), "SECRET") {
				t.Errorf("the error shows a value: %v", err)
			}
		})
	}
}

func TestOnlyCloudRunPoolsAreResolved(t *testing.T) {
	for poolType, want := range map[string]bool{
		"cloud-run-v2": true, "cloud-run-v2:push": true, "kubernetes": false, "process": false, "": false,
	} {
		in := defaultInput(t)
		in.PoolType = poolType
		_, err := Render(t.Context(), in, noLookup{})
		if (err == nil) != want || err != nil && flowrun.FaultOf(err) != flowrun.Permanent {
			t.Errorf("work pool type %q: error is %v", poolType, err)
		}
	}
}

func TestFailedLookupsKeepTheirFault(t *testing.T) {
	for _, value := range []string{`"{{ prefect.blocks.secret.x }}"`, `"{{ prefect.variables.x }}"`, `{"$ref":{"block_document_id":"b1"}}`} {
		for _, fault := range []flowrun.Fault{flowrun.Unclear, flowrun.Refused, flowrun.Permanent} {
			in := defaultInput(t)
			in.FlowRunJobVariables = json.RawMessage(`{"image":` + value + `}`)
			failure := &flowrun.Error{Fault: fault, Act: "ask Prefect"}
			_, err := Render(t.Context(), in, countingLookup{err: failure, calls: new(int)})
			if !errors.Is(err, failure) || flowrun.FaultOf(err) != fault {
				t.Errorf("%s: error is %v (%v), want %v", value, err, flowrun.FaultOf(err), fault)
			}
		}
	}
}

func TestNothingIsReadTwice(t *testing.T) {
	in := defaultInput(t)
	in.FlowRunJobVariables = json.RawMessage(`{"env":{"A":"{{ prefect.blocks.secret.x }}","B":"b {{ prefect.blocks.secret.x }}",
		"C":"{{ prefect.variables.v }}","D":"{{ prefect.variables.v }}{{ prefect.variables.v }}"}}`)
	lookup := countingLookup{data: "text", calls: new(int)}
	if _, err := Render(t.Context(), in, lookup); err != nil {
		t.Fatal(err)
	}
	if *lookup.calls != 2 {
		t.Errorf("%d calls, want one for the block and one for the variable", *lookup.calls)
	}
}

// Templates and blocks come from caches that others read meanwhile.
func TestInputStaysAsItIs(t *testing.T) {
	read := func() (in Input, lookup countingLookup) {
		in = defaultInput(t)
		var template, deployment, flowRun, block any
		raw, ok := in.BaseJobTemplate.(json.RawMessage)
		if !ok {
			t.Fatalf("base job template is %T", in.BaseJobTemplate)
		}
		unmarshalInto(t, raw, &template)
		unmarshalInto(t, []byte(`{"env":{"A":"1"},"labels":{"team":"x"},"cloudsql_instances":["p:r:i"],"x.y":1}`), &deployment)
		unmarshalInto(t, []byte(`{"env":{"B":"{{ prefect.blocks.json.x.b }}"},"command":"a b"}`), &flowRun)
		unmarshalInto(t, []byte(`{"b":"{{ prefect.variables.v }}"}`), &block)
		in.BaseJobTemplate, in.DeploymentJobVariables, in.FlowRunJobVariables = template, deployment, flowRun
		return in, countingLookup{data: block, calls: new(int)}
	}
	in, lookup := read()
	untouched, block := read()
	for range 2 {
		if _, err := Render(t.Context(), in, lookup); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(untouched, in); diff != "" {
		t.Errorf("input was changed (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(block.data, lookup.data); diff != "" {
		t.Errorf("block was changed (-before +after):\n%s", diff)
	}
}

func TestMapsGiveTheSameJobAsRawJSON(t *testing.T) {
	in := defaultInput(t)
	want, err := Render(t.Context(), in, noLookup{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Render(t.Context(), cachedInput(t), noLookup{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-raw +map):\n%s", diff)
	}
}

// Small documents can ask for large ones.
func TestWhatResolvesToTooMuchIsRefused(t *testing.T) {
	big := strings.Repeat("x", 20_000)
	for name, variables := range map[string]string{
		"a large variable used often": `{"args":[` + strings.Repeat(`"{{ prefect.variables.big }} ",`, 2000) + `""]}`,
		"a large variable as a whole": `{"args":[` + strings.Repeat(`"{{ prefect.variables.big }}",`, 2000) + `""]}`,
		"a large block used often":    `{"args":[` + strings.Repeat(`"{{ prefect.blocks.secret.big }}",`, 2000) + `""]}`,
		"one character of it":         `{"args":[` + strings.Repeat(`"{{ prefect.blocks.secret.big[7] }}",`, 2000) + `""]}`,
		"nested too deeply":           `{"env":{"A":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}}`,
		"a dotted key of too many":    `{"` + strings.Repeat("a.", 500) + `b":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			in := defaultInput(t)
			in.FlowRunJobVariables = json.RawMessage(variables)
			if _, err := Render(t.Context(), in, countingLookup{data: big, calls: new(int)}); flowrun.FaultOf(err) != flowrun.Permanent {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// The bars that the package is held to: 100 µs are the benchmark's to show.
func TestDefaultTemplateTakesFewAllocations(t *testing.T) {
	in := cachedInput(t)
	allocations := testing.AllocsPerRun(10, func() {
		if _, err := Render(t.Context(), in, noLookup{}); err != nil {
			t.Fatal(err)
		}
	})
	if allocations > 500 {
		t.Errorf("%v allocations, want 500 at most", allocations)
	}
}

func BenchmarkDefaultTemplate(b *testing.B) {
	in := cachedInput(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Render(b.Context(), in, noLookup{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRenderBySize shows that time grows with what there is to resolve, and not faster: the
// time for one variable does not rise from 10 of them to 1,000.
func BenchmarkRenderBySize(b *testing.B) {
	for _, size := range []int{10, 100, 1000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			in := cachedInput(b)
			env := map[string]any{}
			for i := range size {
				env[fmt.Sprintf("V%d", i)] = "a {{ region }} b {{ image }}"
			}
			in.FlowRunJobVariables = map[string]any{"env": env}
			for b.Loop() {
				if _, err := Render(b.Context(), in, noLookup{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/variable")
		})
	}
}

// cachedInput is defaultInput with the template decoded, as it lies in a cache.
func cachedInput(t testing.TB) Input {
	t.Helper()
	in := defaultInput(t)
	raw, _ := in.BaseJobTemplate.(json.RawMessage)
	template, err := Read(raw)
	if err != nil {
		t.Fatal(err)
	}
	in.BaseJobTemplate = template
	return in
}

// TestADocumentIsReadOnceAndUsedByAll holds that renders at the same time neither disturb each
// other nor the template that they share, and give what the template as it came gives.
func TestADocumentIsReadOnceAndUsedByAll(t *testing.T) {
	for _, file := range vectorFiles(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			v := readVector(t, file)
			in := v.input(t)
			raw, _ := in.BaseJobTemplate.(json.RawMessage)
			template, err := Read(raw)
			if err != nil {
				t.Skip("this vector's template is no document: ", err)
			}
			want, wantErr := Render(t.Context(), in, v)
			in.BaseJobTemplate = template
			var renders sync.WaitGroup
			for range 2 {
				renders.Go(func() {
					got, err := Render(t.Context(), in, v)
					if (err == nil) != (wantErr == nil) {
						t.Errorf("error %v, want %v", err, wantErr)
					}
					if diff := cmp.Diff(want.Body, got.Body); diff != "" {
						t.Errorf("body (-want +got):\n%s", diff)
					}
				})
			}
			renders.Wait()
			again, err := Read(raw)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(again, template) {
				t.Error("a render changed the template")
			}
		})
	}
}

func TestOptionsAreMergedLikeAnyJobVariable(t *testing.T) {
	for _, c := range []struct {
		name, pool, deployment, flowRun string
		want                            map[string]any
	}{
		{"none", `{}`, `{"cpu":"2"}`, `{"push":1}`, nil},
		{"the default of the work pool", `{"pushpool_a":{"default":"pool"}}`, `{}`, `{}`, map[string]any{"pushpool_a": "pool"}},
		{"the deployment over the work pool", `{"pushpool_a":{"default":"pool"}}`, `{"pushpool_a":"deployment"}`, `{}`, map[string]any{"pushpool_a": "deployment"}},
		{
			"the flow run over the deployment, each option by itself", `{}`, `{"pushpool_a":"deployment","pushpool_b":true}`, `{"pushpool_a":3}`,
			map[string]any{"pushpool_a": json.Number("3"), "pushpool_b": true},
		},
		{"null takes a default back", `{"pushpool_a":{"default":"pool"}}`, `{}`, `{"pushpool_a":null}`, nil},
		{
			"dotted keys are nested", `{}`, `{"pushpool_a.x":1,"pushpool_a.y":[2]}`, `{}`,
			map[string]any{"pushpool_a": map[string]any{"x": json.Number("1"), "y": []any{json.Number("2")}}},
		},
		{"Prefect's variables are resolved", `{}`, `{"pushpool_a":"{{ prefect.variables.x }}"}`, `{}`, map[string]any{"pushpool_a": "looked up"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := defaultInput(t)
			in.BaseJobTemplate = json.RawMessage(`{"variables":{"properties":` + c.pool + `},
				"job_configuration":{"job_body":{"template":{"template":{"containers":[{"env":[]}]}}}}}`)
			in.DeploymentJobVariables, in.FlowRunJobVariables = json.RawMessage(c.deployment), json.RawMessage(c.flowRun)
			r, err := Render(t.Context(), in, countingLookup{data: "looked up", calls: new(int)})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, r.Options); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
