package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/pushpool/pushpool/scripts/pushpool/readevent"
)

type readEventCommand struct {
	File string `arg:"" help:"A file with a LogEntry of Cloud Run's audit log, or a Pub/Sub push that holds one; - for standard input."`
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
	e, err := readevent.Read(data)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	return out.Encode(e)
}
