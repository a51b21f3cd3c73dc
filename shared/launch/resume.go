package launch

import (
	"context"
	"errors"
	"maps"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

// resume goes on with a launch that was claimed in Prefect and then interrupted.
func (l *Launcher) resume(ctx context.Context, holder string, fr prefect.FlowRun) error {
	rec, err := l.ledger.Get(ctx, fr.ID)
	if err != nil {
		return err
	}
	c, err := l.settler.Claim(ctx, fr, rec)
	if err != nil || !c.Ours {
		return err
	}
	if rec.ClaimedAt.IsZero() && settle.Made(fr, c.LaunchID) {
		// The ledger was lost after the job was made: it may have ended, or been deleted, since.
		return l.settler.Look(ctx, holder, fr.ID)
	}
	rec, err = l.apply(ctx, fr.ID, flowrun.Scheduled{
		Lease: l.lease(holder), LaunchID: c.LaunchID, StateAt: c.ScheduledStateAt,
		WorkPool: fr.WorkPoolName, DeploymentID: fr.DeploymentID, RequestedAt: fr.Created, DueAt: fr.Due(), Retried: c.Retried, Resumed: true,
	})
	if errors.Is(err, flowrun.ErrUnreported) || errors.Is(err, flowrun.ErrUnfinished) {
		// Its verdict is to be told, or the ledger holds another launch than Prefect does.
		return l.settler.Look(ctx, holder, fr.ID)
	}
	if err != nil {
		return err
	}
	err = l.relaunch(ctx, holder, rec)
	if err != nil {
		settle.Release(ctx, l.ledger, l.log, holder, fr.ID, err, l.cfg.Now, l.cfg.CallTimeout)
	}
	return err
}

func (l *Launcher) relaunch(ctx context.Context, holder string, rec flowrun.Record) error {
	ctx, cancel := l.settler.Fence(ctx, rec)
	defer cancel()
	fr, err := l.flowRuns.FlowRun(ctx, rec.FlowRunID)
	if err != nil {
		return err
	}
	if fr.StateType != flowrun.StatePending || fr.State == nil || fr.State.Details.TransitionID != string(rec.LaunchID) {
		// It moved on meanwhile; the record stays as it is for whoever settles it.
		return flowrun.ErrDone
	}
	o := l.origin(ctx, fr, nil)
	defer func() { _ = o.wait() }()
	return l.launch(ctx, holder, rec, fr, o, true)
}

// reschedule makes a flow run that its own container was to run again one that is launched
// again, if that container is gone; else Prefect would never return it as startable. A
// worker's flow run is left to the worker.
func (l *Launcher) reschedule(ctx context.Context, holder string, before prefect.FlowRun) (gone bool, err error) {
	if err := l.settler.Look(ctx, holder, before.ID); err != nil {
		return false, err
	}
	rec, err := l.apply(ctx, before.ID, flowrun.Taken{Lease: l.lease(holder)})
	if err != nil {
		return false, err
	}
	defer func() { settle.Release(ctx, l.ledger, l.log, holder, before.ID, err, l.cfg.Now, l.cfg.CallTimeout) }()
	ctx, cancel := l.settler.Fence(ctx, rec)
	defer cancel()
	fr, err := l.flowRuns.FlowRun(ctx, before.ID)
	if err != nil || fr.StateID != before.StateID {
		return false, err
	}
	c, err := l.settler.Claim(ctx, fr, rec)
	if err != nil || !c.Ours || c.LaunchID != rec.LaunchID || !rec.Status.Over() {
		return false, err
	}
	policy := maps.Clone(fr.EmpiricalPolicy)
	policy["retry_type"] = "reschedule"
	err = l.flowRuns.UpdateFlowRun(ctx, fr.ID, map[string]any{"empirical_policy": policy})
	return err == nil, err
}

// remember carries to its end what a lost ledger no longer knows: an earlier launch, whose
// execution may be alive, of a flow run that is to be launched again.
func (l *Launcher) remember(ctx context.Context, holder string, fr prefect.FlowRun) error {
	if fr.InfrastructurePID == "" {
		return nil // it was never launched
	}
	rec, err := l.ledger.Get(ctx, fr.ID)
	if err != nil || rec.Status != flowrun.StatusNone {
		return err
	}
	return l.settler.Look(ctx, holder, fr.ID)
}
