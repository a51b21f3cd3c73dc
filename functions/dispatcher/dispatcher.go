// Package dispatcher acts on what travels on the topic flow-runs.
package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
	Wake(ctx context.Context, holder, workPool string) error
}

// Deployments is what run requests ask of Prefect.
type Deployments interface {
	Deployment(ctx context.Context, id string) (prefect.Deployment, error)
	DeploymentByName(ctx context.Context, name string) (prefect.Deployment, error)
	CreateFlowRun(ctx context.Context, deploymentID string, n prefect.NewFlowRun) (fr prefect.FlowRun, created bool, err error)
}

// Waiting is what wakes and the ends of flow runs ask of Prefect.
type Waiting interface {
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
	LimitedLately(ctx context.Context, pool string) (bool, error)
}

// Dispatcher handles deliveries from the topic flow-runs.
type Dispatcher struct {
	launcher    Launcher
	deployments Deployments
	waiting     Waiting
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
	dispatch := func(flowRunID string) error {
		telemetry.Add(ctx, slog.String(telemetry.FlowRunID, flowRunID))
		return d.launcher.Dispatch(ctx, holder, flowRunID, m.PublishTime)
	}
	wake := func(workPool, deploymentID string) error {
		telemetry.Add(ctx, slog.String("work_pool", workPool), slog.String("deployment_id", deploymentID))
		return d.wake(ctx, holder, workPool, deploymentID, m.PublishTime)
	}
	switch r := decoded.(type) {
	case message.RunRequest:
		return d.request(ctx, m, r, dispatch)
	case message.Dispatch:
		return dispatch(r.FlowRunID)
	case message.Wake:
		return wake(r.WorkPool, r.DeploymentID)
	case message.PrefectEvent:
		telemetry.Add(ctx, slog.String(telemetry.FlowRunID, r.FlowRunID), slog.String("state_type", r.StateType))
		state := flowrun.StateType(r.StateType)
		switch {
		case state == flowrun.StateScheduled, state == flowrun.StateCancelling:
			return dispatch(r.FlowRunID)
		case state.Terminal():
			workPool, err := d.freed(ctx, r)
			if err != nil || workPool == "" {
				return err
			}
			return wake(workPool, "")
		}
		telemetry.Add(ctx, slog.String("ignored", "nothing follows from an event of this state type"))
	}
	return nil
}

// freed returns the work pool of which a slot came free when a flow run ended; empty where
// nothing of ours waits for one. It costs no call while no pool of ours has a limit.
func (d *Dispatcher) freed(ctx context.Context, e message.PrefectEvent) (workPool string, err error) {
	var limited []string
	for _, pool := range d.workPools {
		is, err := d.waiting.LimitedLately(ctx, pool)
		if err != nil {
			return "", err
		}
		if is {
			limited = append(limited, pool)
		}
	}
	if e.WorkPool != "" || len(limited) == 0 {
		if slices.Contains(limited, e.WorkPool) {
			return e.WorkPool, nil
		}
		return "", nil
	}
	// The portable template cannot tell the work pool.
	ended, err := d.waiting.FlowRuns(ctx, prefect.Filter{IDs: []string{e.FlowRunID}, WorkPools: limited})
	if err != nil || len(ended) == 0 {
		return "", err
	}
	return ended[0].WorkPoolName, nil
}

// wake takes what waits for a slot of the work pool, and the oldest that waits for one of
// the deployment.
func (d *Dispatcher) wake(ctx context.Context, holder, workPool, deploymentID string, published time.Time) error {
	var errs []error
	if workPool != "" {
		errs = append(errs, d.launcher.Wake(ctx, holder, workPool))
	}
	if deploymentID != "" {
		waiting, err := d.waiting.FlowRuns(ctx, prefect.Filter{
			WorkPools: d.workPools, DeploymentIDs: []string{deploymentID}, StateTypes: []prefect.StateType{flowrun.StateScheduled},
			ScheduledBefore: d.now(), Limit: 1,
		})
		errs = append(errs, err)
		for _, fr := range waiting {
			// Not under the line's own key: an event's line is about the flow run that ended.
			telemetry.Add(ctx, slog.String("woken_flow_run_id", fr.ID))
			errs = append(errs, d.launcher.Dispatch(ctx, holder, fr.ID, published))
		}
	}
	return errors.Join(errs...)
}

// request creates the flow run that is asked for, once for each message or key, and dispatches it.
func (d *Dispatcher) request(ctx context.Context, m delivery.Delivery, r message.RunRequest, dispatch func(string) error) error {
	if r.ExpiresAt != nil && !d.now().Before(*r.ExpiresAt) {
		return delivery.Unprocessable(fmt.Errorf("expires_at: the run request expired at %s; publish a new one", r.ExpiresAt.Format(time.RFC3339)))
	}
	deployment, err := d.deployment(ctx, r.Deployment)
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
	fr, created, err := d.deployments.CreateFlowRun(ctx, deployment.ID, prefect.NewFlowRun{
		Name: r.Name, Parameters: r.Parameters, JobVariables: r.JobVariables, Tags: r.Tags,
		IdempotencyKey: cmp.Or(r.IdempotencyKey, m.FirstMessageID()), WorkQueue: r.WorkQueue, ScheduledTime: at,
		Labels: labels(m),
	})
	if err != nil {
		return err
	}
	telemetry.Add(ctx, slog.Bool("created", created))
	err = dispatch(fr.ID)
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

func (d *Dispatcher) deployment(ctx context.Context, nameOrID string) (prefect.Deployment, error) {
	if uuid.Validate(nameOrID) == nil {
		return d.deployments.Deployment(ctx, nameOrID)
	}
	return d.deployments.DeploymentByName(ctx, nameOrID)
}
