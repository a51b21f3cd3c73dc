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

// errDeleted is the id of a flow run's deployment that no longer exists.
type errDeleted string

// Error implements error: it is what Prefect's worker writes on such a flow run when it cancels it.
func (id errDeleted) Error() string {
	return "Deployment " + string(id) + " no longer exists, cancelled run."
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
				return errDeleted(fr.DeploymentID)
			}
			o.deployment = &d
			return err
		})
	}
	return o
}

// wait waits until all of it is read. It may be called again.
func (o *origin) wait() error { return o.reads.Wait() }
