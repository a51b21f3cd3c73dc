// Package dispatcher acts on what travels on the topic flow-runs.
package dispatcher

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// Launcher launches flow runs.
type Launcher interface {
	Dispatch(ctx context.Context, holder, flowRunID string, published time.Time) error
	DispatchEvent(ctx context.Context, holder string, e message.PrefectEvent, published time.Time) error
	DispatchCreated(ctx context.Context, holder string, fr prefect.FlowRun, d prefect.Deployment) error
	Wake(ctx context.Context, holder string, w message.Wake) error
}

// Deployments is what run requests ask of Prefect.
type Deployments interface {
	FindDeployment(ctx context.Context, nameOrID string) (prefect.Deployment, error)
	CreateFlowRun(ctx context.Context, deploymentID string, n prefect.NewFlowRun) (fr prefect.FlowRun, created bool, err error)
	Limited(ctx context.Context, pool string) (bool, error)
}

// Waiting tells what has to be woken now that a slot of a work pool and of a deployment came free.
type Waiting interface {
	Waiting(ctx context.Context, workPool, deploymentID string) (message.Wake, error)
}

// Ledger tells where a flow run that was launched came from.
type Ledger interface {
	Get(ctx context.Context, flowRunID string) (flowrun.Record, error)
}

// FlowRuns tells where a flow run came from that the ledger does not know.
type FlowRuns interface {
	FlowRun(ctx context.Context, id string) (prefect.FlowRun, error)
}

// Dispatcher handles deliveries from the topic flow-runs.
type Dispatcher struct {
	launcher    Launcher
	deployments Deployments
	waiting     Waiting
	ledger      Ledger
	flowRuns    FlowRuns
	// workPools are those of this installation.
	workPools []string
	now       func() time.Time
}

// Handle acts on one delivery. What no redelivery can mend is marked delivery.Unprocessable.
func (d *Dispatcher) Handle(ctx context.Context, m delivery.Delivery) error {
	decoded, err := message.Decode(m.Data, m.Attributes)
	if err != nil {
		return delivery.Unprocessable(err)
	}
	err = d.act(ctx, "dispatcher/"+uuid.NewString(), m, decoded)
	if hopeless(err) {
		return delivery.Unprocessable(err)
	}
	return err
}

// hopeless reports whether no redelivery can mend any part of the error: of what a wake
// tries, the rest is worth another delivery.
func hopeless(err error) bool {
	joined, ok := err.(interface{ Unwrap() []error }) // joined errors themselves, not what they wrap
	if !ok {
		return flowrun.FaultOf(err) == flowrun.Permanent
	}
	return !slices.ContainsFunc(joined.Unwrap(), func(e error) bool { return !hopeless(e) })
}

func (d *Dispatcher) act(ctx context.Context, holder string, m delivery.Delivery, decoded any) error {
	wake := func(w message.Wake) error {
		telemetry.Add(ctx, slog.String("work_pool", w.WorkPool), slog.String("deployment_id", w.DeploymentID))
		return d.launcher.Wake(ctx, holder, w)
	}
	switch r := decoded.(type) {
	case message.RunRequest:
		return d.request(ctx, holder, m, r)
	case message.Dispatch:
		telemetry.Add(ctx, slog.String(telemetry.FlowRunID, r.FlowRunID))
		return d.launcher.Dispatch(ctx, holder, r.FlowRunID, m.PublishTime)
	case message.Wake:
		return wake(r)
	case message.PrefectEvent:
		telemetry.Add(ctx, slog.String(telemetry.FlowRunID, r.FlowRunID), slog.String("state_type", r.StateType))
		state := flowrun.StateType(r.StateType)
		switch {
		case r.StateName == prefect.AwaitingSlot:
			telemetry.Add(ctx, slog.String("ignored", "it waits for a slot of its deployment, and is launched when one comes free"))
			return nil
		case state == flowrun.StateScheduled, state == flowrun.StateCancelling:
			return d.launcher.DispatchEvent(ctx, holder, r, m.PublishTime)
		case state.Terminal():
			w, err := d.freed(ctx, r)
			if err != nil || w == (message.Wake{}) {
				return err
			}
			return wake(w)
		}
		telemetry.Add(ctx, slog.String("ignored", "nothing follows from an event of this state type"))
	}
	return nil
}

// freed returns what has to be woken now that a flow run ended: nothing where nobody waits
// for its slot. The event of a server of 3.x tells where the slot is, the ledger where
// the flow run is ours; only for the others is Prefect asked.
func (d *Dispatcher) freed(ctx context.Context, e message.PrefectEvent) (message.Wake, error) {
	workPool, deploymentID := e.WorkPool, e.DeploymentID
	if workPool == "" {
		rec, err := d.ledger.Get(ctx, e.FlowRunID)
		if err != nil {
			return message.Wake{}, err
		}
		workPool, deploymentID = rec.WorkPool, rec.DeploymentID
	}
	if workPool == "" {
		fr, err := d.flowRuns.FlowRun(ctx, e.FlowRunID)
		if err != nil {
			if flowrun.FaultOf(err) == flowrun.NotFound {
				err = nil // deleted; the sweep looks for who waits
			}
			return message.Wake{}, err
		}
		workPool, deploymentID = fr.WorkPoolName, fr.DeploymentID
	}
	if !slices.Contains(d.workPools, workPool) {
		return message.Wake{}, nil
	}
	return d.waiting.Waiting(ctx, workPool, deploymentID)
}

// request creates the flow run that is asked for, once for each message or key, and dispatches it.
func (d *Dispatcher) request(ctx context.Context, holder string, m delivery.Delivery, r message.RunRequest) error {
	if r.ExpiresAt != nil && !d.now().Before(*r.ExpiresAt) {
		return delivery.Unprocessable(fmt.Errorf("expires_at: the run request expired at %s; publish a new one", r.ExpiresAt.Format(time.RFC3339)))
	}
	deployment, err := d.deployments.FindDeployment(ctx, r.Deployment)
	if err != nil {
		if flowrun.FaultOf(err) == flowrun.NotFound {
			return delivery.Unprocessable(fmt.Errorf("deployment: Prefect has no deployment %q; write one that `prefect deployment ls` shows: %w", r.Deployment, err))
		}
		return err
	}
	telemetry.Add(ctx, slog.String("deployment_id", deployment.ID), slog.String("work_pool", deployment.WorkPoolName))
	if !slices.Contains(d.workPools, deployment.WorkPoolName) {
		return delivery.Unprocessable(fmt.Errorf("deployment: %q runs in work pool %q, which this installation does not serve; deploy it to one of %s",
			r.Deployment, deployment.WorkPoolName, strings.Join(d.workPools, ", ")))
	}
	at := r.ScheduledTime
	if r.Delay > 0 {
		t := m.FirstPublishTime().Add(r.Delay)
		at = &t
	}
	// The launch asks this first. Known by the time that the flow run is created, it has the flow run
	// claimed before Prefect's event about it comes, which else is looked at in vain.
	var ahead sync.WaitGroup
	ahead.Go(func() { _, _ = d.deployments.Limited(ctx, deployment.WorkPoolName) })
	defer ahead.Wait()
	fr, created, err := d.deployments.CreateFlowRun(ctx, deployment.ID, prefect.NewFlowRun{
		Name: r.Name, Parameters: r.Parameters, JobVariables: r.JobVariables, Tags: r.Tags,
		IdempotencyKey: cmp.Or(r.IdempotencyKey, m.FirstMessageID()), WorkQueue: r.WorkQueue, ScheduledTime: at,
		Labels: labels(m),
	})
	if err != nil {
		return err
	}
	telemetry.Add(ctx, slog.String(telemetry.FlowRunID, fr.ID), slog.Bool("created", created))
	err = d.launcher.DispatchCreated(ctx, holder, fr, deployment)
	if err != nil && r.ExpiresAt != nil {
		// Delivered again after its expiry, the request would be called void although its
		// flow run exists. The sweep dispatches that as well.
		telemetry.Add(ctx, slog.String("dispatch_error", err.Error()))
		return nil
	}
	return err
}

// labels keep the publisher's trace with the flow run: Prefect's engine goes on with it, and so
// does whoever launches the flow run later.
func labels(m delivery.Delivery) map[string]any {
	parent := telemetry.Traceparent(telemetry.WithMessageTrace(context.Background(), m.Attributes))
	if parent == "" {
		return nil
	}
	return map[string]any{prefect.LabelTraceparent: parent}
}
