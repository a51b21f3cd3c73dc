package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
)

// ending is how a flow run's container goes.
type ending string

const (
	completes   ending = "completes"
	fails       ending = "fails"
	exits       ending = "exits"    // non-zero, without a report
	signalled   ending = "signal"   // ended by a signal
	silent      ending = "silent"   // exits 0 without a report
	hangs       ending = "hangs"    // until the execution's timeout
	retriesOnce ending = "retries"  // fails once, and runs again in the same container
	suspends    ending = "suspends" // leaves, to be resumed by a person
)

var endings = []weight[ending]{
	{completes, 52}, {fails, 16}, {exits, 8}, {signalled, 4}, {silent, 4}, {hangs, 3}, {retriesOnce, 8}, {suspends, 5},
}

// deployments are how often a flow run is of which.
var deployments = []weight[string]{{"plain", 7}, {"engine", 2}, {"few", 2}, {"queued", 4}, {narrow, 2}}

// arrive plans a flow run: when and how it comes, and how its container goes.
func (w *world) arrive(n int, start time.Time) {
	label := fmt.Sprintf("fr-%d", n)
	if w.without[label] {
		return
	}
	r := w.dice.of("plan " + label)
	of := choose(r, deployments)
	if w.Crowd {
		of = "queued"
	}
	fr := &flowRun{label: label, deployment: of, ending: choose(r, endings), monitored: newMonitored()}
	w.flowRuns[label] = fr
	after := between(r, 0, arrivals)
	at := start.Add(after)
	if w.Crowd {
		after %= time.Second
		at = start.Add(time.Duration(n%crowds)*arrivals/crowds + after)
	}
	if w.scripted {
		fr.deployment, fr.ending = deployments[n%len(deployments)].what, endings[n%len(endings)].what
		at = start.Add(time.Duration(n) * 2500 * time.Millisecond)
		w.script(n, fr, at)
	}
	body := map[string]any{"name": label}
	how, ahead := r.IntN(10), between(r, 5*time.Second, 6*time.Minute)
	if w.Crowd {
		how, ahead = 3, -2*after
	}
	w.loop.at(at, "arrive "+label, func() {
		w.labels = append(w.labels, label)
		switch {
		case how < 3: // asked for by a message
			data, _ := json.Marshal(map[string]any{"deployment": "flow/" + fr.deployment, "name": label})
			w.pubsub.publish("pushpool-flow-runs", data, nil)
			return
		case how < 6:
			body["state"] = map[string]any{"type": "SCHEDULED", "state_details": map[string]any{"scheduled_time": time.Now().Add(ahead)}}
		}
		status, answer := w.api(actor{}, http.MethodPost, "/deployments/"+w.deployments[fr.deployment].id+"/create_flow_run", body)
		if status > 299 {
			panic(fmt.Sprintf("create %s: %d %s", label, status, answer))
		}
	})
}

// script has a person act on some flow runs.
func (w *world) script(n int, fr *flowRun, at time.Time) {
	kind := map[int]Kind{2: UserCancel, 5: UserCancel, 9: UserCancel, 12: ExecutionDeleted, 17: UserRetry, 20: UserDelete}[n]
	if kind == "" {
		return
	}
	w.loop.at(at.Add(40*time.Second), string(kind)+" "+fr.label, func() {
		w.act(fault{kind: kind, name: fr.label}, w.dice.of("script "+fr.label), fr)
	})
}

// container is what runs in an execution: it does over Prefect's API what a flow's engine does.
type container struct {
	w       *world
	fr      *flowRun
	id      string // the flow run's in Prefect; another one may have taken its place since it was deleted
	name    string
	launch  flowrun.LaunchID
	engine  bool // python -m prefect.engine: nobody watches for a cancellation
	ending  ending
	ctx     context.Context
	calls   int
	already bool // it has been RUNNING
}

// run is the container of every execution.
func (w *world) run(ctx context.Context, x cloudruntest.Execution, environ, argv []string) (exitCode, signal int) {
	c := &container{w: w, ctx: ctx, launch: flowrun.LaunchID(x.Labels[cloudrun.LabelLaunch])}
	for _, v := range environ {
		if id, ok := strings.CutPrefix(v, "PREFECT__FLOW_RUN_ID="); ok {
			c.fr, c.id = w.flowRuns[w.flowRun(id)], id
		}
	}
	if c.fr == nil {
		w.violate(Lost, "", "execution %s has no flow run that is known", x.Name)
		return 1, 0
	}
	c.engine = !strings.Contains(strings.Join(argv, " "), "flow-run execute")
	if w.loop.park(w.ctx, 0, "start of "+x.Name, func() { w.started(c) }) != nil {
		return 1, 0
	}
	exitCode, signal = c.life(between(w.dice.of(c.name), 3*time.Second, w.longest()))
	_ = w.loop.park(w.ctx, 0, "end of "+x.Name, func() { w.ended(c, exitCode, signal) }) // the world is over
	return exitCode, signal
}

// life is what the engine does; the result is how the container ends.
func (c *container) life(work time.Duration) (exitCode, signal int) {
	for {
		st := c.propose("RUNNING")
		switch {
		case st.stopped:
			return c.stopped()
		case st.failed:
			return 1, 0
		case st.status == "WAIT":
			if !c.sleep(time.Duration(st.delay)*time.Second + time.Millisecond) {
				return c.stopped()
			}
			continue
		case st.status != "ACCEPT":
			c.w.trace("%s leaves: %s", c.name, st.status)
			return 0, 0 // somebody else has it, or it is not to run any more
		}
		break
	}
	c.already = true
	for end := time.Now().Add(work); time.Now().Before(end); {
		if !c.sleep(min(10*time.Second, time.Until(end))) {
			return c.stopped()
		}
		if c.engine {
			continue
		}
		if st := c.read(); st == flowrun.StateCancelling {
			c.propose("CANCELLED")
			return 0, 0
		}
	}
	switch c.ending {
	case exits:
		return 1, 0
	case signalled:
		return 0, 9
	case silent:
		return 0, 0
	case hangs:
		<-c.ctx.Done()
		return c.stopped()
	case suspends:
		_ = c.w.loop.park(c.w.ctx, 0, c.name+" suspends", func() { c.w.suspended(c.fr) })
		c.call(http.MethodPost, "/flow_runs/"+c.id+"/set_state", map[string]any{"state": map[string]any{
			"type": "PAUSED", "name": "Suspended", "state_details": map[string]any{"pause_reschedule": true, "pause_timeout": time.Now().Add(time.Hour)},
		}})
		return 0, 0
	case fails:
		return c.final("FAILED")
	case retriesOnce:
		if c.fr.containers == 1 && !c.fr.retried {
			c.fr.retried = true
			c.call(http.MethodPatch, "/flow_runs/"+c.id, map[string]any{"empirical_policy": map[string]any{"retries": 1, "retry_delay": 5}})
			if st := c.propose("FAILED"); st.status == "REJECT" {
				c.ending = completes
				if !c.sleep(6 * time.Second) {
					return c.stopped()
				}
				return c.life(work / 2)
			}
			return 0, 0
		}
	}
	return c.final("COMPLETED")
}

// final reports the flow's end, as often as it takes: a container that cannot report exits with 1.
func (c *container) final(state string) (exitCode, signal int) {
	if st := c.propose(state); st.failed {
		return 1, 0
	}
	return 0, 0
}

// stopped is what SIGTERM does.
func (c *container) stopped() (exitCode, signal int) {
	if c.engine && c.already {
		c.ctx = context.WithoutCancel(c.ctx)
		c.call(http.MethodPost, "/flow_runs/"+c.id+"/set_state", map[string]any{"state": map[string]any{
			"type": "CRASHED", "message": "Execution was aborted by a termination signal.",
		}, "force": true})
		return 1, 0
	}
	return 0, 15
}

func (c *container) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// proposed is Prefect's answer to the container.
type proposed struct {
	status          string
	delay           int
	stopped, failed bool
}

func (c *container) propose(state string) proposed {
	status, body := c.call(http.MethodPost, "/flow_runs/"+c.id+"/set_state", map[string]any{"state": map[string]any{"type": state}})
	var answer struct {
		Status  string
		Details struct {
			Delay int `json:"delay_seconds"`
		}
	}
	switch {
	case c.ctx.Err() != nil:
		return proposed{stopped: true}
	case status == http.StatusNotFound:
		return proposed{status: "ABORT"} // deleted
	case status == 0 || json.Unmarshal(body, &answer) != nil:
		return proposed{failed: true}
	}
	return proposed{status: answer.Status, delay: answer.Details.Delay}
}

func (c *container) read() flowrun.StateType {
	_, body := c.call(http.MethodGet, "/flow_runs/"+c.id, nil)
	var fr struct {
		StateType flowrun.StateType `json:"state_type"`
	}
	_ = json.Unmarshal(body, &fr) // unknown is as good as RUNNING
	return fr.StateType
}

// call calls Prefect, again for as long as a client does while it is down; status 0: in vain.
func (c *container) call(method, path string, body any) (status int, answer []byte) {
	for range 8 {
		c.calls++
		name := fmt.Sprintf("%s %s #%d", c.name, method, c.calls)
		err := c.w.loop.park(c.ctx, between(c.w.dice.of(name), time.Millisecond, 50*time.Millisecond), name, func() {
			if !time.Now().Before(c.w.downUntil) {
				status, answer = c.w.api(actor{container: c}, method, path, body)
			}
		})
		if err != nil {
			return 0, nil
		}
		if status != 0 {
			return status, answer
		}
		if !c.sleep(10 * time.Second) {
			break
		}
	}
	_ = c.w.loop.park(c.w.ctx, 0, c.name+" gives up", func() { c.w.excuse(c.fr.label, "its container could not reach Prefect") })
	return 0, nil
}
