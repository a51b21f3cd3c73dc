package jobtemplate

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// A vector is one launch and what Prefect's own code made of it; see testdata/regenerate.py.
type vector struct {
	Description            string                          `json:"description"`
	WorkerType             string                          `json:"worker_type"`
	BaseJobTemplate        json.RawMessage                 `json:"base_job_template"`
	DeploymentJobVariables json.RawMessage                 `json:"deployment_job_variables"`
	FlowRunJobVariables    json.RawMessage                 `json:"flow_run_job_variables"`
	FlowRun                json.RawMessage                 `json:"flow_run"`
	Flow                   json.RawMessage                 `json:"flow"`
	Deployment             *vectorDeployment               `json:"deployment"`
	WorkPool               struct{ ID, Name string }       `json:"work_pool"`
	Worker                 vectorWorker                    `json:"worker"`
	Environment            map[string]string               `json:"environment"`
	Settings               json.RawMessage                 `json:"settings"`
	ADCProject             string                          `json:"adc_project"`
	BlockDocuments         []vectorBlock                   `json:"block_documents"`
	Variables              map[string]json.RawMessage      `json:"variables"`
	Expected               *vectorExpected                 `json:"expected"`
	ExpectedError          *struct{ Type, Message string } `json:"expected_error"`
	PopulatedConfiguration json.RawMessage                 `json:"populated_configuration"`
}

type vectorDeployment struct {
	ID, Name string
	Updated  *time.Time
}

type vectorWorker struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Prefect string `json:"prefect_version"`
	Python  string `json:"python_version"`
}

type vectorBlock struct {
	ID   string          `json:"id"`
	Name string          `json:"name"`
	Slug string          `json:"block_type_slug"`
	Data json.RawMessage `json:"data"`
}

type vectorExpected struct {
	Name           any             `json:"name"`
	Env            json.RawMessage `json:"env"`
	Labels         json.RawMessage `json:"labels"`
	Timeout        *int64          `json:"timeout"`
	KeepJob        bool            `json:"keep_job"`
	Region         string          `json:"region"`
	Project        string          `json:"project"`
	JobNamePrefix  *string         `json:"job_name_prefix"`
	JobNamePattern string          `json:"job_name_pattern"`
	JobBody        json.RawMessage `json:"job_body"`
}

func (v *vector) BlockDocument(_ context.Context, slug, name string) (any, error) {
	for _, b := range v.BlockDocuments {
		if b.Slug == slug && b.Name == name {
			return b.Data, nil
		}
	}
	return nil, &flowrun.Error{Fault: flowrun.NotFound, Act: "read block " + slug + "/" + name}
}

func (v *vector) BlockDocumentByID(_ context.Context, id string) (any, error) {
	for _, b := range v.BlockDocuments {
		if b.ID == id {
			return b.Data, nil
		}
	}
	return nil, &flowrun.Error{Fault: flowrun.NotFound, Act: "read block " + id}
}

func (v *vector) Variable(_ context.Context, name string) (any, bool, error) {
	value, ok := v.Variables[name]
	return value, ok, nil
}

func (v *vector) input(t testing.TB) Input {
	t.Helper()
	var flowRun, flow struct {
		ID, Name     string
		FlowID       string `json:"flow_id"`
		DeploymentID string `json:"deployment_id"`
	}
	unmarshalInto(t, v.FlowRun, &flowRun)
	unmarshalInto(t, v.Flow, &flow)
	in := Input{
		PoolType: v.WorkerType, BaseJobTemplate: v.BaseJobTemplate,
		DeploymentJobVariables: v.DeploymentJobVariables, FlowRunJobVariables: v.FlowRunJobVariables,
		FlowRun:     FlowRun{ID: flowRun.ID, Name: flowRun.Name, FlowID: flowRun.FlowID, DeploymentID: flowRun.DeploymentID, Fields: v.FlowRun},
		Flow:        Flow{ID: flow.ID, Name: flow.Name, Fields: v.Flow},
		WorkPool:    WorkPool{ID: v.WorkPool.ID, Name: v.WorkPool.Name},
		Worker:      Worker{ID: v.Worker.ID, Name: v.Worker.Name, PrefectVersion: v.Worker.Prefect},
		Environment: v.Environment, DefaultProject: v.ADCProject,
		DefaultImage: "docker.io/prefecthq/prefect:" + v.Worker.Prefect + "-python" + v.Worker.Python,
	}
	if d := v.Deployment; d != nil {
		in.Deployment = &Deployment{ID: d.ID, Name: d.Name}
		if d.Updated != nil {
			in.Deployment.Updated = *d.Updated
		}
	} else {
		in.FlowRun.DeploymentID, in.DeploymentJobVariables = "", nil
	}
	settings, _ := ordered(t, v.Settings).(*object)
	for k, s := range settings.all() {
		in.Settings = append(in.Settings, Setting{k, str(s)})
	}
	return in
}

func unmarshalInto(t testing.TB, b []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(b, to); err != nil {
		t.Fatal(err)
	}
}

func ordered(t testing.TB, b []byte) any {
	t.Helper()
	v, err := decode(b, 0)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// asPython returns a value in which numbers compare as Python's do: 1 is not 1.0, but
// 1e5 is 100000.0.
func asPython(v any) any {
	switch v := v.(type) {
	case *object:
		m := map[string]any{}
		for k, e := range v.all() {
			m[k] = asPython(e)
		}
		return m
	case map[string]any:
		m := map[string]any{}
		for k, e := range v {
			m[k] = asPython(e)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i := range v {
			l[i] = asPython(v[i])
		}
		return l
	case json.Number:
		return json.Number(number(v))
	}
	return v
}

func vectorFiles(t testing.TB) []string {
	t.Helper()
	var files []string
	for _, d := range slices.Concat([]string{filepath.Join("testdata", "vectors")}, filepath.SplitList(os.Getenv("TEMPLATE_VECTORS"))) {
		found, err := filepath.Glob(filepath.Join(d, "*.json"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no vectors in %s: %v", d, err)
		}
		files = append(files, found...)
	}
	return files
}

func readVector(t testing.TB, file string) *vector {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	v := &vector{}
	unmarshalInto(t, b, v)
	return v
}

func TestPrefectsOwnResults(t *testing.T) {
	for _, file := range vectorFiles(t) {
		v := readVector(t, file)
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			in := v.input(t)
			checkPopulated(t, in, v)
			p, err := prepare(t.Context(), in, v)
			if v.ExpectedError != nil {
				var permanent *flowrun.Error
				if !errors.As(err, &permanent) || permanent.Fault != flowrun.Permanent || permanent.Hint == "" {
					t.Fatalf("error is %v, want one about: %s", err, v.ExpectedError.Message)
				}
				if _, err := Render(t.Context(), in, v); err == nil {
					t.Error("Render does not fail")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkPrepared(t, p, v.Expected)
			checkRendered(t, in, v)
		})
	}
}

func checkPopulated(t *testing.T, in Input, v *vector) {
	t.Helper()
	values, _, err := jobVariables(in.DeploymentJobVariables, in.FlowRunJobVariables)
	if err != nil {
		return // nothing to populate; that the vector is an error is checked elsewhere
	}
	r := &resolver{ctx: t.Context(), lookup: v, environment: in.Environment}
	populated, _, err := r.populate(in.BaseJobTemplate, values)
	if (err == nil) != (v.PopulatedConfiguration != nil) {
		t.Fatalf("populate: error is %v", err)
	}
	if err != nil {
		return
	}
	if diff := cmp.Diff(asPython(ordered(t, v.PopulatedConfiguration)), asPython(populated)); diff != "" {
		t.Errorf("populated configuration (-want +got):\n%s", diff)
	}
}

func checkPrepared(t *testing.T, p prepared, want *vectorExpected) {
	t.Helper()
	body, _ := asPython(p.body).(map[string]any)
	if metadata, ok := body["metadata"].(map[string]any); ok && p.randomHex == 32 {
		metadata["name"] = p.workerName + "<RANDOM32HEX>"
	}
	if diff := cmp.Diff(asPython(ordered(t, want.JobBody)), any(body)); diff != "" {
		t.Errorf("job body (-want +got):\n%s", diff)
	}
	if want.JobNamePrefix != nil {
		if p.workerName != *want.JobNamePrefix {
			t.Errorf("job name prefix %q, want %q", p.workerName, *want.JobNamePrefix)
		}
		if name := p.workerName + strings.Repeat("0", p.randomHex); p.randomHex > 0 && !regexp.MustCompile(want.JobNamePattern).MatchString(name) {
			t.Errorf("job name %q does not match %q", name, want.JobNamePattern)
		}
	}
	got := map[string]any{"keep_job": p.keepJob, "region": p.region, "project": p.project, "timeout": p.timeout}
	timeout := int64(0)
	if want.Timeout != nil {
		timeout = *want.Timeout
	}
	if diff := cmp.Diff(map[string]any{"keep_job": want.KeepJob, "region": want.Region, "project": want.Project, "timeout": timeout}, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

// checkRendered checks that the result is a job of Cloud Run's v2 API, or an error that
// names what in it is not: some vectors have made-up fields, or what only Cloud Run refuses.
// A v1 body is refused by Render already where its fields have no counterpart in v2.
func checkRendered(t *testing.T, in Input, v *vector) {
	t.Helper()
	r, err := Render(t.Context(), in, v)
	if err != nil {
		if !strings.HasPrefix(in.PoolType, "cloud-run-v2") && namesField(err, "resolve job_body.") {
			return
		}
		t.Fatal(err)
	}
	job, err := r.Job()
	if err != nil {
		if !namesField(err, "use job_body.") {
			t.Errorf("Job: %v", err)
		}
		return
	}
	if got := job.GetTemplate().GetTemplate().GetTimeout().AsDuration(); got != r.Timeout {
		t.Errorf("timeout %v, want %v", got, r.Timeout)
	}
}

// namesField reports whether an error is about one field, and says what to do about it.
func namesField(err error, act string) bool {
	var e *flowrun.Error
	return errors.As(err, &e) && e.Fault == flowrun.Permanent && e.Hint != "" && strings.HasPrefix(e.Act, act)
}
