package cloudruntest_test

import (
	"testing"

	"cloud.google.com/go/run/apiv2/runpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
)

// TestATokenStartsOneExecution holds the rules of start_execution_token, step by step: the last
// token starts nothing again, one that was used before is refused, and so is the last one once an
// execution was started without it (magic-modules 19060, floci-gcp's notes).
func TestATokenStartsOneExecution(t *testing.T) {
	r := start(t, cloudruntest.Options{})
	name := parent + "/jobs/j"
	if err := r.create(t.Context(), "j", job("true")); err != nil {
		t.Fatal(err)
	}
	update := func(token, etag string) error {
		j := job("true")
		j.Name, j.Etag, j.CreateExecution = name, etag, &runpb.Job_StartExecutionToken{StartExecutionToken: token}
		_, err := r.jobs.UpdateJob(t.Context(), &runpb.UpdateJobRequest{Job: j})
		return err
	}
	for _, step := range []struct {
		what       string
		do         func() error
		want       codes.Code
		executions int
	}{
		{"create it once more", func() error { return r.create(t.Context(), "j", job("true")) }, codes.AlreadyExists, 1},
		{"update with its token", func() error { return update("x", "") }, codes.OK, 1},
		{"update with another", func() error { return update("y", "") }, codes.OK, 2},
		{"update with the first", func() error { return update("x", "") }, codes.AlreadyExists, 2},
		{"update what was changed since", func() error { return update("z", `"older"`) }, codes.Aborted, 2},
		{"run it", func() error {
			_, err := r.jobs.RunJob(t.Context(), &runpb.RunJobRequest{Name: name})
			return err
		}, codes.OK, 3},
		{"update with the last token, which was dropped", func() error { return update("y", "") }, codes.AlreadyExists, 3},
	} {
		if got := status.Code(step.do()); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
		if got := len(r.Executions()); got != step.executions {
			t.Errorf("%s: then there are %d executions, want %d", step.what, got, step.executions)
		}
	}
}
