package message

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"net/url"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
)

// lifecyclePrefix of the type of a lifecycle event; v1 is the version of its data.
const lifecyclePrefix = "io.pushpool.launch.v1."

// Types of a Lifecycle event.
const (
	Claimed   = "claimed"   // Prefect accepted our PENDING
	Launched  = "launched"  // the execution exists
	PutBack   = "put_back"  // to be SCHEDULED again, and launched later
	Abandoned = "abandoned" // to be stopped
	Rejected  = "rejected"  // can never be launched as it stands
	Finished  = "finished"  // the execution ended
)

// Lifecycle is one step in the life of a launch, told on the topic lifecycle to whoever
// follows without asking Prefect. Its JSON is described by lifecycle.schema.json (LifecycleSchema).
type Lifecycle struct {
	Type          string // Claimed, …
	FlowRunID     string
	LaunchID      string
	WorkPool      string
	DeploymentID  string
	Region        string    // empty where nothing was tried in one
	Execution     string    // full name; empty while there is none
	Outcome       string    // of Finished: a flowrun.OutcomeKind
	Reason        string    // why, for a person; empty where the type says it all
	ScheduledTime time.Time // of PutBack: when it is to be launched again
	Time          time.Time
}

type lifecycleJSON struct {
	FlowRunID     string    `json:"flow_run_id"`
	LaunchID      string    `json:"launch_id"`
	WorkPool      string    `json:"work_pool,omitempty"`
	DeploymentID  string    `json:"deployment_id,omitempty"`
	Region        string    `json:"region,omitempty"`
	Execution     string    `json:"execution,omitempty"`
	Outcome       string    `json:"outcome,omitempty"`
	Reason        string    `json:"reason,omitempty"`
	ScheduledTime time.Time `json:"scheduled_time,omitzero"`
}

//go:embed lifecycle.schema.json
var lifecycleSchemaJSON []byte

// LifecycleSchema returns the JSON Schema (draft 2020-12) of a lifecycle event.
func LifecycleSchema() []byte { return bytes.Clone(lifecycleSchemaJSON) }

// EncodeLifecycle returns l as a structured CloudEvent 1.0 of the installation with the given
// name. Its type is io.pushpool.launch.v1.TYPE, its subject the flow run's id. Its id is made
// of launch id and type, so a step that is told twice is the same event for its readers.
func EncodeLifecycle(install string, l Lifecycle) []byte {
	e := event.New(event.CloudEventsVersionV1)
	e.SetID(cmp.Or(l.LaunchID, l.FlowRunID) + "." + l.Type)
	e.SetSource((&url.URL{Host: "pushpool", Path: "/" + install}).String())
	e.SetType(lifecyclePrefix + l.Type)
	e.SetSubject(l.FlowRunID)
	e.SetTime(l.Time.UTC())
	err := e.SetData(event.ApplicationJSON, lifecycleJSON{
		l.FlowRunID, l.LaunchID, l.WorkPool, l.DeploymentID, l.Region, l.Execution, l.Outcome, l.Reason, l.ScheduledTime.UTC(),
	})
	if err != nil {
		panic(err) // structs of strings and times always encode
	}
	return encode(e)
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // nothing encoded here can fail
	}
	return data
}
