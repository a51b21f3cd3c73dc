package launch_test

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	run "cloud.google.com/go/run/apiv2"
	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// job is the job that the flow run was launched with.
func (r *rig) job(flowRunID string) *runpb.Job {
	r.t.Helper()
	jobs, err := run.NewJobsClient(r.t.Context(), r.emulator.ClientOptions()...)
	r.must(err)
	defer func() { _ = jobs.Close() }()
	execution, err := cloudrun.ParseExecutionName(r.record(flowRunID).ExecutionName)
	r.must(err)
	job, err := jobs.GetJob(r.t.Context(), &runpb.GetJobRequest{Name: execution.JobName().String()})
	r.must(err)
	return job
}

// environment is what a container has by value.
func environment(c *runpb.Container) map[string]string {
	env := map[string]string{}
	for _, v := range c.GetEnv() {
		env[v.GetName()] = v.GetValue()
	}
	return env
}

// TestFastStartReplacesPrefectsDefaultCommandOnly_Prefect21944 holds that whose command it is stays so, and
// that the flow run's word goes before the deployment's, and that before the installation's.
func TestFastStartReplacesPrefectsDefaultCommandOnly_Prefect21944(t *testing.T) {
	type m = map[string]any
	normal, fast := []string{"prefect", "flow-run", "execute"}, []string{"python", "-m", "prefect.engine"}
	for name, tt := range map[string]struct {
		installed           bool
		deployment, flowRun m
		args                bool
		want                []string
	}{
		"not asked for":                     {want: normal},
		"asked for by the installation":     {installed: true, want: fast},
		"asked for by the deployment":       {deployment: m{"pushpool_fast_start": true}, want: fast},
		"refused by the flow run":           {deployment: m{"pushpool_fast_start": true}, flowRun: m{"pushpool_fast_start": false}, want: normal},
		"refused by the deployment":         {installed: true, deployment: m{"pushpool_fast_start": false}, want: normal},
		"the default command, written down": {flowRun: m{"pushpool_fast_start": true, "command": "prefect flow-run execute"}, want: fast},
		"a command of one's own":            {flowRun: m{"pushpool_fast_start": true, "command": "sh -c 'prefect flow-run execute'"}, want: []string{"sh", "-c", "prefect flow-run execute"}},
		"arguments of one's own":            {flowRun: m{"pushpool_fast_start": true}, args: true, want: normal},
	} {
		for _, pool := range []string{"cloud-run-v2", "cloud-run"} {
			if tt.args && pool == "cloud-run" {
				continue
			}
			t.Run(name+", "+pool, func(t *testing.T) {
				r := newRig(t, func(c *launch.Config) { c.Options.FastStart = tt.installed })
				base := template()
				base["variables"].(m)["properties"].(m)["command"] = m{"type": "string"}
				if tt.args {
					base["job_configuration"].(m)["job_body"].(m)["template"].(m)["template"].(m)["containers"].([]any)[0].(m)["args"] = []any{"--help"}
				}
				if pool == "cloud-run" {
					data, err := os.ReadFile("testdata/base-job-template-cloud-run.json")
					r.must(err)
					base = nil
					r.must(json.Unmarshal(data, &base))
				}
				r.must(r.people.CreateWorkPool(t.Context(), "guide", pool, base))
				variables := m{"image": "flows"}
				for k, v := range tt.deployment {
					variables[k] = v
				}
				r.deployed = r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "guide", WorkPool: "guide", JobVariables: variables})
				fr := r.flowRun(prefect.NewFlowRun{JobVariables: tt.flowRun})
				r.must(r.dispatch(fr.ID))
				if diff := cmp.Diff(tt.want, r.job(fr.ID).GetTemplate().GetTemplate().GetContainers()[0].GetCommand()); diff != "" {
					t.Errorf("command (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestATemplateSeesTheEnvironmentThatItIsGiven holds that {{ $NAME }} is what the installation says, and
// nothing of the function's own environment.
func TestATemplateSeesTheEnvironmentThatItIsGiven(t *testing.T) {
	t.Setenv("OF_THE_FUNCTION", "hidden")
	r := newRig(t, func(c *launch.Config) { c.TemplateEnvironment = map[string]string{"TEAM": "etl"} })
	base := template()
	base["job_configuration"].(map[string]any)["env"] = map[string]any{"GIVEN": "{{ $TEAM }}", "OTHER": "<{{ $OF_THE_FUNCTION }}>"}
	r.must(r.people.CreateWorkPool(t.Context(), "guide", "cloud-run-v2", base))
	r.deployed = r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "guide", WorkPool: "guide", JobVariables: map[string]any{"image": "flows"}})
	fr := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(fr.ID))
	env := environment(r.job(fr.ID).GetTemplate().GetTemplate().GetContainers()[0])
	if diff := cmp.Diff([]string{"etl", "<>"}, []string{env["GIVEN"], env["OTHER"]}); diff != "" {
		t.Error(diff)
	}
}

// TestCloudRunExecutesNoFlowAgainUnasked_Prefect22620 holds that a killed container is started
// again within its execution only where the template asks for that, and never one whose exit
// code is that of a flow that failed.
func TestCloudRunExecutesNoFlowAgainUnasked_Prefect22620(t *testing.T) {
	type m = map[string]any
	v1 := func(t *testing.T) m {
		t.Helper()
		data, err := os.ReadFile("testdata/base-job-template-cloud-run.json")
		if err != nil {
			t.Fatal(err)
		}
		base := m{}
		if err := json.Unmarshal(data, &base); err != nil {
			t.Fatal(err)
		}
		return base
	}
	v2 := func(*testing.T) m {
		base := template()
		base["variables"].(m)["properties"].(m)["command"] = m{"type": "string"}
		return base
	}
	task := func(base m, path ...string) m {
		at := base["job_configuration"].(m)["job_body"].(m)
		for _, key := range path {
			at = at[key].(m)
		}
		return at
	}
	normal, fast := []string{"prefect", "flow-run", "execute"}, []string{"python", "-m", "prefect.engine"}
	for name, tt := range map[string]struct {
		pool    string
		base    func(*testing.T) m
		task    []string // where its template is
		given   any      // maxRetries there; nil: it says nothing
		retries int32
		command []string
	}{
		"cloud-run says nothing":    {"cloud-run", v1, []string{"spec", "template", "spec", "template", "spec"}, nil, 0, fast},
		"cloud-run asks for two":    {"cloud-run", v1, []string{"spec", "template", "spec", "template", "spec"}, 2, 2, normal},
		"cloud-run-v2 says nothing": {"cloud-run-v2", v2, []string{"template", "template"}, nil, 0, fast},
		"cloud-run-v2 asks for two": {"cloud-run-v2", v2, []string{"template", "template"}, 2, 2, normal},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			base := tt.base(t)
			if at := task(base, tt.task...); tt.given == nil {
				delete(at, "maxRetries")
			} else {
				at["maxRetries"] = tt.given
			}
			r.must(r.people.CreateWorkPool(t.Context(), "guide", tt.pool, base))
			r.deployed = r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "guide", WorkPool: "guide", JobVariables: m{"image": "flows"}})
			fr := r.flowRun(prefect.NewFlowRun{JobVariables: m{"pushpool_fast_start": true}})
			r.must(r.dispatch(fr.ID))
			got := r.job(fr.ID).GetTemplate().GetTemplate()
			if got.GetMaxRetries() != tt.retries {
				t.Errorf("%d retries, want %d", got.GetMaxRetries(), tt.retries)
			}
			if diff := cmp.Diff(tt.command, got.GetContainers()[0].GetCommand()); diff != "" {
				t.Errorf("command (-want +got):\n%s", diff)
			}
		})
	}
}

// labelled gives flow runs labels, as Prefect does where flows are traced.
type labelled struct {
	*prefect.Client
	labels map[string]any
}

func (l labelled) FlowRun(ctx context.Context, id string) (prefect.FlowRun, error) {
	fr, err := l.Client.FlowRun(ctx, id)
	fr.Labels = l.labels
	return fr, err
}

// TestTheTraceIsPassedOn holds that the container gets the trace that its flow run is part of.
func TestTheTraceIsPassedOn(t *testing.T) {
	const publishers = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	const flowRuns = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for name, tt := range map[string]struct {
		attributes map[string]string
		labels     map[string]any
		env        map[string]any
		want       string
	}{
		"none":                                 {},
		"the message's":                        {attributes: map[string]string{"traceparent": publishers}, want: publishers},
		"the flow run's own goes before it":    {attributes: map[string]string{"traceparent": publishers}, labels: map[string]any{"__OTEL_TRACEPARENT": flowRuns}, want: flowRuns},
		"a job variable goes before both":      {attributes: map[string]string{"traceparent": publishers}, env: map[string]any{"TRACEPARENT": "mine"}, want: "mine"},
		"a job variable of null takes it back": {attributes: map[string]string{"traceparent": publishers}, env: map[string]any{"TRACEPARENT": nil}},
		"what is not a trace is not passed on": {attributes: map[string]string{"traceparent": "nonsense"}},
		"labels of another kind say nothing":   {attributes: map[string]string{"traceparent": publishers}, labels: map[string]any{"__OTEL_TRACEPARENT": 1}, want: publishers},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *launch.Config) {
				c.Settings = []jobtemplate.Setting{{Name: "PREFECT_API_URL", Value: "https://prefect.example.com/api"}}
			})
			r.flowRuns = labelled{r.prefect, tt.labels}
			var variables map[string]any
			if tt.env != nil {
				variables = map[string]any{"env": tt.env}
			}
			fr := r.flowRun(prefect.NewFlowRun{JobVariables: variables})
			r.must(r.launcher.Dispatch(telemetry.WithMessageTrace(t.Context(), tt.attributes), r.holder(), fr.ID, r.now()))
			env := environment(r.job(fr.ID).GetTemplate().GetTemplate().GetContainers()[0])
			if env["TRACEPARENT"] != tt.want || env["PREFECT_API_URL"] != "https://prefect.example.com/api" {
				t.Errorf("TRACEPARENT %q, want %q; PREFECT_API_URL %q", env["TRACEPARENT"], tt.want, env["PREFECT_API_URL"])
			}
		})
	}
}
