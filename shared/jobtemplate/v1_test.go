package jobtemplate

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// v1Body is a body of the v1 API with something put into a container, the task, and the
// annotations and the rest of the execution.
func v1Body(container, task, annotations, execution string) string {
	return fmt.Sprintf(`{"apiVersion":"run.googleapis.com/v1","kind":"Job",
		"metadata":{"name":"n","annotations":{"run.googleapis.com/launch-stage":"BETA"}},
		"spec":{"template":{"metadata":{"annotations":{%s}},"spec":{%s"template":{"spec":{%s"containers":[{"image":"i"%s}]}}}}}}`,
		annotations, execution, task, container)
}

func translated(t *testing.T, v1 string) (Rendered, error) {
	t.Helper()
	body, _ := ordered(t, []byte(v1)).(*object)
	var r Rendered
	v2, err := translate(body, &r)
	r.Body, _ = plain(v2).(map[string]any)
	return r, err
}

func TestV1BodiesAreTranslated(t *testing.T) {
	for _, c := range []struct {
		name, v1, want string
		timeout        time.Duration
	}{
		{"a container", v1Body(`,"name":"c","command":["a"],"args":["b"],"workingDir":"/w"`, "", "", ""), `{"template":{"template":{"containers":[{"name":"c","image":"i","command":["a"],"args":["b"],"workingDir":"/w"}]}}}`, 0},
		{
			"environment", v1Body(`,"env":[{"name":"A","value":"1"},{"name":"B","valueFrom":{"secretKeyRef":{"name":"s","key":"latest"}}}]`, "", "", ""),
			`{"template":{"template":{"containers":[{"image":"i","env":[{"name":"A","value":"1"},{"name":"B","valueSource":{"secretKeyRef":{"secret":"s","version":"latest"}}}]}]}}}`, 0,
		},
		{
			"of resources only limits", v1Body(`,"resources":{"limits":{"cpu":"1000m","memory":null},"requests":{"cpu":"500m"}}`, "", "", ""),
			`{"template":{"template":{"containers":[{"image":"i","resources":{"limits":{"cpu":"1000m"}}}]}}}`, 0,
		},
		{
			"the task", v1Body("", `"serviceAccountName":"a@b","maxRetries":2,"timeoutSeconds":900,`, "", `"parallelism":3,"taskCount":5,`),
			`{"template":{"parallelism":3,"taskCount":5,"template":{"serviceAccount":"a@b","maxRetries":2,"timeout":"900s","containers":[{"image":"i"}]}}}`, 15 * time.Minute,
		},
		{"a time-out as the worker reads it", v1Body("", `"timeoutSeconds":"90",`, "", ""), `{"template":{"template":{"timeout":"90s","containers":[{"image":"i"}]}}}`, 90 * time.Second},
		{"null is nothing", v1Body(`,"command":null,"ports":null`, `"serviceAccountName":null,"timeoutSeconds":null,`, `"run.googleapis.com/vpc-access-connector":null`, ""), `{"template":{"template":{"containers":[{"image":"i"}]}}}`, 0},
		{
			"a VPC connector", v1Body("", "", `"run.googleapis.com/vpc-access-connector":"c","run.googleapis.com/vpc-access-egress":"all-traffic"`, ""),
			`{"template":{"template":{"vpcAccess":{"connector":"c","egress":"ALL_TRAFFIC"},"containers":[{"image":"i"}]}}}`, 0,
		},
		{
			"Direct VPC", v1Body("", "", `"run.googleapis.com/network-interfaces":"[{\"network\":\"n\",\"tags\":[\"t\"]}]"`, ""),
			`{"template":{"template":{"vpcAccess":{"networkInterfaces":[{"network":"n","tags":["t"]}]},"containers":[{"image":"i"}]}}}`, 0,
		},
		{
			"Cloud SQL", v1Body("", "", `"run.googleapis.com/cloudsql-instances":"p:r:a, p:r:b"`, ""),
			`{"template":{"template":{"volumes":[{"name":"cloudsql","cloudSqlInstance":{"instances":["p:r:a","p:r:b"]}}],
				"containers":[{"image":"i","volumeMounts":[{"name":"cloudsql","mountPath":"/cloudsql"}]}]}}}`, 0,
		},
		{
			"volumes", v1Body(`,"volumeMounts":[{"name":"s","mountPath":"/s"}]`, `"volumes":[
				{"name":"s","secret":{"secretName":"x","items":[{"key":"1","path":"f"}]}},
				{"name":"e","emptyDir":{"medium":"Memory","sizeLimit":"1Gi"}},
				{"name":"n","nfs":{"server":"h","path":"/p","readOnly":true}},
				{"name":"g","csi":{"driver":"gcsfuse.run.googleapis.com","readOnly":true,"volumeAttributes":{"bucketName":"b","mountOptions":"uid=1,gid=2"}}}],`, "", ""),
			`{"template":{"template":{"volumes":[
				{"name":"s","secret":{"secret":"x","items":[{"version":"1","path":"f"}]}},
				{"name":"e","emptyDir":{"medium":"MEMORY","sizeLimit":"1Gi"}},
				{"name":"n","nfs":{"server":"h","path":"/p","readOnly":true}},
				{"name":"g","gcs":{"bucket":"b","readOnly":true,"mountOptions":["uid=1","gid=2"]}}],
				"containers":[{"image":"i","volumeMounts":[{"name":"s","mountPath":"/s"}]}]}}}`, 0,
		},
		{
			"a GPU", v1Body(`,"resources":{"limits":{"nvidia.com/gpu":"1"}}`, `"nodeSelector":{"run.googleapis.com/accelerator":"nvidia-l4"},`, `"run.googleapis.com/gpu-zonal-redundancy-disabled":"true"`, ""),
			`{"template":{"template":{"nodeSelector":{"accelerator":"nvidia-l4"},"gpuZonalRedundancyDisabled":true,"containers":[{"image":"i","resources":{"limits":{"nvidia.com/gpu":"1"}}}]}}}`, 0,
		},
		{
			"other annotations", v1Body("", "", `"run.googleapis.com/execution-environment":"gen2","run.googleapis.com/encryption-key":"k","run.googleapis.com/client-name":"gcloud","team":"x"`, ""),
			`{"template":{"annotations":{"team":"x"},"template":{"executionEnvironment":"EXECUTION_ENVIRONMENT_GEN2","encryptionKey":"k","containers":[{"image":"i"}]}}}`, 0,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := translated(t, c.v1)
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Job()
			if err != nil {
				t.Fatal(err)
			}
			want := &runpb.Job{}
			if err := protojson.Unmarshal([]byte(c.want), want); err != nil {
				t.Fatal(err)
			}
			want.LaunchStage = 3 // BETA, as every body here has it
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if r.Timeout != c.timeout {
				t.Errorf("timeout %v, want %v", r.Timeout, c.timeout)
			}
		})
	}
}

func TestV1FieldsWithoutCounterpartAreRefused(t *testing.T) {
	const container = "job_body.spec.template.spec.template.spec.containers[0]"
	for _, c := range []struct{ name, v1, field string }{
		{"in a container", v1Body(`,"securityContext":{}`, "", "", ""), container + ".securityContext"},
		{"in its environment", v1Body(`,"env":[{"name":"A","valueFrom":{"configMapKeyRef":{}}}]`, "", "", ""), container + ".env[0].valueFrom.configMapKeyRef"},
		{"in the task", v1Body("", `"hostNetwork":true,`, "", ""), "job_body.spec.template.spec.template.spec.hostNetwork"},
		{"in the execution", v1Body("", "", "", `"backoffLimit":1,`), "job_body.spec.template.spec.backoffLimit"},
		{"as an annotation", v1Body("", "", `"run.googleapis.com/future":"SECRET"`, ""), "job_body.spec.template.metadata.annotations.run.googleapis.com/future"},
		{"as Knative's annotation", v1Body("", "", `"autoscaling.knative.dev/maxScale":"SECRET"`, ""), "job_body.spec.template.metadata.annotations.autoscaling.knative.dev/maxScale"},
		{"as a volume", v1Body("", `"volumes":[{"name":"v","configMap":{}}],`, "", ""), "job_body.spec.template.spec.template.spec.volumes[0].configMap"},
		{"as a driver", v1Body("", `"volumes":[{"name":"v","csi":{"driver":"SECRET"}}],`, "", ""), "job_body.spec.template.spec.template.spec.volumes[0].csi.driver"},
		{"as a selector", v1Body("", `"nodeSelector":{"disk":"SECRET"},`, "", ""), "job_body.spec.template.spec.template.spec.nodeSelector.disk"},
		{"a time-out that is none", v1Body("", `"timeoutSeconds":"SECRET",`, "", ""), "job_body.spec.template.spec.template.spec.timeoutSeconds"},
		{"at the top", `{"status":{}}`, "job_body.status"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := translated(t, c.v1)
			var e *flowrun.Error
			if !errors.As(err, &e) || e.Fault != flowrun.Permanent || e.Hint == "" || e.Act != "resolve "+c.field {
				t.Fatalf("error is %v, want one about %s", err, c.field)
			}
			if strings.Contains(err.Error(), "SECRET") {
				t.Errorf("the error shows a value: %v", err)
			}
		})
	}
}

func TestDefaultV1PoolGivesAV2Job(t *testing.T) {
	v := readVector(t, filepath.Join("testdata", "vectors", "166-v1-defaults.json"))
	in := v.input(t)
	in.DeploymentJobVariables = json.RawMessage(`{"image":"i","cpu":"1000m","memory":"1Gi","timeout":60,"service_account_name":"a@b",
		"vpc_connector_name":"c","prefect_api_key_secret":{"secret":"k","version":"1"},"keep_job":true,"env":{"A":"1"}}`)
	in.FlowRunJobVariables = nil
	r, err := Render(t.Context(), in, v)
	if err != nil {
		t.Fatal(err)
	}
	job, err := r.Job()
	if err != nil {
		t.Fatal(err)
	}
	task := job.GetTemplate().GetTemplate()
	c := task.GetContainers()[0]
	last := c.GetEnv()[len(c.GetEnv())-1]
	for what, ok := range map[string]bool{
		"image":           c.GetImage() == "i",
		"command":         strings.Join(c.GetCommand(), " ") == "prefect flow-run execute",
		"limits":          c.GetResources().GetLimits()["cpu"] == "1000m" && c.GetResources().GetLimits()["memory"] == "1Gi",
		"secret":          last.GetName() == "PREFECT_API_KEY" && last.GetValueSource().GetSecretKeyRef().GetSecret() == "k",
		"timeout":         task.GetTimeout().AsDuration() == time.Minute && r.Timeout == time.Minute,
		"service account": task.GetServiceAccount() == "a@b",
		"connector":       task.GetVpcAccess().GetConnector() == "c",
		"launch stage":    job.GetLaunchStage() == 3,
		"labels":          job.GetLabels()["prefect-io-flow-run-id"] == in.FlowRun.ID && job.GetTemplate().GetLabels()["prefect-io-flow-run-id"] == in.FlowRun.ID,
		"keep job":        r.KeepJob,
		"name":            r.Name == in.FlowRun.Name && job.GetName() == "",
	} {
		if !ok {
			t.Errorf("%s is wrong: %v", what, job)
		}
	}
}
