package launch

import (
	"context"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// early deals with a flow run that is not due yet; d is its deployment, if it is known. It is launched its deployment's lead
// before its time, so that its flow starts on time: Prefect has it wait in its container until
// then. Until it is launched a timer waits; what is due later than that is found by the sweep.
func (l *Launcher) early(ctx context.Context, holder string, fr prefect.FlowRun, d *prefect.Deployment) error {
	lead, err := l.lead(ctx, fr)
	if err != nil {
		return err
	}
	now, at := l.cfg.Now(), fr.Due()
	if lead > 0 && !lead.Before(at).After(now) {
		if d == nil {
			read, err := l.catalog.Deployment(ctx, fr.DeploymentID)
			switch {
			case err == nil:
				d = &read
			case flowrun.FaultOf(err) != flowrun.NotFound:
				return err
			}
		}
		if d == nil || !d.Limited() { // of one that was deleted the claim is aborted
			return l.claimOrWait(ctx, holder, fr, d)
		}
		lead = 0
	}
	if at = lead.Before(at); at.Sub(now) > l.cfg.LookAhead {
		return nil
	}
	return l.messages.DispatchAt(ctx, fr.ID, at, "due")
}

// lead is how long before it is due the flow run is launched. Whoever has to wait for a slot
// is not: it would hold the slot, and do nothing with it.
func (l *Launcher) lead(ctx context.Context, fr prefect.FlowRun) (flowrun.Lead, error) {
	if fr.DeploymentID == "" || !prefect.MayStartEarly(fr) {
		return 0, nil
	}
	limited, err := l.queue.Limited(ctx, fr.WorkPoolName)
	if err != nil || limited {
		return 0, err
	}
	d, err := l.deployment(ctx, fr.DeploymentID)
	if err != nil || d.Waits {
		return 0, err
	}
	return d.Lead, nil
}
