package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Load is what comes all at once, and what Cloud Run allows. A nil one is none.
type Load struct {
	// Mode is the installation's launch mode.
	Mode string
	// WritesPerMinute, MaxJobs and MaxExecutions are Cloud Run's quotas, which the installation knows.
	WritesPerMinute, MaxJobs, MaxExecutions int
	// RefusedFor is how long Cloud Run refuses every launch.
	RefusedFor time.Duration

	opens    time.Time
	launched []time.Time
	refused  int // launches
}

func (l *Load) quota() Load {
	if l == nil {
		return Load{}
	}
	return *l
}

// longest is how long a flow may work.
func (l *Load) longest() time.Duration {
	if l == nil {
		return 90 * time.Second
	}
	return 9 * time.Second
}

// environ is what the functions are told besides; the last one of a name counts.
func (l *Load) environ() []string {
	if l == nil {
		return nil
	}
	return []string{
		"REGIONS=" + region, "OVERFLOW_REGIONS=", "LAUNCH_MODE=" + l.Mode,
		"CLOUD_RUN_WRITES_PER_MINUTE=" + strconv.Itoa(l.WritesPerMinute), "CLOUD_RUN_MAX_JOBS=" + strconv.Itoa(l.MaxJobs),
	}
}

func launches(method string) bool {
	name := path.Base(method)
	return name == "CreateJob" || name == "UpdateJob"
}

// refuses reports whether Cloud Run refuses a launch. It is called in the loop, as answered is.
func (w *world) refuses(method string) bool {
	if w.Load == nil || !launches(method) || !time.Now().Before(w.Load.opens) {
		return false
	}
	w.Load.refused++
	return true
}

// answered notes what Cloud Run made of a launch.
func (w *world) answered(method string, err error) {
	switch {
	case w.Load == nil || !launches(method):
	case err == nil:
		w.Load.launched = append(w.Load.launched, time.Now())
	default:
		w.Load.refused++
	}
}

// Carried is what became of a load.
type Carried struct {
	World
	// Opens is from when on Cloud Run took launches.
	Opens time.Time
	// Launched are the times of launches that Cloud Run accepted, Refused the calls that it did not.
	Launched []time.Time
	Refused  int
	// Jobs is the most there were at a time.
	Jobs int
	// Waiting is how many flow runs had not ended when it was given up.
	Waiting int
}

// RunLoad lets the flow runs of a load come, and waits until all have ended.
func RunLoad(t *testing.T, o Options, most time.Duration) (c Carried) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		w := newWorld(o)
		defer w.close()
		start := time.Now()
		w.Load.opens = start.Add(w.Load.RefusedFor)
		for n := range w.FlowRuns {
			label := fmt.Sprintf("fr-%d", n)
			w.flowRuns[label] = &flowRun{label: label, deployment: "plain", ending: completes, monitored: newMonitored()}
			w.loop.at(start, "arrive "+label, func() {
				w.labels = append(w.labels, label)
				data, _ := json.Marshal(map[string]any{"deployment": "flow/plain", "name": label}) // of strings
				w.pubsub.publish("pushpool-flow-runs", data, nil)
			})
		}
		w.every(5*time.Second, "prefect's services", func() { w.prefect.Tick() })
		w.every(time.Minute, "cloud scheduler", w.sweep)
		w.every(5*time.Second, "count", func() { c.Jobs = max(c.Jobs, w.countJobs()) })
		checked := start
		w.loop.run(func() bool {
			if time.Since(checked) < time.Second {
				return false
			}
			checked = time.Now()
			c.Waiting = w.waiting()
			return c.Waiting == 0 || time.Since(start) > most
		})
		c.World = World{Seed: o.Seed, FlowRuns: len(w.labels), Steps: w.loop.steps, Violations: w.violations, Timeline: w.timeline, Final: map[flowrun.StateType]int{}}
		for _, label := range w.labels {
			c.Final[w.flowRuns[label].state]++
		}
		c.Opens, c.Launched, c.Refused = w.Load.opens, w.Load.launched, w.Load.refused
		slices.SortFunc(c.Launched, time.Time.Compare)
	})
	return c
}

// waiting counts the flow runs that have not ended.
func (w *world) waiting() (n int) {
	n = w.FlowRuns - len(w.labels)
	for _, label := range w.labels {
		if !w.flowRuns[label].state.Terminal() {
			n++
		}
	}
	return n
}

func (w *world) countJobs() (n int) {
	for token := ""; ; {
		page, err := w.cloudRun.ListJobs(context.Background(), &runpb.ListJobsRequest{Parent: "projects/" + project + "/locations/" + region, PageToken: token})
		if err != nil {
			panic(err) // it has no faults
		}
		if n, token = n+len(page.GetJobs()), page.GetNextPageToken(); token == "" {
			return n
		}
	}
}
