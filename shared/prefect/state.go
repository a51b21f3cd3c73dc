package prefect

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// StateType is the type of a state: SCHEDULED, PENDING, RUNNING, COMPLETED, FAILED, CANCELLED,
// CRASHED, PAUSED or CANCELLING.
type StateType = flowrun.StateType

// AwaitingSlot is the name that Prefect gives the SCHEDULED state of a flow run that was
// proposed as PENDING and found no slot of its deployment. Its time is 30 s ahead.
const AwaitingSlot = "AwaitingConcurrencySlot"

// MayStartEarly reports whether the flow run waits for its own time and for nothing else: a
// retry's delay, a pause or a lack of capacity is not to be cut short.
func MayStartEarly(f FlowRun) bool {
	return (f.StateName == "Scheduled" || f.StateName == "Late") && f.RetryType() != RetryInProcess
}

// FreshFor is how long a flow run that was read counts as it was: no other worker gets one to its end sooner.
const FreshFor = 5 * time.Second

// eventWithin is how long after a flow run was created Prefect's event about it comes, mostly 0.2 s.
const eventWithin = 3 * time.Second

// Announced reports whether Prefect's event about the flow run's creation may still be under way.
// Who finds the flow run waiting meanwhile would only have it read twice.
func Announced(f FlowRun, now time.Time) bool { return f.Created.Add(eventWithin).After(now) }

// State is one state of a flow run.
type State struct {
	ID        string       `json:"id"`
	Type      StateType    `json:"type"`
	Name      string       `json:"name"`
	Message   string       `json:"message"`
	Timestamp time.Time    `json:"timestamp"`
	Details   StateDetails `json:"state_details"`
}

// StateDetails is what a state carries beside its type.
type StateDetails struct {
	// TransitionID is what the proposal carried that made this state.
	TransitionID string `json:"transition_id"`
	// ScheduledTime is also that of a PENDING state, copied from the SCHEDULED one before it.
	ScheduledTime *time.Time `json:"scheduled_time"`
	// PauseReschedule tells a suspended flow run, whose container has ended, from a paused one.
	PauseReschedule bool       `json:"pause_reschedule"`
	PauseTimeout    *time.Time `json:"pause_timeout"`
	// DeploymentConcurrencyLeaseID is that of the slot of the deployment's limit (3.x).
	DeploymentConcurrencyLeaseID string `json:"deployment_concurrency_lease_id"`
}

// Proposal is a state that Prefect is asked to give to a flow run.
type Proposal struct {
	Type StateType
	// Name defaults to the type's own: "Pending".
	Name, Message string
	// TransitionID, a UUID, makes the proposal recognisable: proposed again over the state that it
	// made, it is answered with REJECT and that state.
	TransitionID string
	// ScheduledTime is for SCHEDULED; nil means now. For PENDING it is before when the flow does
	// not start; nil means the time of the state before.
	ScheduledTime *time.Time
}

// Status is Prefect's answer to a proposal.
type Status string

// The answers. Only ACCEPT says that the flow run has the state proposed.
const (
	StatusAccept Status = "ACCEPT"
	// StatusReject comes with the state that the flow run has now: as before, or one that Prefect chose.
	StatusReject Status = "REJECT"
	// StatusWait: propose it again after Answer.Delay.
	StatusWait Status = "WAIT"
	// StatusAbort comes with the state that the flow run has.
	StatusAbort Status = "ABORT"
)

// Answer is what Prefect says to a proposal.
type Answer struct {
	Status Status
	// State is the flow run's state after the proposal.
	State  *State
	Reason string
	Delay  time.Duration
}

// SetState proposes a state; Prefect's rules decide, nothing is forced. A call that may have been
// carried out is not made again (Unclear: read the flow run); after 429 and 503 it is for 5 s, while ctx
// leaves time for a whole attempt. After that, what it was decided by has to be read again.
// Rules: https://github.com/PrefectHQ/prefect/blob/main/src/prefect/server/orchestration/core_policy.py
func (c *Client) SetState(ctx context.Context, flowRunID string, p Proposal) (Answer, error) {
	r, err := byID(fmt.Sprintf("propose %s for flow run %s", p.Type, flowRunID), "flow_runs", flowRunID)
	if err != nil {
		return Answer{}, err
	}
	r.method, r.path, r.once, r.within = http.MethodPost, r.path+"/set_state", true, FreshFor
	r.body = struct {
		State proposedState `json:"state"`
	}{p.wire()}
	var answer struct {
		Status  Status `json:"status"`
		State   *State `json:"state"`
		Details struct {
			Reason string  `json:"reason"`
			Delay  float64 `json:"delay_seconds"`
		} `json:"details"`
	}
	if _, err := c.do(ctx, r, &answer); err != nil {
		return Answer{}, err
	}
	switch answer.Status {
	case StatusAccept, StatusReject, StatusWait, StatusAbort:
	default:
		return Answer{}, &flowrun.Error{Act: r.act, Err: fmt.Errorf("the answer has the unknown status %q", answer.Status)}
	}
	return Answer{
		Status: answer.Status, State: answer.State, Reason: answer.Details.Reason,
		Delay: time.Duration(answer.Details.Delay * float64(time.Second)),
	}, nil
}

// proposedState leaves out what is not set: the server takes an explicit null for a value.
type proposedState struct {
	Type    StateType `json:"type"`
	Name    string    `json:"name,omitempty"`
	Message string    `json:"message,omitempty"`
	Details struct {
		TransitionID  string     `json:"transition_id,omitempty"`
		ScheduledTime *time.Time `json:"scheduled_time,omitempty"`
	} `json:"state_details"`
}

func (p Proposal) wire() proposedState {
	s := proposedState{Type: p.Type, Name: p.Name, Message: p.Message}
	s.Details.TransitionID, s.Details.ScheduledTime = p.TransitionID, p.ScheduledTime
	return s
}

// FlowRunStates returns all states that the flow run has had, oldest first. It is empty, not
// NotFound, for a flow run that does not exist.
func (c *Client) FlowRunStates(ctx context.Context, flowRunID string) ([]State, error) {
	r, err := byID("read the states of flow run "+flowRunID, "flow_run_states", flowRunID)
	if err != nil {
		return nil, err
	}
	r.path = "/flow_run_states/?flow_run_id=" + flowRunID
	var states []State
	if _, err := c.do(ctx, r, &states); err != nil {
		return nil, err
	}
	slices.SortStableFunc(states, func(a, b State) int {
		return cmp.Or(a.Timestamp.Compare(b.Timestamp), cmp.Compare(a.ID, b.ID))
	})
	return states, nil
}
