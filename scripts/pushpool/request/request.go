// Package request publishes a run request and follows its flow run to the end.
package request

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Prefect is what a request asks of Prefect.
type Prefect interface {
	FindDeployment(ctx context.Context, nameOrID string) (prefect.Deployment, error)
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
	FlowRunStates(ctx context.Context, flowRunID string) ([]prefect.State, error)
}

// Topic is the topic flow-runs.
type Topic interface {
	Publish(ctx context.Context, data []byte, attributes map[string]string) (messageID string, err error)
}

// Fields are a run request's fields as somebody writes them on a command line. What is empty is left out.
type Fields struct {
	Deployment                   string
	Parameters, JobVariables     map[string]string // values: JSON, or text where they are none
	Tags                         []string
	Name, IdempotencyKey         string
	WorkQueue                    string
	ScheduledTime, Delay, Expiry string
}

// Encode returns the run request as JSON. The error names each field that is wrong and says
// what to write.
func (f Fields) Encode() ([]byte, error) {
	body := map[string]any{"deployment": f.Deployment}
	for key, value := range map[string]string{
		"name": f.Name, "idempotency_key": f.IdempotencyKey, "work_queue": f.WorkQueue,
		"scheduled_time": f.ScheduledTime, "delay": f.Delay, "expires_at": f.Expiry,
	} {
		if value != "" {
			body[key] = value
		}
	}
	if len(f.Tags) > 0 {
		body["tags"] = f.Tags
	}
	for key, values := range map[string]map[string]string{"parameters": f.Parameters, "job_variables": f.JobVariables} {
		if len(values) > 0 {
			body[key] = Values(values)
		}
	}
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	_, err = message.Decode(data, nil)
	return data, err
}

// Values reads each value as JSON, and as text where it is none: 3 is a number, "3" and
// three are strings.
func Values(texts map[string]string) map[string]any {
	values := map[string]any{}
	for key, text := range texts {
		if json.Valid([]byte(text)) {
			values[key] = json.RawMessage(text)
		} else {
			values[key] = text
		}
	}
	return values
}

// Check returns why the request would end in the dead-letter topic: no such deployment, or
// one of a work pool that is not served.
func Check(ctx context.Context, p Prefect, deployment string, workPools []string) error {
	d, err := p.FindDeployment(ctx, deployment)
	switch {
	case err != nil && flowrun.FaultOf(err) == flowrun.NotFound:
		return fmt.Errorf("deployment: Prefect has none that is called %q; write one that `prefect deployment ls` shows: %w", deployment, err)
	case err != nil:
		return err
	case !slices.Contains(workPools, d.WorkPoolName):
		return fmt.Errorf("deployment: %q runs in work pool %q, which this installation does not serve; deploy it to one of %s",
			deployment, d.WorkPoolName, strings.Join(workPools, ", "))
	}
	return nil
}

// Update is a step that a followed flow run took.
type Update struct {
	FlowRunID string            `json:"flow_run_id"`
	Name      string            `json:"name"`
	At        time.Time         `json:"at"`
	StateType flowrun.StateType `json:"state_type"`
	StateName string            `json:"state_name"`
	Message   string            `json:"message,omitempty"`
}

const (
	// interval is between two looks at Prefect.
	interval = time.Second
	// patience is how long a published request may take to become a flow run before a hint is due.
	patience = 30 * time.Second
)

// ErrNoFlowRun: no flow run has come of the request.
var ErrNoFlowRun = errors.New("no flow run has come of the request")

// Follow waits for the flow run of an idempotency key and calls each for every state that it
// takes, until it is final; it returns the last. The error is ErrNoFlowRun where after 30 s
// there is none, and context.DeadlineExceeded after the time out, which no call is cut off by.
func Follow(ctx context.Context, p Prefect, key string, timeout time.Duration, each func(Update)) (last Update, err error) {
	started := time.Now()
	var fr prefect.FlowRun
	seen := map[string]bool{}
	for {
		if fr.ID == "" {
			found, err := p.FlowRuns(ctx, prefect.Filter{IdempotencyKeys: []string{key}, Limit: 1})
			if err != nil {
				return last, err
			}
			if len(found) > 0 {
				fr = found[0]
			} else if time.Since(started) > patience {
				return last, ErrNoFlowRun
			}
		}
		if fr.ID != "" {
			states, err := p.FlowRunStates(ctx, fr.ID)
			if err != nil {
				return last, err
			}
			for _, s := range states {
				if seen[s.ID] {
					continue
				}
				seen[s.ID] = true
				last = Update{FlowRunID: fr.ID, Name: fr.Name, At: s.Timestamp, StateType: s.Type, StateName: s.Name, Message: s.Message}
				each(last)
			}
			if last.StateType.Terminal() {
				return last, nil
			}
		}
		left := timeout - time.Since(started)
		if left <= 0 {
			return last, context.DeadlineExceeded
		}
		select {
		case <-time.After(min(interval, left)):
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
}
