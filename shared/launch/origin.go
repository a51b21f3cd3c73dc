package launch

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// origin is what a flow run was made from. It is read while the flow run is being claimed,
// so that nothing of it is waited for between the claim and the job.
type origin struct {
	pool       prefect.WorkPool
	flow       prefect.Flow
	deployment *prefect.Deployment

	reads errgroup.Group
}

// origin begins to read what the flow run was made from, but for its deployment where that
// is given. The caller has to wait for it in any case: nothing goes on after the message's answer.
func (l *Launcher) origin(ctx context.Context, fr prefect.FlowRun, d *prefect.Deployment) *origin {
	o := &origin{deployment: d}
	o.reads.Go(func() (err error) { o.pool, err = l.catalog.WorkPool(ctx, fr.WorkPoolName); return err })
	o.reads.Go(func() (err error) { o.flow, err = l.catalog.Flow(ctx, fr.FlowID); return err })
	if fr.DeploymentID != "" && d == nil {
		o.reads.Go(func() error {
			d, err := l.catalog.Deployment(ctx, fr.DeploymentID)
			if flowrun.FaultOf(err) == flowrun.NotFound && err != nil {
				return &flowrun.Error{Fault: flowrun.Permanent, Act: "read deployment " + fr.DeploymentID, Hint: "it no longer exists; deploy the flow again", Err: err}
			}
			o.deployment = &d
			return err
		})
	}
	return o
}

// wait waits until all of it is read. It may be called again.
func (o *origin) wait() error { return o.reads.Wait() }
