package prefecttest

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// state is a state of a flow run.
type state struct {
	ID        string            `json:"id"`
	Type      flowrun.StateType `json:"type"`
	Name      string            `json:"name"`
	Timestamp time.Time         `json:"timestamp"`
	Message   text              `json:"message"`
	Data      json.RawMessage   `json:"data"`
	Details   stateDetails      `json:"state_details"`
}

type stateDetails struct {
	FlowRunID         text            `json:"flow_run_id"`
	TaskRunID         text            `json:"task_run_id"`
	ChildFlowRunID    text            `json:"child_flow_run_id"`
	ScheduledTime     *time.Time      `json:"scheduled_time"`
	CacheKey          text            `json:"cache_key"`
	CacheExpiration   *time.Time      `json:"cache_expiration"`
	Deferred          bool            `json:"deferred"`
	UntrackableResult bool            `json:"untrackable_result"`
	PauseTimeout      *time.Time      `json:"pause_timeout"`
	PauseReschedule   bool            `json:"pause_reschedule"`
	PauseKey          text            `json:"pause_key"`
	RunInputKeyset    json.RawMessage `json:"run_input_keyset"`
	RefreshCache      *bool           `json:"refresh_cache"`
	Retriable         *bool           `json:"retriable"`
	TransitionID      text            `json:"transition_id"`
	TaskParametersID  text            `json:"task_parameters_id"`
	Traceparent       text            `json:"traceparent"`
	LeaseID           text            `json:"deployment_concurrency_lease_id"`
}

// UnmarshalJSON implements json.Unmarshaler: unknown details are ignored, unlike fields elsewhere.
func (d *stateDetails) UnmarshalJSON(data []byte) error {
	type plain stateDetails
	return json.Unmarshal(data, (*plain)(d))
}

// proposal is a state as clients propose it.
type proposal struct {
	Type    flowrun.StateType `json:"type"`
	Name    string            `json:"name"`
	Message text              `json:"message"`
	Data    json.RawMessage   `json:"data"`
	Details stateDetails      `json:"state_details"`
}

func (s *Server) proposed(p proposal) (*state, error) {
	names := map[flowrun.StateType]string{
		flowrun.StateScheduled: "Scheduled", flowrun.StatePending: "Pending", flowrun.StateRunning: "Running",
		flowrun.StateCompleted: "Completed", flowrun.StateFailed: "Failed", flowrun.StateCancelled: "Cancelled",
		flowrun.StateCrashed: "Crashed", flowrun.StatePaused: "Paused", flowrun.StateCancelling: "Cancelling",
	}
	name, ok := names[p.Type]
	if !ok {
		return nil, invalid("state.type", "Input should be a type of state")
	}
	if id := p.Details.TransitionID; id != "" && uuid.Validate(string(id)) != nil {
		return nil, invalid("state.state_details.transition_id", "Input should be a valid UUID")
	}
	st := &state{Type: p.Type, Name: p.Name, Message: p.Message, Data: p.Data, Details: p.Details}
	if st.Name == "" {
		st.Name = name
	}
	if st.Type == flowrun.StateScheduled && st.Details.ScheduledTime == nil {
		now := s.now()
		st.Details.ScheduledTime = &now
	}
	return st, nil
}

// The answers to a proposal.
const (
	accept = "ACCEPT"
	reject = "REJECT"
	wait   = "WAIT"
	abort  = "ABORT"
)

// transition is a proposal on its way through the rules.
type transition struct {
	server   *Server
	run      *flowRun
	initial  *state // nil for a new flow run
	proposed *state // what will be written; nil: nothing
	status   string
	reason   string
	delay    int
	after    []func() // what is done if a state is written
}

func (t *transition) reject(replacement *state, reason string) {
	t.status, t.proposed, t.reason = reject, replacement, reason
}

func (t *transition) abort(reason string) { t.status, t.proposed, t.reason = abort, nil, reason }

// rule is one rule of Prefect's CoreFlowPolicy; an empty list of types means all.
type rule struct {
	from, to []flowrun.StateType
	before   func(*transition)
	minimal  bool   // also applies to forced proposals and new flow runs
	only     string // the version that has it; empty: both
}

var terminal = []flowrun.StateType{flowrun.StateCompleted, flowrun.StateFailed, flowrun.StateCrashed, flowrun.StateCancelled}

// rules are in Prefect's order: https://github.com/PrefectHQ/prefect/blob/main/src/prefect/server/orchestration/core_policy.py
var rules = []rule{
	{before: keepLease, only: "3"},
	{before: sameTransition},
	{from: terminal, before: leaveTerminal},
	{from: terminal, to: []flowrun.StateType{flowrun.StateCompleted}, before: keepResult, minimal: true, only: "3"},
	{from: []flowrun.StateType{flowrun.StateCancelling}, before: onlyCancelled},
	{from: []flowrun.StateType{flowrun.StateCancelled}, before: onlyCancelled, only: "2"},
	{from: []flowrun.StateType{flowrun.StateScheduled, flowrun.StatePaused}, to: []flowrun.StateType{flowrun.StateCancelling}, before: nothingToCancel, minimal: true},
	{
		from: []flowrun.StateType{flowrun.StatePending, flowrun.StateCancelling, flowrun.StateRunning, flowrun.StateCancelled},
		to:   []flowrun.StateType{flowrun.StatePending}, before: pendingOnce,
	},
	{from: []flowrun.StateType{flowrun.StatePending}, to: []flowrun.StateType{flowrun.StateRunning}, before: slotAtRunning, only: "3"},
	{to: []flowrun.StateType{flowrun.StatePending}, before: takeSlot, only: "3"},
	{to: []flowrun.StateType{flowrun.StateScheduled}, before: onlyScheduledLate},
	{to: []flowrun.StateType{flowrun.StatePaused}, before: pause},
	{from: []flowrun.StateType{flowrun.StatePaused}, before: resume},
	{from: []flowrun.StateType{flowrun.StateScheduled}, to: []flowrun.StateType{flowrun.StatePending}, before: copyScheduledTime},
	{from: []flowrun.StateType{flowrun.StateScheduled, flowrun.StatePending}, to: []flowrun.StateType{flowrun.StateRunning}, before: waitForTime},
	{from: []flowrun.StateType{flowrun.StateRunning}, to: []flowrun.StateType{flowrun.StateFailed}, before: retryInProcess},
}

// propose puts a proposal through the rules and writes what they leave of it.
func (s *Server) propose(run *flowRun, proposed *state, force bool) *transition {
	t := &transition{server: s, run: run, initial: run.State, proposed: proposed, status: accept}
	for _, r := range rules {
		applies := t.initial != nil && (r.minimal || !force) && (r.only == "" || (r.only == "2") == s.v2()) &&
			(r.from == nil || slices.Contains(r.from, t.initial.Type)) && (r.to == nil || slices.Contains(r.to, proposed.Type))
		if !applies {
			continue
		}
		r.before(t)
		if t.status != accept {
			break
		}
	}
	if t.proposed != nil {
		for _, f := range t.after {
			f()
		}
		s.setState(run, t.proposed, t.status)
		s.emit(run, t.initial, t.proposed)
	}
	return t
}

func keepLease(t *transition) {
	if t.proposed.Details.LeaseID == "" {
		t.proposed.Details.LeaseID = t.initial.Details.LeaseID
	}
}

func sameTransition(t *transition) {
	if id := t.proposed.Details.TransitionID; id != "" && id == t.initial.Details.TransitionID {
		t.reject(nil, "This run has already made this state transition.")
	}
}

func leaveTerminal(t *transition) {
	to := t.proposed.Type
	switch {
	case to == flowrun.StateCancelling || to == flowrun.StatePaused || to == flowrun.StateCrashed:
		t.abort(fmt.Sprintf("Run is already in terminal state %s.", t.initial.Type))
	case t.initial.Type == flowrun.StateCompleted && !to.Terminal() && persisted(t.initial.Data):
		t.reject(nil, "Run is already COMPLETED.")
	case to == flowrun.StateScheduled && t.run.DeploymentID == "":
		t.abort("Cannot reschedule a run without an associated deployment.")
	case !to.Terminal():
		t.after = append(t.after, func() {
			t.run.Policy.Resuming, t.run.Policy.PauseKeys, t.run.Policy.RetryType = false, []string{}, ""
			if to == flowrun.StateScheduled {
				t.run.Policy.RetryType = "reschedule"
			}
		})
	}
}

func keepResult(t *transition) {
	if t.initial.Type == flowrun.StateCompleted && persisted(t.initial.Data) && !persisted(t.proposed.Data) {
		t.reject(nil, "Cannot overwrite a COMPLETED state that carries persisted result data with one that does not.")
	}
}

// persisted reports whether a state's data refers to a stored result.
func persisted(data json.RawMessage) bool {
	var d map[string]any
	return json.Unmarshal(data, &d) == nil && len(d) > 0 && d["type"] != "unpersisted"
}

func onlyCancelled(t *transition) {
	if t.proposed.Type != flowrun.StateCancelled {
		t.reject(nil, "Cannot transition flows that are cancelling to a state other than Cancelled.")
	}
}

func nothingToCancel(t *transition) {
	cancelled := &state{Type: flowrun.StateCancelled, Name: "Cancelled"}
	switch {
	case t.initial.Type == flowrun.StateScheduled && t.run.InfrastructurePID == "", t.initial.Name == "Resuming":
		t.reject(cancelled, "Scheduled flow run has no infrastructure to terminate.")
	case t.initial.Type == flowrun.StatePaused && t.initial.Details.PauseReschedule:
		t.reject(cancelled, "Suspended flow run has no infrastructure to terminate.")
	}
}

func pendingOnce(t *transition) {
	if t.initial.Type == flowrun.StatePending && t.initial.Name != t.proposed.Name && t.proposed.Name != "Pending" && !t.server.v2() {
		t.proposed.Details.ScheduledTime = t.initial.Details.ScheduledTime
		return
	}
	t.abort(fmt.Sprintf("This run is in a %s state and cannot transition to a PENDING state.", t.initial.Type))
}

func onlyScheduledLate(t *transition) {
	switch {
	case t.proposed.Name != "Late":
	case t.initial.Type != flowrun.StateScheduled:
		t.reject(nil, "Only scheduled flows can be marked late.")
	case t.initial.Name == "Late":
		t.reject(nil, "This flow run is already marked late.")
	}
}

func pause(t *transition) {
	verb := "pause"
	if t.proposed.Name == "Suspended" {
		verb = "suspend"
	}
	key := string(t.proposed.Details.PauseKey)
	if key == "" {
		key = uuid.NewString()
	}
	switch {
	case t.initial.Type != flowrun.StateRunning:
		t.reject(nil, "Cannot "+verb+" flows that are not currently running.")
	case slices.Contains(t.run.Policy.PauseKeys, key):
		t.reject(nil, "This "+verb+" has already fired.")
	case t.proposed.Details.PauseReschedule && t.run.DeploymentID == "":
		t.abort("Cannot " + verb + " flows without a deployment.")
	default:
		t.after = append(t.after, func() { t.run.Policy.PauseKeys = append(t.run.Policy.PauseKeys, key) })
	}
}

func resume(t *transition) {
	to := t.proposed.Type
	timeout := t.initial.Details.PauseTimeout
	switch {
	case to != flowrun.StateRunning && to != flowrun.StateScheduled && to != flowrun.StateCancelling && !to.Terminal():
		t.reject(nil, fmt.Sprintf("This run cannot transition to the %s state from the %s state.", to, t.initial.Type))
	case to != flowrun.StateCancelling && timeout != nil && timeout.Before(t.server.now()):
		t.reject(&state{Type: flowrun.StateFailed, Name: "Failed", Message: "The flow was paused and never resumed."},
			"The flow run pause has timed out and can no longer resume.")
	default:
		t.after = append(t.after, func() { t.run.Policy.Resuming = true })
	}
}

func copyScheduledTime(t *transition) {
	if t.proposed.Details.ScheduledTime == nil {
		t.proposed.Details.ScheduledTime = t.initial.Details.ScheduledTime
	}
}

func waitForTime(t *transition) {
	at := t.initial.Details.ScheduledTime
	if at == nil {
		return
	}
	if d := int(math.Round(at.Sub(t.server.now()).Seconds())); d > 0 {
		t.status, t.proposed, t.delay, t.reason = wait, nil, d, "Scheduled time is in the future"
	}
}

func retryInProcess(t *transition) {
	p := &t.run.Policy
	if p.Retries == nil || t.run.RunCount > *p.Retries {
		t.after = append(t.after, func() { p.RetryType = "" })
		return
	}
	at := t.server.now()
	if p.RetryDelay != nil {
		at = at.Add(time.Duration(*p.RetryDelay * float64(time.Second)))
	}
	t.after = append(t.after, func() { p.Resuming, p.PauseKeys, p.RetryType = false, []string{}, "in_process" })
	t.reject(&state{
		Type: flowrun.StateScheduled, Name: "AwaitingRetry", Message: t.proposed.Message, Data: t.proposed.Data,
		Details: stateDetails{ScheduledTime: &at, LeaseID: t.initial.Details.LeaseID},
	}, "Retrying")
}
