package sweep_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"cloud.google.com/go/run/apiv2/runpb"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
)

// TestALongListTakesAReadForEachPage counts, at an emulator that returns more at once where it is
// asked for more, what the tests of this package take the list of a thousand jobs to cost.
func TestALongListTakesAReadForEachPage(t *testing.T) {
	const most = 1000
	var reads atomic.Int32
	emulator, err := cloudruntest.Start(cloudruntest.Options{
		Run: func(ctx context.Context, _ cloudruntest.Execution, _, _ []string) (int, int) {
			<-ctx.Done()
			return 0, 0
		},
		Intercept: func(_ context.Context, method string, phase cloudruntest.Phase, _ any) error {
			if method != "CreateJob" && phase == cloudruntest.Before {
				reads.Add(1)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer emulator.Close()
	client, err := cloudrun.New(t.Context(), emulator.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	var g errgroup.Group
	g.SetLimit(16)
	for i := range most {
		g.Go(func() error {
			job := &runpb.Job{Template: &runpb.ExecutionTemplate{Template: &runpb.TaskTemplate{
				Containers: []*runpb.Container{{Image: "image", Command: []string{"sleep"}}},
			}}}
			name := cloudrun.JobName{Project: project, Region: region, Job: fmt.Sprintf("pp-%d", i)}
			return client.CreateJob(t.Context(), cloudrun.Launch{Name: name, Job: job})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	asked := 0
	asking := client.Asking(func(context.Context, string, string) error { asked++; return nil })
	alive := 0
	for job, err := range asking.Jobs(t.Context(), project, region) {
		if err != nil {
			t.Fatal(err)
		}
		if job.Alive() {
			alive++
		}
	}
	if got := int(reads.Load()); alive != most || got != pages(most) || asked != got {
		t.Errorf("%d jobs alive, %d reads, %d asked for, want %d and %d", alive, got, asked, most, pages(most))
	}
	reads.Store(0)
	executions := 0
	for _, err := range client.Executions(t.Context(), project, region) {
		if err != nil {
			t.Fatal(err)
		}
		executions++
	}
	if got := int(reads.Load()); executions != most || got != pages(most) {
		t.Errorf("%d executions, %d reads, want %d and %d", executions, got, most, pages(most))
	}
}
