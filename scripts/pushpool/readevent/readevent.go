// Package readevent reads the audit log entry of an execution's end as the finalizer does.
package readevent

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
)

// Event is what the finalizer reads in an entry. Names are short, as in the Cloud Console.
type Event struct {
	Execution string              `json:"execution"`
	Job       string              `json:"job"`
	Region    string              `json:"region"`
	FlowRunID *string             `json:"flow_run_id"` // null: it is of no flow run
	Outcome   flowrun.OutcomeKind `json:"outcome"`
	ExitCode  *int                `json:"exit_code"` // null: not told, or the container did not exit by itself
	Message   string              `json:"message"`
}

// Read reads the end of an execution from what people have of its audit log entry: the entry itself,
// what gcloud prints, a push, a CloudEvent. The error wraps cloudrun.ErrNotCompletion where the entry
// tells of no execution's end.
func Read(data []byte) (Event, error) {
	entry, err := entryIn(data)
	if err != nil {
		return Event{}, err
	}
	e, err := cloudrun.ReadEntry(entry)
	if err != nil {
		return Event{}, err
	}
	o := e.Outcome
	if o.Kind == "" {
		return Event{}, fmt.Errorf("the entry is a part of one that was split and does not tell how %s ended; the finalizer asks Cloud Run", e.Execution)
	}
	out := Event{
		Execution: e.Execution.Execution, Job: e.Execution.Job, Region: e.Execution.Region,
		Outcome: o.Kind, Message: o.Message() + " " + e.Execution.Links(),
	}
	if e.FlowRunID != "" {
		out.FlowRunID = &e.FlowRunID
	}
	switch {
	case o.Kind == flowrun.Succeeded:
		out.ExitCode, out.Message = &o.ExitCode, o.Text
	case o.Kind == flowrun.ExitCode && o.ExitCode != 0:
		out.ExitCode = &o.ExitCode
	}
	return out, nil
}

// entryIn returns the LogEntry in what people have of one: the entry itself, what `gcloud
// logging read` or `gcloud pubsub subscriptions pull` print, a push, a CloudEvent, or the
// audit log's part of it alone.
func entryIn(data []byte) ([]byte, error) {
	for range 5 { // an entry is never wrapped deeper
		data = bytes.TrimPrefix(bytes.TrimSpace(data), []byte("\uFEFF"))
		if bytes.HasPrefix(data, []byte("[")) {
			var list []json.RawMessage
			if err := json.Unmarshal(data, &list); err != nil {
				return nil, fmt.Errorf("read a list of entries: %w", err)
			}
			if len(list) != 1 {
				return nil, fmt.Errorf("there are %d entries in the list; give one", len(list))
			}
			data = list[0]
			continue
		}
		var o map[string]json.RawMessage
		if err := json.Unmarshal(data, &o); err != nil {
			return nil, fmt.Errorf("read the event: it is no JSON object: %w", err)
		}
		inner := o["message"]
		switch {
		case o["protoPayload"] != nil || o["logName"] != nil:
			return data, nil
		case o["serviceName"] != nil && o["methodName"] != nil:
			return json.Marshal(map[string]any{"protoPayload": json.RawMessage(data)})
		case bytes.HasPrefix(inner, []byte("{")):
		case o["data_base64"] != nil:
			inner = o["data_base64"]
		default:
			inner = o["data"]
		}
		if inner == nil {
			return nil, errors.New("read the event: it is neither a LogEntry (no protoPayload) nor a Pub/Sub push (no message.data)")
		}
		var encoded string
		if json.Unmarshal(inner, &encoded) == nil {
			decoded, err := base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/", "=", "").Replace(encoded))
			if err != nil {
				return nil, fmt.Errorf("read the event: data is not base64: %w", err)
			}
			inner = decoded
		}
		data = inner
	}
	return nil, errors.New("read the event: it is wrapped too often")
}
