package simulate

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// Counter is what a violation counts as.
type Counter string

// The counters. Each violation is of one of them.
const (
	// Lost: an accepted flow run that is not final and waits for nothing, or that was ended without a cause.
	Lost Counter = "lost"
	// Duplicated: a launch, or a flow run, with two containers; a flow run that ran again after its end.
	Duplicated Counter = "duplicated"
	// Overwritten: a state written that is not ours to write.
	Overwritten Counter = "overwritten"
	// OverLimit: more flow runs at once than a limit allows, one in a paused pool, proposals too often.
	OverLimit Counter = "over_limit"
	// Unhealed: what the reconciler did not mend in time, or cannot: a secret that got out.
	Unhealed Counter = "unhealed"
)

// Violation is an invariant that did not hold.
type Violation struct {
	Counter Counter
	FlowRun string // its label
	Text    string
	At      time.Time
}

func (v Violation) String() string {
	return fmt.Sprintf("%s %s: %s %s", v.At.Format("15:04:05.000"), v.Counter, v.FlowRun, v.Text)
}

// monitored is what is known of a flow run without asking the functions.
type monitored struct {
	state     flowrun.StateType
	name      string
	since     time.Time // when Prefect wrote that state
	scheduled []string  // ids of its SCHEDULED states
	launch    string    // transition id of the newest PENDING
	owner     *installation
	ours      bool // that PENDING is an installation's
	deleted   bool
	cancelled time.Time // a person asked for it
	excuses   []string  // why it may have ended CRASHED
	live      map[*container]bool
	returned  time.Time // when a container took a slot again that it had given up to wait
	astray    bool      // claimed by whoever asked for what may start before the ledger was lost
	starts    map[flowrun.LaunchID]int
	refused   map[*installation]time.Time // when a proposal was last in vain while it waited for a slot
}

// alive are its containers, in order.
func (m *monitored) alive() []*container {
	return slices.SortedFunc(maps.Keys(m.live), func(a, b *container) int { return cmp.Compare(a.name, b.name) })
}

func newMonitored() monitored {
	return monitored{refused: map[*installation]time.Time{}, live: map[*container]bool{}, starts: map[flowrun.LaunchID]int{}}
}

func (w *world) violate(c Counter, label, format string, args ...any) {
	v := Violation{c, label, fmt.Sprintf(format, args...), time.Now()}
	w.saidMu.Lock()
	w.violations = append(w.violations, v)
	w.saidMu.Unlock()
	w.trace("VIOLATION %s", v)
}

// excuse notes why a flow run may end CRASHED.
func (w *world) excuse(label, why string) {
	if fr := w.flowRuns[label]; fr != nil {
		fr.excuses = append(fr.excuses, why)
	}
}

// onState is called for each state that Prefect writes.
func (w *world) onState(c prefecttest.Change) {
	label := w.flowRun(c.FlowRunID)
	who := w.acting
	if label == "" {
		label = w.adopt(c)
	}
	fr := w.flowRuns[label]
	w.trace("STATE %s %s -> %s %q by %s", label, c.From, c.To, c.Name, w.who(who))
	if who.install != nil {
		w.checkOurs(fr, c, who)
	}
	if who.container != nil {
		w.checkContainer(fr, c, who.container)
	}
	switch c.To {
	case flowrun.StateScheduled:
		fr.scheduled = append(fr.scheduled, c.StateID)
		if who.install != nil && c.Name == prefect.AwaitingSlot && fr.name == prefect.AwaitingSlot { // it was waiting before
			if since, before := fr.refused[who.install]; before && time.Since(since) < slotInterval {
				w.violate(OverLimit, label, "was proposed for its deployment's slot twice within %s", time.Since(since).Round(time.Second))
			}
			fr.refused[who.install] = time.Now()
		}
	case flowrun.StatePending:
		fr.launch, fr.owner, fr.ours = c.TransitionID, who.install, who.install != nil
	}
	if c.From == flowrun.StateScheduled && c.To == flowrun.StateRunning {
		fr.returned = time.Now()
	}
	w.checkRecovery(fr, c.To)
	fr.state, fr.name, fr.since = c.To, c.Name, time.Now()
	w.lastChange = fr.since
	if c.To == flowrun.StatePending && who.install != nil {
		w.checkLimits(fr, who.task)
	}
}

// checkRecovery holds that, faults over, a flow run that waits for nobody goes on in time.
func (w *world) checkRecovery(fr *flowRun, to flowrun.StateType) {
	since := fr.since
	if w.faultsUntil.After(since) {
		since = w.faultsUntil
	}
	d := w.deployments[fr.deployment]
	waits := d.pool != free || d.limit > 0
	if took := time.Since(since); !waits && !w.leaving && took > settleTime+slowest+twoSweeps && fr.state != "" && !fr.deleted && !fr.state.Terminal() {
		w.violate(Unhealed, fr.label, "became %s after %s as %s", to, took.Round(time.Second), fr.state)
	}
}

// checkOurs holds what we write to what is ours to write.
func (w *world) checkOurs(fr *flowRun, c prefecttest.Change, who actor) {
	install := project + "/" + who.install.name
	bad := func(why string) {
		w.violate(Overwritten, fr.label, "%s wrote %s over %s: %s", who.install.name, c.To, c.From, why)
	}
	switch {
	case c.From == "": // a run request's
	case c.To == flowrun.StatePending:
		if c.From != flowrun.StateScheduled {
			bad("only a SCHEDULED flow run may be claimed")
		}
		if !slices.ContainsFunc(fr.scheduled, func(id string) bool {
			return c.TransitionID == string(flowrun.NewLaunchID(install, c.FlowRunID, id))
		}) {
			bad("nobody can compute this claim again")
		}
		if since, paused := w.pausedSince[w.deployments[fr.deployment].pool]; paused && who.task.began.Sub(since) > pauseStaleness {
			w.violate(OverLimit, fr.label, "was claimed by a message that came %s after its work pool was paused", who.task.began.Sub(since).Round(time.Second))
		}
	case c.Name == "AwaitingConcurrencySlot" || c.From == flowrun.StateScheduled && c.To == flowrun.StateCancelled: // Prefect's own answer to a claim
	case fr.owner != who.install:
		bad("it is not ours")
	case c.From == flowrun.StateCancelled && c.To == flowrun.StateCancelled: // said twice
	case c.From.Terminal() && (c.From != flowrun.StateCrashed || c.To != flowrun.StateCancelled || fr.cancelled.IsZero()):
		bad("it had ended")
	case c.To == flowrun.StateScheduled && c.From != flowrun.StatePending && c.From != flowrun.StateRunning:
		bad("it may not be put back from there")
	case c.To == flowrun.StateCrashed && c.From != flowrun.StatePending && c.From != flowrun.StateRunning && c.From != flowrun.StatePaused:
		bad("it waits for its next launch")
	case c.To == flowrun.StateCancelled && c.From != flowrun.StateCancelling && c.From != flowrun.StateCrashed:
		bad("nobody asked for it")
	case len(fr.live) > 0:
		bad("its container is alive")
	case c.To == flowrun.StateCrashed && len(fr.excuses) == 0:
		w.violate(Lost, fr.label, "was reported CRASHED without a cause")
	}
}

// checkContainer holds a container's reports to its flow run being its own.
func (w *world) checkContainer(fr *flowRun, c prefecttest.Change, k *container) {
	if c.To != flowrun.StateRunning {
		return
	}
	switch {
	case k.already: // it waited to try again itself; Prefect lets it, even where it was cancelled meanwhile
	case c.From.Terminal():
		w.violate(Duplicated, fr.label, "runs again after %s", c.From)
	case fr.launch != string(k.launch):
		w.violate(Duplicated, fr.label, "runs in a container of launch %s while launch %s holds it", k.launch, fr.launch)
	}
}

// slotInterval is the 30 s in which a waiting flow run may be proposed once, less what Prefect's
// clock can jump meanwhile.
const slotInterval = 9 * time.Second

// slotGrace is Prefect's, less what its clock can jump meanwhile.
const slotGrace = 4*time.Minute + 40*time.Second

// pauseStaleness is how long after a pause a message may come and its flow run still be claimed:
// the age that an answer about the pool may have. What came before goes on.
const pauseStaleness = 15 * time.Second

// checkLimits counts who holds a slot when a flow run is claimed. Prefect counts for a work pool
// and its queues only when it is asked for what may start: whoever ran again since, in a container
// that had waited, has taken the slot without asking. The ledger keeps those who ask apart: what
// is claimed across its loss is not counted.
func (w *world) checkLimits(fr *flowRun, by *task) {
	d := w.deployments[fr.deployment]
	inPool, inQueue, inDeployment := 0, 0, 0
	fr.astray = by != nil && by.listed.Before(by.inst.of.lostAt)
	for _, label := range w.labels {
		o := w.flowRuns[label]
		if o.deleted || o.state != flowrun.StatePending && o.state != flowrun.StateRunning {
			continue
		}
		of := w.deployments[o.deployment]
		// Prefect keeps a slot for a flow run that is PENDING for so long.
		lapsed := o.state == flowrun.StatePending && time.Since(o.since) > slotGrace
		inDeployment += b(of.name == d.name && !lapsed)
		if !o.astray && (o == fr || by == nil || !o.returned.After(by.listed)) {
			inPool += b(of.pool == d.pool)
			inQueue += b(of.pool == d.pool && of.queue == d.queue)
		}
	}
	switch {
	case d.pool == limited && inPool > atOnce:
		w.violate(OverLimit, fr.label, "is the %dth of %d at once in work pool %s", inPool, atOnce, limited)
	case d.queue != "" && inQueue > perQueue:
		w.violate(OverLimit, fr.label, "is the %dth of %d at once in work queue %s", inQueue, perQueue, d.queue)
	case d.limit > 0 && inDeployment > d.limit:
		w.violate(OverLimit, fr.label, "is the %dth of %d at once of deployment %s", inDeployment, d.limit, d.name)
	}
}

// started is called when a container begins.
func (w *world) started(c *container) {
	fr := c.fr
	fr.containers++
	c.name = fmt.Sprintf("container %s/%d", fr.label, fr.containers)
	c.ending = fr.ending
	if fr.containers > 1 && (c.ending == exits || c.ending == signalled || c.ending == suspends || c.ending == hangs) {
		c.ending = completes
	}
	w.trace("CONTAINER %s of launch %s starts (%s)", c.name, c.launch, c.ending)
	fr.starts[c.launch]++
	if n := fr.starts[c.launch]; n > 1 {
		w.violate(Duplicated, fr.label, "launch %s started %d containers", c.launch, n)
	}
	fr.live[c] = true
	of := 0 // a run request that is delivered once more makes another flow run after one was deleted
	for o := range fr.live {
		of += b(o.id == c.id)
	}
	if of > 1 {
		w.violate(Duplicated, fr.label, "has %d containers at once", of)
	}
}

// ended is called when a container is gone.
func (w *world) ended(c *container, exitCode, signal int) {
	w.trace("CONTAINER %s ends with %d, signal %d", c.name, exitCode, signal)
	delete(c.fr.live, c)
	if exitCode != 0 || signal != 0 || c.ending == silent || c.ctx.Err() != nil {
		w.excuse(c.fr.label, "its container ended without a report")
	}
}

// secret looks for secrets in what leaves the functions.
func (w *world) secret(where string, data []byte) {
	for _, s := range []string{apiKey, webhookSecret} {
		if bytes.Contains(data, []byte(s)) {
			w.violate(Unhealed, "", "a secret is in %s", where)
		}
	}
}

// onDeadLetter is called with each message that a function gave up on.
func (w *world) onDeadLetter(m *message) {
	w.secret("a dead letter", m.data)
	w.violate(Lost, "", "message %s was put to the dead letters: %s", m.name, m.attrs["reason"])
}

// onEntry is called with each audit entry.
func (w *world) onEntry(data []byte) {
	w.secret("an audit entry", data)
	if j := w.job(entryJob(data)); j != nil && j.noEntry {
		w.trace("the entry of job %s is not written", entryJob(data))
		return
	}
	w.pubsub.entry(data)
}

func entryJob(data []byte) string {
	var e struct {
		Resource struct {
			Labels map[string]string `json:"labels"`
		} `json:"resource"`
	}
	_ = json.Unmarshal(data, &e) // it is cloudruntest's
	return e.Resource.Labels["job_name"]
}

func (w *world) entryLabel(data []byte) string {
	if j := w.job(entryJob(data)); j != nil {
		return j.flowRun
	}
	return "?"
}

func (w *world) who(a actor) string {
	switch {
	case a.install != nil && a.task != nil:
		return a.task.name
	case a.install != nil:
		return a.install.name
	case a.container != nil:
		return a.container.name
	case a.worker:
		return "a worker"
	}
	return "Prefect or a person"
}
