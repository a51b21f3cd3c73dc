package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
)

type readEventCommand struct {
	File string `arg:"" help:"A file with a LogEntry of Cloud Run's audit log, or a Pub/Sub push that holds one; - for standard input."`
}

// event is what the finalizer reads in an entry. Names are short, as in the Cloud Console.
type event struct {
	Execution string              `json:"execution"`
	Job       string              `json:"job"`
	Region    string              `json:"region"`
	FlowRunID *string             `json:"flow_run_id"` // null: it is of no flow run
	Outcome   flowrun.OutcomeKind `json:"outcome"`
	ExitCode  *int                `json:"exit_code"` // null: not told, or the container did not exit by itself
	Message   string              `json:"message"`
}

// Help shows examples.
func (readEventCommand) Help() string {
	return `Examples:

  pushpool read-event entry.json
  gcloud logging read 'protoPayload.methodName="/Jobs.RunJob"' --limit=1 --format=json | jq '.[0]' | pushpool read-event -`
}

// Run prints what the finalizer reads.
func (c *readEventCommand) Run(ctx context.Context) error {
	file := os.Stdin
	if c.File != "-" {
		var err error
		if file, err = os.Open(c.File); err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
	}
	data, err := unlessInterrupted(ctx, func() ([]byte, error) { return io.ReadAll(file) })
	if err != nil {
		return fmt.Errorf("read %s: %w", c.File, err)
	}
	e, err := readEvent(data)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	return out.Encode(e)
}

func readEvent(data []byte) (event, error) {
	entry, err := entryIn(data)
	if err != nil {
		return event{}, err
	}
	e, err := cloudrun.ReadEntry(entry)
	if err != nil {
		return event{}, err
	}
	o := e.Outcome
	if o.Kind == "" {
		return event{}, fmt.Errorf("the entry is a part of one that was split and does not tell how %s ended; the finalizer asks Cloud Run", e.Execution)
	}
	out := event{
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
