package main

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

type created = prefect.NewFlowRun

// situations are what a flow run can be in, with what makes them and the cause that is to be said.
var situations = []struct {
	name string
	make func(world) (flowRunID string)
	says string
}{
	{"work pool at its limit", func(w world) string {
		w.limit("", "concurrency_limit", 1, nil)
		w.runs("holds-the-slot", created{})
		w.create("earlier", created{})
		return w.create("waits", created{})
	}, `Its work pool "cloud-run" is at its limit of 1; 1 flow run goes before it.`},
	{"a queue of higher priority goes first", func(w world) string {
		w.api(http.MethodPost, "/work_pools/"+local.WorkPool+"/queues", map[string]any{"name": "urgent", "priority": 1})
		w.limit("", "concurrency_limit", 1, nil)
		w.runs("holds-the-slot", created{})
		id := w.create("waits", created{})
		w.create("later-and-urgent", created{WorkQueue: "urgent"})
		return id
	}, `Its work pool "cloud-run" is at its limit of 1; 1 flow run goes before it.`},
	{"work queue at its limit", func(w world) string {
		w.limit("/queues/default", "concurrency_limit", 1, nil)
		w.runs("holds-the-slot", created{})
		return w.create("waits", created{})
	}, `Its work queue "default" is at its limit of 1; 0 flow runs go before it.`},
	{"work pool paused", func(w world) string {
		w.limit("", "is_paused", true, false)
		return w.create("waits", created{})
	}, `Its work pool "cloud-run" is paused.`},
	{"work queue paused", func(w world) string {
		w.limit("/queues/default", "is_paused", true, false)
		return w.create("waits", created{})
	}, `Its work queue "default" is paused.`},
	{"deployment at its limit", func(w world) string {
		one := 1
		d, err := w.Prefect.CreateDeployment(w.ctx, prefect.NewDeployment{FlowID: w.guide.FlowID, Name: "single", WorkPool: local.WorkPool, ConcurrencyLimit: &one})
		if err != nil {
			w.Fatal(err)
		}
		w.runs("holds-the-slot", created{}, d.ID)
		return w.create("waits", created{}, d.ID)
	}, "Its deployment is at its limit of 1: 1 flow run of it is pending or running."},
	{"due tomorrow", func(w world) string {
		later := time.Now().Add(24*time.Hour + 30*time.Minute)
		return w.create("tomorrow", created{ScheduledTime: &later})
	}, "It is due at <time>, in 24 hours."},
	{"due and nobody told", func(w world) string {
		w.detached(local.TopicFlowRuns)
		return w.create("unheard", created{})
	}, "It is due since <time>, and nothing keeps it from starting."},
	{"no capacity at Cloud Run", func(w world) string {
		w.OnCall(func(method string, phase cloudruntest.Phase) error {
			if method == "CreateJob" && phase == cloudruntest.Before {
				return status.Error(codes.ResourceExhausted, "Quota exceeded for total allowable CPU per project per region.")
			}
			return nil
		})
		w.Cleanup(func() { w.OnCall(nil) })
		id := w.create("waits", created{})
		w.becomes(id, func(fr prefect.FlowRun) bool { return fr.StateName == "AwaitingCapacity" })
		w.detached(local.TopicFlowRuns) // so that it is not tried again
		return id
	}, "It waits for capacity at Cloud Run: "},
	{"the image does not arrive", func(w world) string { return w.create("big-image", created{}) },
		"It was launched; Cloud Run pulls the image and starts the container."},
	{"the job is not ready", func(w world) string { return w.create("new-image", created{}) },
		"Its job was created and is being made ready."},
	{"image missing, and nobody told", func(w world) string {
		w.detached(local.TopicExecutions)
		return w.create("no-image", created{JobVariables: map[string]any{"image": "example.com/missing"}})
	}, "It was launched, and its job cannot start: "},
	{"image missing, tried again", func(w world) string {
		w.Detach(local.TopicExecutions)
		id := w.create("no-image", created{JobVariables: map[string]any{"image": "example.com/missing"}})
		w.reaches(id, flowrun.StatePending)
		w.detached(local.TopicFlowRuns) // so that its second try waits for us
		w.Attach(local.TopicExecutions)
		return id
	}, "It is to be tried again: "},
	{"out of memory", func(w world) string {
		id := w.runs("hungry", created{})
		if err := w.CloudRun.ExhaustMemory(w.execution(id).Name); err != nil {
			w.Fatal(err)
		}
		return id
	}, "It ended CRASHED: The container reached its memory limit."},
	{"out of memory, and nobody told", func(w world) string {
		w.detached(local.TopicExecutions)
		id := w.runs("hungry", created{})
		if err := w.CloudRun.ExhaustMemory(w.execution(id).Name); err != nil {
			w.Fatal(err)
		}
		return id
	}, "Its container has ended: The container reached its memory limit."},
	{"exit code", func(w world) string {
		return w.create("exits", created{JobVariables: map[string]any{"command": "sh -c 'exit 3'"}})
	}, "It ended CRASHED: The container exited with code 3"},
	{"verdict not told yet", func(w world) string {
		id := w.runs("killed", created{})
		w.unanswered.Store(true)
		w.Cleanup(func() { w.unanswered.Store(false) })
		if err := w.CloudRun.Kill(w.execution(id).Name); err != nil {
			w.Fatal(err)
		}
		return id
	}, "Its launch is over (Finished), and Prefect has not been told yet: "},
	{"cancelled", func(w world) string {
		id := w.runs("unwanted", created{JobVariables: map[string]any{"pushpool_fast_start": true}}) // a flow that listens may be faster than the dispatcher
		if _, err := w.Prefect.SetState(w.ctx, id, prefect.Proposal{Type: flowrun.StateCancelling}); err != nil {
			w.Fatal(err)
		}
		return id
	}, "It ended CANCELLED"},
	{"being cancelled", func(w world) string {
		id := w.runs("unwanted", created{JobVariables: map[string]any{"pushpool_fast_start": true}})
		w.detached(local.TopicFlowRuns)
		if _, err := w.Prefect.SetState(w.ctx, id, prefect.Proposal{Type: flowrun.StateCancelling}); err != nil {
			w.Fatal(err)
		}
		return id
	}, "It is being cancelled: its execution is being stopped"},
	{"runs, ledger lost", func(w world) string {
		id := w.runs("survives", created{})
		if _, err := w.LoseLedger(w.ctx); err != nil {
			w.Fatal(err)
		}
		return id
	}, "It runs."},
	{"the execution outlives it", func(w world) string {
		id := w.runs("outlives", created{})
		w.detached(local.TopicFlowRuns)
		if _, err := w.Prefect.SetState(w.ctx, id, prefect.Proposal{Type: flowrun.StateCrashed, Message: "The heartbeat stopped."}); err != nil {
			w.Fatal(err)
		}
		return id
	}, "It ended CRASHED: The heartbeat stopped."},
	{"the job was deleted", func(w world) string {
		id := w.runs("deleted-job", created{})
		w.detached(local.TopicExecutions)
		job, _, _ := strings.Cut(w.execution(id).Name, "/executions/")
		if _, err := w.CloudRun.DeleteJob(w.ctx, &runpb.DeleteJobRequest{Name: job}); err != nil {
			w.Fatal(err)
		}
		return id
	}, "Prefect shows it as running, and its execution is not to be found."},
	{"deleted in Prefect while it runs", func(w world) string {
		id := w.runs("forgotten", created{})
		w.detached(local.TopicFlowRuns)
		w.api(http.MethodDelete, "/flow_runs/"+id, nil)
		return id
	}, "The flow run was deleted in Prefect while it was executed."},
	{"claimed by a worker", func(w world) string {
		later := time.Now().Add(24 * time.Hour) // so that the dispatcher does not take it before
		id := w.create("claimed-by-a-worker", created{ScheduledTime: &later})
		if _, err := w.Prefect.SetState(w.ctx, id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()}); err != nil {
			w.Fatal(err)
		}
		return id
	}, "Somebody else claimed it, a worker or another installation: this one writes nothing to it."},
	{"done", func(w world) string { return w.create("done", created{}) }, "It ended COMPLETED"},
}

// TestEachSituationIsExplained makes each for real on the local stack, one after the other.
func TestEachSituationIsExplained(t *testing.T) {
	w := startWorld(t)
	for _, s := range situations {
		t.Run(s.name, func(t *testing.T) {
			w := w.in(t)
			file := strings.NewReplacer(" ", "-", ",", "").Replace(s.name) + ".txt"
			w.explained(s.make(w), s.says, filepath.Join("testdata", "explain", file))
		})
	}
}
