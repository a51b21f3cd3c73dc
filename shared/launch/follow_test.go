package launch_test

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// follower reads the topic lifecycle, and asks nobody.
type follower struct {
	mu   sync.Mutex
	told []step
}

// step is what a follower knows of a step.
type step struct {
	Type, FlowRunID, LaunchID, DeploymentID, WorkPool, Execution, Outcome string
}

func (f *follower) Publish(_ context.Context, data []byte, _ map[string]string) (string, error) {
	var e struct {
		Type, Subject string
		Data          struct {
			FlowRunID    string `json:"flow_run_id"`
			LaunchID     string `json:"launch_id"`
			DeploymentID string `json:"deployment_id"`
			WorkPool     string `json:"work_pool"`
			Execution    string `json:"execution"`
			Outcome      string `json:"outcome"`
		}
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, step{e.Type, e.Subject, e.Data.LaunchID, e.Data.DeploymentID, e.Data.WorkPool, e.Data.Execution, e.Data.Outcome})
	return "1", nil
}

// TestAFlowRunCanBeFollowedByItsLifecycle holds that the topic tells a flow run's way, a put
// back and a second launch included, without a question to Prefect or Cloud Run.
func TestAFlowRunCanBeFollowedByItsLifecycle(t *testing.T) {
	r := newRig(t)
	first := r.flowRun(prefect.NewFlowRun{})
	r.answer("CreateJob", cloudruntest.Before, status.Error(codes.ResourceExhausted, "no quota"))
	r.must(r.dispatch(first.ID))
	waiting := r.read(first.ID)
	r.later(2 * time.Minute)
	r.must(r.dispatch(first.ID))
	r.launchedOnce(first.ID)
	execution := r.record(first.ID).ExecutionName
	r.set(first.ID, flowrun.StateRunning, flowrun.StateCompleted)
	r.must(r.ended(first.ID, flowrun.Outcome{Kind: flowrun.Succeeded}))

	about := func(kind, launchID, execution, outcome string) step {
		return step{"io.pushpool.launch.v1." + kind, first.ID, launchID, r.deployed.ID, "etl", execution, outcome}
	}
	one, two := string(launchID(first)), string(launchID(waiting))
	want := []step{
		about("claimed", one, "", ""), about("put_back", one, "", ""),
		about("claimed", two, "", ""), about("launched", two, execution, ""), about("finished", two, execution, "succeeded"),
	}
	if diff := cmp.Diff(want, r.follower.told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}
