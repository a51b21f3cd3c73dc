package doctor

import (
	"context"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
)

// TestAnEndThatNobodyLoggedIsFound holds that a project where nothing ended is told from one
// whose entries do not come.
func TestAnEndThatNobodyLoggedIsFound(t *testing.T) {
	ended := make(chan struct{}, 1)
	server, err := cloudruntest.Start(cloudruntest.Options{
		Env: []string{"PATH=/usr/bin:/bin"}, Publish: func(context.Context, []byte) error { ended <- struct{}{}; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	client, err := cloudrun.New(t.Context(), server.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	job := &runpb.Job{Template: &runpb.ExecutionTemplate{Template: &runpb.TaskTemplate{
		Retries: &runpb.TaskTemplate_MaxRetries{}, Containers: []*runpb.Container{{Image: "image", Command: []string{"true"}}},
	}}}
	cloudrun.SetLabels(job, map[string]string{cloudrun.LabelInstall: "pushpool"})
	if err := client.CreateJob(t.Context(), cloudrun.Launch{Name: cloudrun.JobName{Project: "p", Region: "r", Job: "pp-a"}, Job: job}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the execution has not ended")
	}
	in := &operator.Installation{Config: config()}
	in.Clients.CloudRun = client
	g := cloud{sink: sink()}.start(t)

	g.now = time.Now // an entry may still come
	if got := g.audit(in)(t.Context()); len(got) != 1 || got[0].Status != OK {
		t.Errorf("at once: %+v", got)
	}
	g.now = func() time.Time { return time.Now().Add(time.Hour) }
	got := g.audit(in)(t.Context())
	if len(got) != 1 || got[0].Status != Problem || !strings.Contains(got[0].What, "pp-a-x ended 1h0m") || !strings.Contains(got[0].Mend, `resource.type="cloud_run_job"`) {
		t.Errorf("an hour later: %+v", got)
	}
}
