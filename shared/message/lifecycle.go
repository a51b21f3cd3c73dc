package message

import (
	"cmp"
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
	PutBack   = "put_back"  // SCHEDULED again, to be launched later
	Abandoned = "abandoned" // to be stopped
	Rejected  = "rejected"  // can never be launched as it stands
	Finished  = "finished"  // the execution ended
)

// Lifecycle is one step in the life of a launch, told on the topic lifecycle to whoever
// follows without asking Prefect.
type Lifecycle struct {
	Type         string // Claimed, …
	FlowRunID    string
	LaunchID     string
	WorkPool     string
	DeploymentID string
	Execution    string // full name; empty while there is none
	Reason       string // why, for a person; empty where the type says it all
	Time         time.Time
}

type lifecycleJSON struct {
	FlowRunID    string `json:"flow_run_id"`
	LaunchID     string `json:"launch_id"`
	WorkPool     string `json:"work_pool,omitempty"`
	DeploymentID string `json:"deployment_id,omitempty"`
	Execution    string `json:"execution,omitempty"`
	Reason       string `json:"reason,omitempty"`
}

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
		l.FlowRunID, l.LaunchID, l.WorkPool, l.DeploymentID, l.Execution, l.Reason,
	})
	if err != nil {
		panic(err) // structs of strings always encode
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
