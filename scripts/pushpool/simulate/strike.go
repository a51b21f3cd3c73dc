package simulate

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// choose decides what strikes a call: nothing, mostly.
func (w *world) choose(r *rand.Rand, to service, f fault) Kind {
	chance, more := callChance, []weight[Kind](nil)
	if to == toCloudRun {
		chance = cloudRunChance
	}
	if strings.Contains(f.name, "|CreateJob ") {
		chance, more = creationChance, ofCreations
	}
	if w.quiet() || w.Calm || r.Float64() >= chance || !w.allowed(f.name) {
		return ""
	}
	return choose(r, w.raised(anywhere), w.raised(strikes[to]), w.raised(more))
}

// raised are the choices, those first that there is a storm of.
func (w *world) raised(choices []weight[Kind]) []weight[Kind] {
	if len(w.Storm) == 0 {
		return choices
	}
	choices = slices.Clone(choices)
	for n, c := range choices {
		if w.storm(c.what) {
			choices[n].n = stormy
		}
	}
	return choices
}

// longest is how long a container works at most; in a storm of stalls it ends before they do.
func (w *world) longest() time.Duration {
	if w.storm(Stall) {
		return 10 * time.Second
	}
	return w.Load.longest()
}

// storm reports whether there is a storm of faults of the kind.
func (w *world) storm(k Kind) bool { return slices.Contains(w.Storm, k) }

// chooseMessage decides what becomes of a message, or of its acknowledgement.
func (w *world) chooseMessage(r *rand.Rand, name string) Kind {
	if w.quiet() || w.Calm || r.Float64() >= messageChance || !w.allowed(name) {
		return ""
	}
	return choose(r, w.raised(ofMessages))
}

func (w *world) quiet() bool { return w.leaving || !time.Now().Before(w.faultsUntil) }

// allowed reports whether a fault may strike: while a schedule is shrunk, only some may.
func (w *world) allowed(name string) bool { return w.only == nil || w.only[name] }

// struck counts a fault.
func (w *world) struck(k Kind, between bool, t *task, name string) {
	w.byKind[k]++
	if between {
		w.between++
	}
	if t != nil {
		t.faulted = true
	}
	w.schedule = append(w.schedule, name)
	w.lastFault = time.Now()
	w.trace("FAULT %s at %s", k, name)
}

// strike lets the fault happen that was chosen for a call; false: it could not.
func (w *world) strike(f fault, t *task) bool {
	if f.kind == "" {
		return true
	}
	r := w.dice.of("strike " + f.name)
	fr := w.flowRuns[t.flowRun]
	happened := true
	switch f.kind {
	case Killed:
		t.inst.kill()
	case Deploy:
		t.inst.of.deploy()
	case LedgerLost:
		t.inst.of.ledger.lose()
		t.inst.of.lostAt = time.Now()
		for _, fr := range w.flowRuns {
			delete(fr.refused, t.inst.of) // with it, who proposed last
		}
	case ClockSkew:
		w.skew = between(r, -10*time.Second, 10*time.Second)
	case PrefectDown:
		w.downUntil = time.Now().Add(between(r, 2*time.Second, 20*time.Second))
	case UserPause:
		happened = w.pause(r)
	case UserCancel, UserRetry, UserEdit, UserDelete, ExecutionDeleted, ForeignWorker, SecondInstall:
		happened = w.act(f, r, fr)
	}
	if happened {
		w.struck(f.kind, f.before > 0, t, f.name)
	}
	return happened
}

// act does to a flow run what a person does, or somebody else on the pool: to the one that the
// struck call is about if it can, else to another.
func (w *world) act(f fault, r *rand.Rand, fr *flowRun) bool {
	can := map[Kind]func(*flowRun) bool{
		UserCancel: func(fr *flowRun) bool {
			return fr.state == flowrun.StateScheduled || fr.state == flowrun.StatePending || fr.state == flowrun.StateRunning || fr.state == flowrun.StatePaused
		},
		UserRetry: func(fr *flowRun) bool {
			return fr.state == flowrun.StateFailed || fr.state == flowrun.StateCrashed
		},
		UserEdit:         func(fr *flowRun) bool { return fr.state == flowrun.StateScheduled },
		UserDelete:       func(fr *flowRun) bool { return true },
		ExecutionDeleted: func(fr *flowRun) bool { return fr.ours && len(fr.live) > 0 },
		ForeignWorker: func(fr *flowRun) bool { // Prefect shows it nothing that a container runs again itself
			return fr.state == flowrun.StateScheduled && len(fr.live) == 0 && w.deployments[fr.deployment].pool == free
		},
		SecondInstall: func(fr *flowRun) bool {
			return fr.state == flowrun.StateScheduled && w.deployments[fr.deployment].pool == free
		},
	}[f.kind]
	ok := func(fr *flowRun) bool { return fr != nil && !fr.deleted && can(fr) }
	if !ok(fr) {
		fr = nil
		start := 0
		if len(w.labels) > 0 {
			start = r.IntN(len(w.labels))
		}
		for n := range w.labels {
			if o := w.flowRuns[w.labels[(start+n)%len(w.labels)]]; ok(o) {
				fr = o
				break
			}
		}
		if fr == nil {
			return false
		}
	}
	w.trace("%s: %s", f.kind, fr.label)
	switch f.kind {
	case UserCancel:
		fr.cancelled = time.Now()
		w.api(actor{}, http.MethodPost, "/flow_runs/"+fr.id+"/set_state", map[string]any{"state": map[string]any{"type": "CANCELLING"}})
	case UserRetry:
		w.api(actor{}, http.MethodPost, "/flow_runs/"+fr.id+"/set_state", map[string]any{"state": map[string]any{"type": "SCHEDULED", "name": "AwaitingRetry"}})
	case UserEdit:
		w.api(actor{}, http.MethodPatch, "/flow_runs/"+fr.id, map[string]any{"tags": []string{"edited"}, "job_variables": map[string]any{"region": second}})
	case UserDelete:
		w.api(actor{}, http.MethodDelete, "/flow_runs/"+fr.id, nil)
		fr.deleted = true
	case ExecutionDeleted:
		for _, c := range fr.alive() {
			w.deleteExecution(c)
		}
		w.excuse(fr.label, "its execution was deleted by hand")
	case ForeignWorker:
		w.work(fr, f.name)
	case SecondInstall:
		w.rival(fr)
	}
	return true
}

// pause pauses a work pool for some minutes.
func (w *world) pause(r *rand.Rand) bool {
	pool := []string{free, limited}[r.IntN(2)]
	if _, paused := w.pausedSince[pool]; paused {
		return false
	}
	w.pausedSince[pool] = time.Now()
	set := func(paused bool) {
		w.api(actor{}, http.MethodPatch, "/work_pools/"+pool, map[string]any{"is_paused": paused})
	}
	set(true)
	w.loop.at(time.Now().Add(between(r, 30*time.Second, 3*time.Minute)), "unpause "+pool, func() {
		delete(w.pausedSince, pool)
		set(false)
	})
	return true
}

// work is another worker on the pool: it claims the flow run and runs it somewhere else. In a storm
// that is over before the caller that was struck goes on.
func (w *world) work(fr *flowRun, name string) {
	toStart, toEnd := 5*time.Second, 20*time.Second
	if w.storm(ForeignWorker) {
		toStart, toEnd = 2*time.Second, 5*time.Second
	}
	set := func(state, then string, after time.Duration, next func()) {
		w.loop.at(time.Now().Add(after), "worker "+then+" "+name, func() {
			w.api(actor{worker: true}, http.MethodPost, "/flow_runs/"+fr.id+"/set_state", map[string]any{"state": map[string]any{"type": state}})
			if next != nil && !fr.deleted && fr.owner == nil {
				next()
			}
		})
	}
	status, answer := w.api(actor{worker: true}, http.MethodPost, "/flow_runs/"+fr.id+"/set_state", map[string]any{"state": map[string]any{"type": "PENDING"}})
	if status != http.StatusCreated || !strings.Contains(string(answer), `"status":"ACCEPT"`) {
		return
	}
	set("RUNNING", "starts", toStart, func() { set("COMPLETED", "ends", toEnd, nil) })
}

// rival is a second installation on the pool, that hears of the flow run first.
func (w *world) rival(fr *flowRun) {
	if len(w.installations) == 1 {
		w.install("rival", free)
	}
	w.pubsub.publish("rival-flow-runs", []byte(`{"flow_run_id":"`+fr.id+`"}`), nil)
}

// suspended has a person resume the flow run some minutes later, once Prefect shows that it waits.
func (w *world) suspended(fr *flowRun) {
	w.loop.at(time.Now().Add(between(w.dice.of("resume "+fr.label), 30*time.Second, 4*time.Minute)), "resume "+fr.label, func() {
		switch {
		case fr.deleted:
		case fr.state == flowrun.StateRunning: // its container has not come through to Prefect yet
			w.suspended(fr)
		default:
			w.api(actor{}, http.MethodPost, "/flow_runs/"+fr.id+"/resume", map[string]any{})
		}
	})
}

// webhookCalls carries the calls of Prefect's automation.
type webhookCalls struct{ w *world }

func (c webhookCalls) RoundTrip(req *http.Request) (*http.Response, error) { return c.w.webhook(req) }
