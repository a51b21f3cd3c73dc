// Package message decodes and encodes what travels on the topic flow-runs.
package message

import "time"

// RunRequest asks for a new flow run of a deployment. Its JSON is described by
// run-request.schema.json (Schema).
type RunRequest struct {
	Deployment     string         // "flow/deployment", or the deployment's id in lower case
	Parameters     map[string]any // numbers are json.Number, so they keep their text
	JobVariables   map[string]any // likewise
	Tags           []string
	Name           string
	IdempotencyKey string // empty: the message's id
	WorkQueue      string
	ScheduledTime  *time.Time    // nil: now, or after Delay
	Delay          time.Duration // never together with ScheduledTime
	ExpiresAt      *time.Time
}

// Dispatch asks to look at a flow run now.
type Dispatch struct{ FlowRunID string }

// Wake tells that a slot of a work pool, of a deployment, or of both came free. One of them at
// least is set. Ready: nobody says that a slot came free; Prefect is to be asked once what is
// scheduled, which is how it sees that the pool's queues and deployments are served.
type Wake struct {
	WorkPool, DeploymentID string
	Ready                  bool
}

// PrefectEvent tells that a flow run changed state. It is a hint: read the flow run.
type PrefectEvent struct {
	ID        string // of the event, which is the id of the new state
	FlowRunID string
	StateType string // SCHEDULED, …; empty for events that are not about a state (heartbeats)
	StateName string
	// WorkPool (name) and DeploymentID are empty where the event does not say.
	WorkPool, DeploymentID string
	Occurred               time.Time // zero where the event does not say
}

type dispatchJSON struct {
	FlowRunID string `json:"flow_run_id"`
}

type wakeJSON struct {
	WorkPool     string `json:"work_pool,omitempty"`
	DeploymentID string `json:"deployment_id,omitempty"`
	Ready        bool   `json:"ready,omitempty"`
}

// EncodeDispatch returns the JSON that Decode reads as d.
func EncodeDispatch(d Dispatch) []byte { return encode(dispatchJSON(d)) }

// EncodeWake returns the JSON that Decode reads as w.
func EncodeWake(w Wake) []byte { return encode(wakeJSON(w)) }
