package simulate

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pushpool/pushpool/shared/prefect"
)

// TestFlowRunsOfAScheduleStartOnTime holds that once their deployment's lead is learned, 95 % of the flow runs that
// are due at a time are RUNNING within a second of it, though their containers take 2 to 20 s to start.
func TestFlowRunsOfAScheduleStartOnTime(t *testing.T) {
	const count, toLearn = 120, 20
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(Options{Seed: 1, Calm: true, readyAtMost: 15 * time.Second})
		defer w.close()
		w.skew = 0 // what the bar is about is not the clocks
		first := time.Now().Add(5 * time.Minute)
		for n := range count {
			label := fmt.Sprintf("fr-%d", n)
			w.flowRuns[label] = &flowRun{label: label, deployment: "plain", ending: completes, monitored: newMonitored()}
			due := first.Add(time.Duration(n) * 2 * time.Minute)
			w.loop.at(due.Add(-4*time.Minute), "laid ahead "+label, func() {
				w.labels = append(w.labels, label)
				w.api(actor{}, http.MethodPost, "/deployments/"+w.deployments["plain"].id+"/create_flow_run", map[string]any{
					"name": label, "state": map[string]any{"type": "SCHEDULED", "state_details": map[string]any{"scheduled_time": due}},
				})
			})
		}
		w.every(5*time.Second, "prefect's services", func() { w.prefect.Tick() })
		w.every(time.Minute, "cloud scheduler", w.sweep)
		end := first.Add(count*2*time.Minute + 5*time.Minute)
		w.loop.run(func() bool { return time.Now().After(end) })

		var late []time.Duration
		for n := range count {
			fr := w.flowRuns[fmt.Sprintf("fr-%d", n)]
			_, answer := w.api(actor{}, http.MethodGet, "/flow_runs/"+fr.id, nil)
			var read prefect.FlowRun
			if err := json.Unmarshal(answer, &read); err != nil || read.StartTime == nil {
				t.Fatalf("%s was never RUNNING: %s", fr.label, answer)
			}
			if n >= toLearn {
				late = append(late, read.StartTime.Sub(*read.ExpectedStartTime).Abs())
			}
		}
		slices.Sort(late)
		p95 := late[len(late)*95/100]
		t.Logf("|RUNNING - due| of %d flow runs: p50 %s, p95 %s, max %s", len(late), late[len(late)/2], p95, late[len(late)-1])
		if p95 >= time.Second || len(w.violations) > 0 {
			t.Errorf("p95 of |RUNNING - due| is %s; violations %v", p95, w.violations)
		}
	})
}
