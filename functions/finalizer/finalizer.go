// Package finalizer settles the flow runs whose executions ended.
package finalizer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/settle"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// Settler settles flow runs.
type Settler interface {
	Ended(ctx context.Context, holder, flowRunID string, e settle.Ending) error
}

// Executions reads executions from Cloud Run.
type Executions interface {
	Execution(ctx context.Context, name cloudrun.ExecutionName) (cloudrun.Execution, error)
}

// Ledger finds a flow run by its execution.
type Ledger interface {
	ByExecution(ctx context.Context, name string) (r flowrun.Record, found bool, err error)
}

// Finalizer handles deliveries from the topic executions: Cloud Run's audit log entries.
type Finalizer struct {
	settler    Settler
	executions Executions
	ledger     Ledger
}

// Handle acts on one delivery. What no redelivery can mend is marked delivery.Unprocessable.
func (f *Finalizer) Handle(ctx context.Context, m delivery.Delivery) error {
	entry, err := cloudrun.ReadEntry(m.Data)
	if errors.Is(err, cloudrun.ErrNotCompletion) {
		telemetry.Add(ctx, slog.String("ignored", err.Error()))
		return nil
	}
	if err != nil {
		return delivery.Unprocessable(fmt.Errorf("message: %w; let the log sink publish LogEntries as they are", err))
	}
	telemetry.Add(ctx, slog.String("execution", entry.Execution.String()))
	if !strings.HasPrefix(entry.Execution.Job, cloudrun.JobPrefix) {
		telemetry.Add(ctx, slog.String("ignored", "the job's name does not begin with "+cloudrun.JobPrefix))
		return nil
	}
	flowRunID, ending, err := f.find(ctx, entry)
	if err != nil {
		return err
	}
	if flowRunID == "" {
		telemetry.Add(ctx, slog.String("ignored", "neither labels nor ledger name a flow run; if there is one, the sweep settles it"))
		return nil
	}
	telemetry.Add(ctx, slog.String(telemetry.FlowRunID, flowRunID), slog.String("outcome", string(ending.Outcome.Kind)))
	err = f.settler.Ended(ctx, "finalizer/"+uuid.NewString(), flowRunID, ending)
	if flowrun.FaultOf(err) == flowrun.Permanent {
		return delivery.Unprocessable(err)
	}
	return err
}

// find returns the flow run and the launch that the execution was for, and how it ended:
// by the entry, and where that does not tell, by the execution itself or the ledger.
func (f *Finalizer) find(ctx context.Context, e cloudrun.Entry) (flowRunID string, ending settle.Ending, err error) {
	flowRunID = e.FlowRunID
	ending = settle.Ending{
		LaunchID: e.LaunchID, Execution: e.Execution, Outcome: e.Outcome, StartedAt: e.Started, EndedAt: e.Completed,
		Resources: e.Resources, Retries: e.Retries,
	}
	if flowRunID != "" && ending.LaunchID != "" && e.Complete && !cloudrun.Vague(e.Outcome) {
		return flowRunID, ending, nil
	}
	if !e.Complete && cloudrun.Vague(e.Outcome) {
		ending.Outcome = flowrun.Outcome{} // a part of an entry that does not tell how it ended
	}
	x, err := f.executions.Execution(ctx, e.Execution)
	switch {
	case err == nil:
		if id := x.Labels[cloudrun.LabelFlowRun]; id != "" {
			flowRunID, ending.LaunchID = id, flowrun.LaunchID(x.Labels[cloudrun.LabelLaunch])
		}
		ending.Resources, ending.Retries = x.Resources, flowrun.ParseRetries(x.Labels[cloudrun.LabelRetries])
		// The entry's status code tells more than the execution does; the last attempt, less vague an end.
		if x.Outcome != nil && (ending.Outcome.Kind == "" || cloudrun.Vague(ending.Outcome)) {
			ending.Outcome, ending.StartedAt, ending.EndedAt = *x.Outcome, x.StartTime, x.CompletionTime
		}
	case flowrun.FaultOf(err) != flowrun.NotFound:
		return "", ending, err
	case ending.Outcome.Kind == "":
		ending.Outcome.Kind = flowrun.Deleted
	}
	if flowRunID == "" || ending.LaunchID == "" {
		r, found, err := f.ledger.ByExecution(ctx, e.Execution.String())
		if err != nil || !found {
			return "", ending, err
		}
		flowRunID, ending.LaunchID = r.FlowRunID, r.LaunchID
	}
	if ending.Outcome.Kind == "" {
		return "", ending, fmt.Errorf("execution %s has no end yet although its entry was written; the message is delivered again", e.Execution)
	}
	return flowRunID, ending, nil
}
