package jobtemplate

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/pushpool/pushpool/shared/flowrun"
)

func TestJobRefusesWhatCloudRunDoesNotHave(t *testing.T) {
	for _, c := range []struct{ name, body, act, what string }{
		{"an unknown field", `{"futureField":1}`, "use job_body.futureField", "no such field"},
		{"an unknown field far down", `{"template":{"template":{"containers":[{"image":"i"},{"image":"i","magic":true}]}}}`, "use job_body.template.template.containers[1].magic", "no such field"},
		{"even if it is null", `{"template":{"futureField":null}}`, "use job_body.template.futureField", "no such field"},
		{"text for a number", `{"template":{"taskCount":"many"}}`, "use job_body.template.taskCount", "a whole number"},
		{"a fraction for a number", `{"template":{"taskCount":1.5}}`, "use job_body.template.taskCount", "a whole number"},
		{"a number for text", `{"client":5}`, "use job_body.client", "a string"},
		{"text for a flag", `{"template":{"template":{"gpuZonalRedundancyDisabled":"yes"}}}`, "use job_body.template.template.gpuZonalRedundancyDisabled", "true or false"},
		{"an unknown enum value", `{"launchStage":"SECRET-STAGE"}`, "use job_body.launchStage", "one of LAUNCH_STAGE_UNSPECIFIED, UNIMPLEMENTED, PRELAUNCH, EARLY_ACCESS, ALPHA, BETA, GA, DEPRECATED"},
		{"no array", `{"template":{"template":{"containers":{"image":"i"}}}}`, "use job_body.template.template.containers", "an array of objects"},
		{"an array of something else", `{"template":{"template":{"containers":[{"args":["a",5]}]}}}`, "use job_body.template.template.containers[0].args", "an array of strings"},
		{"no object", `{"template":{"template":["x"]}}`, "use job_body.template.template", "an object"},
		{"nothing in an array", `{"template":{"template":{"containers":[null]}}}`, "use job_body.template.template.containers[0]", "an array of objects"},
		{"an object with other values", `{"labels":{"a":1}}`, "use job_body.labels", "an object of names and strings"},
		{"a bad duration", `{"template":{"template":{"timeout":"600"}}}`, "use job_body.template.template.timeout", `a duration such as "600s"`},
		{"two of a kind", `{"template":{"template":{"containers":[{"env":[{"name":"A","value":"SECRET","valueSource":{}}]}]}}}`, "use job_body.template.template.containers[0].env[0]", "exclude each other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Rendered
			unmarshalInto(t, []byte(c.body), &r.Body)
			job, err := r.Job()
			var e *flowrun.Error
			if !errors.As(err, &e) {
				t.Fatalf("job is %v, error %v", job, err)
			}
			if e.Fault != flowrun.Permanent || e.Hint == "" || e.Act != c.act || !strings.Contains(e.Err.Error(), c.what) {
				t.Errorf("error is %v, want %s: …%s…", err, c.act, c.what)
			}
			if strings.Contains(err.Error(), "SECRET") {
				t.Errorf("the error shows a value: %v", err)
			}
		})
	}
}

// What Prefect's variables do not know, and users write into job_body, arrives at Cloud Run.
func TestJobKeepsWhatATemplateAdds(t *testing.T) {
	in := defaultInput(t)
	in.BaseJobTemplate = json.RawMessage(`{"variables":{},"job_configuration":{"job_body":{"template":{"parallelism":2,"taskCount":4,"template":{
		"nodeSelector":{"accelerator":"nvidia-l4"},"gpuZonalRedundancyDisabled":true,
		"vpcAccess":{"networkInterfaces":[{"network":"n","subnetwork":"s","tags":["t"]}],"egress":"ALL_TRAFFIC"},
		"volumes":[{"name":"data","gcs":{"bucket":"b","readOnly":true}}],
		"containers":[
			{"image":"main","env":[],"resources":{"limits":{"nvidia.com/gpu":"1"}},"volumeMounts":[{"name":"data","mountPath":"/data"}],"dependsOn":["side"]},
			{"name":"side","image":"side"}]}}}}}`)
	r, err := Render(t.Context(), in, noLookup{})
	if err != nil {
		t.Fatal(err)
	}
	job, err := r.Job()
	if err != nil {
		t.Fatal(err)
	}
	execution := job.GetTemplate()
	task := execution.GetTemplate()
	for what, ok := range map[string]bool{
		"parallelism":         execution.GetParallelism() == 2,
		"task count":          execution.GetTaskCount() == 4,
		"accelerator":         task.GetNodeSelector().GetAccelerator() == "nvidia-l4",
		"zonal redundancy":    task.GetGpuZonalRedundancyDisabled(),
		"Direct VPC":          task.GetVpcAccess().GetNetworkInterfaces()[0].GetTags()[0] == "t",
		"volume":              task.GetVolumes()[0].GetGcs().GetBucket() == "b",
		"GPU":                 task.GetContainers()[0].GetResources().GetLimits()["nvidia.com/gpu"] == "1",
		"mount":               task.GetContainers()[0].GetVolumeMounts()[0].GetMountPath() == "/data",
		"start order":         task.GetContainers()[0].GetDependsOn()[0] == "side",
		"sidecar":             task.GetContainers()[1].GetImage() == "side",
		"sidecar's own empty": len(task.GetContainers()[1].GetEnv()) == 0,
	} {
		if !ok {
			t.Errorf("%s is lost: %v", what, job)
		}
	}
}
