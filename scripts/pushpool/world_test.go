package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// world is a local stack in which situations are made. Nobody sweeps it, so that they last.
type world struct {
	*testing.T
	*local.Stack
	ctx   context.Context //nolint:containedctx // of the test that has the stack: it outlives each situation
	guide prefect.Deployment
	// unanswered has the functions get no answer to what they propose to Prefect, while it is true.
	unanswered *atomic.Bool
}

// startWorld starts the stack.
func startWorld(t *testing.T) world {
	t.Helper()
	w := world{T: t, ctx: t.Context(), unanswered: new(atomic.Bool)}
	stack, err := local.Start(t.Context(), local.Options{
		Embedded: true, EntryDelay: 100 * time.Millisecond, SweepEvery: time.Hour, Say: func(string, ...any) {},
		Delays: func(job string) (ready, start time.Duration) {
			switch {
			case strings.Contains(job, "big-image"):
				return 0, time.Hour
			case strings.Contains(job, "new-image"):
				return time.Hour, 0
			}
			return 0, 0
		},
		OnPrefectCall: func(r *http.Request) {
			for w.unanswered.Load() && strings.HasSuffix(r.URL.Path, "/set_state") {
				time.Sleep(20 * time.Millisecond)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stack.Close)
	w.Stack = stack
	if w.guide, err = stack.Prefect.FindDeployment(t.Context(), "weather/guide"); err != nil {
		t.Fatal(err)
	}
	return w
}

// in is the world for one situation, which ends with t.
func (w world) in(t *testing.T) world {
	w.T = t
	return w
}

// api calls Prefect as a person or a tool of Prefect's does.
func (w world) api(method, path string, body any) {
	w.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		w.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.ctx, method, w.APIURL()+path, bytes.NewReader(data))
	if err != nil {
		w.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= http.StatusBadRequest {
		w.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// limit changes a field of the work pool or, by its path, of a queue of it, until the situation is
// over. Both times the functions forget what they have read of it.
func (w world) limit(path, field string, set, unset any) {
	w.Helper()
	change := func(value any) {
		w.api(http.MethodPatch, "/work_pools/"+local.WorkPool+path, map[string]any{field: value})
		if _, err := w.LoseLedger(w.ctx); err != nil {
			w.Error(err)
		}
	}
	change(set)
	w.Cleanup(func() { change(unset) })
}

// detached delivers nothing of the topic until the situation is over.
func (w world) detached(topic string) {
	w.Detach(topic)
	w.Cleanup(func() { w.Attach(topic) })
}

// create makes a flow run of weather/guide, or of another deployment.
func (w world) create(name string, n prefect.NewFlowRun, deployment ...string) string {
	w.Helper()
	n.Name = name
	fr, _, err := w.Prefect.CreateFlowRun(w.ctx, append(deployment, w.guide.ID)[0], n)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { w.end(fr.ID) })
	return fr.ID
}

// runs makes a flow run that goes on until the situation is over.
func (w world) runs(name string, n prefect.NewFlowRun, deployment ...string) string {
	w.Helper()
	n.Parameters = map[string]any{"pause_seconds": 600}
	id := w.create(name, n, deployment...)
	w.reaches(id, flowrun.StateRunning)
	return id
}

func (w world) reaches(id string, typ flowrun.StateType) {
	w.Helper()
	w.becomes(id, func(fr prefect.FlowRun) bool { return fr.StateType == typ })
}

func (w world) becomes(id string, is func(prefect.FlowRun) bool) {
	w.Helper()
	within(w.T, "flow run "+id+" did not become what it should", func() bool {
		fr, err := w.Prefect.FlowRun(w.ctx, id)
		return err == nil && is(fr)
	})
}

// execution is the flow run's.
func (w world) execution(id string) cloudruntest.Execution {
	for _, x := range w.CloudRun.Executions() {
		if x.Labels[cloudrun.LabelFlowRun] == id {
			return x
		}
	}
	w.Fatalf("flow run %s has no execution", id)
	return cloudruntest.Execution{}
}

// end ends what there is of the flow run, whoever has it.
func (w world) end(id string) {
	if fr, err := w.Prefect.FlowRun(w.ctx, id); err == nil && !fr.StateType.Terminal() {
		w.api(http.MethodPost, "/flow_runs/"+id+"/set_state", map[string]any{"force": true, "state": map[string]any{"type": "CANCELLED"}})
	}
	for _, x := range w.CloudRun.Executions() {
		if x.Labels[cloudrun.LabelFlowRun] == id {
			_ = w.CloudRun.Kill(x.Name)
		}
	}
}

// explained holds that pushpool explain says the cause, and to the letter what the file has; at its end, what a sweep
// would do about it, where that is something.
func (w world) explained(id, cause, file string) {
	w.Helper()
	want, err := os.ReadFile(file)
	if err != nil && !*update {
		w.Fatal(err)
	}
	var got string
	run := func(args ...string) string {
		cmd := exec.CommandContext(w.ctx, "pushpool", args...)
		cmd.Env = append(append(os.Environ(), w.Environ()...), "EVENT_GRACE=1s") // which a sweep leaves events
		out, err := cmd.CombinedOutput()
		if err != nil {
			w.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	explain := func() bool {
		got = run("explain", id)
		for line := range strings.Lines(run("sweep", "--dry-run")) {
			if repair, ok := strings.CutPrefix(line, id); ok { // what is left of other situations is not held here
				got += "sweep     " + strings.Join(strings.Fields(repair), " ") + "\n"
			}
		}
		got = masked(got)
		return strings.Contains(got, "\n\n"+cause) && (*update || got == string(want))
	}
	for deadline := time.Now().Add(15 * time.Second); !explain(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("cause: %s (-want +got)\n%s", cause, cmp.Diff(string(want), got))
		}
	}
	if *update {
		time.Sleep(3 * time.Second) // for what comes a moment later
		if !explain() {
			w.Fatalf("the cause did not last: %s", got)
		}
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			w.Fatal(err)
		}
	}
}
