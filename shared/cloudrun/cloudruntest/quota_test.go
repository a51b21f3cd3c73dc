package cloudruntest_test

import (
	"testing"

	"cloud.google.com/go/run/apiv2/runpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
)

// TestQuotasRefuseWithTheirOwnCode holds that each quota refuses what is beyond it and
// nothing else, in its own region only, and that what was refused had no effect.
func TestQuotasRefuseWithTheirOwnCode(t *testing.T) {
	other := "projects/p/locations/other"
	for name, c := range map[string]struct {
		options cloudruntest.Options
		beyond  func(t *testing.T, r rig) error
	}{
		"writes": {cloudruntest.Options{WritesPerMinute: 2, ReadsPerMinute: 10}, func(t *testing.T, r rig) error {
			if _, err := r.jobs.GetJob(t.Context(), &runpb.GetJobRequest{Name: parent + "/jobs/j1"}); err != nil {
				t.Errorf("a read beside them: %v", err)
			}
			return r.create(t.Context(), "j3", job("sleep 60"))
		}},
		"reads": {cloudruntest.Options{ReadsPerMinute: 1}, func(t *testing.T, r rig) error {
			get := &runpb.GetJobRequest{Name: parent + "/jobs/j1"}
			if _, err := r.jobs.GetJob(t.Context(), get); err != nil {
				t.Errorf("the first read: %v", err)
			}
			_, err := r.jobs.GetJob(t.Context(), get)
			return err
		}},
		"jobs":       {cloudruntest.Options{MaxJobs: 2}, func(t *testing.T, r rig) error { return r.create(t.Context(), "j3", job("sleep 60")) }},
		"executions": {cloudruntest.Options{MaxExecutions: 2}, func(t *testing.T, r rig) error { return r.create(t.Context(), "j3", job("sleep 60")) }},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, c.options)
			for _, id := range []string{"j1", "j2"} {
				if err := r.create(t.Context(), id, job("sleep 60")); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.beyond(t, r); status.Code(err) != codes.ResourceExhausted {
				t.Fatalf("beyond the quota: %v", err)
			}
			if n := len(r.Executions()); n != 2 {
				t.Errorf("%d executions", n)
			}
			_, err := r.jobs.CreateJob(t.Context(), &runpb.CreateJobRequest{Parent: other, JobId: "j", Job: job("sleep 60")})
			if err != nil {
				t.Errorf("in another region: %v", err)
			}
		})
	}
}
