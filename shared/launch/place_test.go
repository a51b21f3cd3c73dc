package launch_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestAnAllowedProjectIsLaunchedIn holds that a job runs in the project that the work pool's
// credentials name where the installation allows that, and is found there again.
func TestAnAllowedProjectIsLaunchedIn(t *testing.T) {
	for name, interrupted := range map[string]bool{"at once": false, "interrupted, with the ledger lost": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *launch.Config) { c.Projects = []string{project, "elsewhere"} })
			changed := template()
			changed["job_configuration"].(map[string]any)["credentials"] = map[string]any{"project": "elsewhere"}
			r.patch("/work_pools/etl", map[string]any{"base_job_template": changed})
			fr := r.flowRun(prefect.NewFlowRun{})
			if interrupted {
				r.answer("CreateJob", cloudruntest.After, status.Error(codes.Unavailable, "the service is unavailable"))
				r.fails(fr.ID)
				r.ledger.lose()
			}
			r.must(r.dispatch(fr.ID))
			r.launchedOnce(fr.ID)
			if x := r.executions(fr.ID)[0]; !strings.HasPrefix(x.Name, "projects/elsewhere/") {
				t.Errorf("launched as %s", x.Name)
			}
			if rec := r.record(fr.ID); rec.Project != "elsewhere" {
				t.Errorf("the ledger has project %q", rec.Project)
			}
		})
	}
}

// TestOurLabelsFindRoom holds that job variables with as many labels as Cloud Run takes do not
// keep ours out: by them an execution is recognised.
func TestOurLabelsFindRoom(t *testing.T) {
	r := newRig(t)
	labels := map[string]any{}
	for i := range 70 {
		labels[fmt.Sprintf("l%02d", i)] = "x"
	}
	fr := r.flowRun(prefect.NewFlowRun{JobVariables: map[string]any{"labels": labels}})
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
	x := r.executions(fr.ID)[0]
	if len(x.Labels) > 64 || x.Labels[cloudrun.LabelLaunch] == "" || x.Labels["l00"] != "x" {
		t.Errorf("%d labels: %v", len(x.Labels), x.Labels)
	}
}

// TestAPoolOfTheGuideIsServed holds that a work pool of type cloud-run (v1), with Prefect's own
// base job template, takes a flow run from the message to its end.
func TestAPoolOfTheGuideIsServed(t *testing.T) {
	r := newRig(t)
	data, err := os.ReadFile("testdata/base-job-template-cloud-run.json")
	r.must(err)
	var v1 map[string]any
	r.must(json.Unmarshal(data, &v1))
	r.must(r.people.CreateWorkPool(t.Context(), "guide", "cloud-run", v1))
	r.deployed = r.deploy(prefect.NewDeployment{FlowID: r.deployed.FlowID, Name: "guide", WorkPool: "guide", JobVariables: map[string]any{
		"image": "europe-docker.pkg.dev/p/flows/weather:1", "command": "sleep 600", "cpu": "2000m", "memory": "1Gi", "timeout": 900,
		"service_account_name": "flows@p.iam.gserviceaccount.com", "env": map[string]any{"CITY": "Berlin"},
	}})
	fr := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
	job := r.job(fr.ID)
	task := job.GetTemplate().GetTemplate()
	c := task.GetContainers()[0]
	env := environment(c)
	want := []any{
		"europe-docker.pkg.dev/p/flows/weather:1", []string{"sleep", "600"}, "2000m", "1Gi", 15 * time.Minute,
		"flows@p.iam.gserviceaccount.com", "Berlin", fr.ID, fr.ID,
	}
	got := []any{
		c.GetImage(), c.GetCommand(), c.GetResources().GetLimits()["cpu"], c.GetResources().GetLimits()["memory"], task.GetTimeout().AsDuration(),
		task.GetServiceAccount(), env["CITY"], env["PREFECT__FLOW_RUN_ID"], job.GetLabels()[cloudrun.LabelFlowRun],
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("job (-want +got):\n%s", diff)
	}
	r.set(fr.ID, flowrun.StateRunning, flowrun.StateCompleted)
	r.must(r.ended(fr.ID, flowrun.Outcome{Kind: flowrun.Succeeded}))
	if got, rec := r.state(fr.ID), r.record(fr.ID); got != "COMPLETED/Completed" || rec.Status != flowrun.StatusFinished || rec.Outcome != flowrun.Succeeded {
		t.Errorf("the flow run is %s, the ledger has %s, %s", got, rec.Status, rec.Outcome)
	}
}
