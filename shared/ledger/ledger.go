// Package ledger keeps the record of each flow run: which launch ties it to an execution, and why.
package ledger

import (
	"context"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Ledger is what both stores offer, held to one suite (package ledgertest). Consumers
// declare the part of it that they use. Times are kept to the microsecond, as Firestore does.
type Ledger interface {
	// Get returns the flow run's record, and one with the id alone where there is none.
	Get(ctx context.Context, flowRunID string) (flowrun.Record, error)
	// Update applies change to the flow run's record in one transaction and returns what
	// was written. change may be called several times; where it fails nothing is written
	// and its error is returned as it is, with the record as it stands.
	Update(ctx context.Context, flowRunID string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error)
	// Open returns all records of which Record.Open says that something is left to be done,
	// in any order: as many as there are flow runs under way, and no more.
	Open(ctx context.Context) ([]flowrun.Record, error)
	// ByExecution returns the record of the execution with that full name; found is false
	// where the ledger knows none.
	ByExecution(ctx context.Context, name string) (r flowrun.Record, found bool, err error)
	// UpdatePool is Update for the state of a work pool. Where change returns it as it was nothing is written. Where
	// the store's answer was lost, change may be applied to its own result: a launch is granted two times then, or a
	// request to look again is missed until the next sweep.
	UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error)
	// UpdateRegion is UpdatePool for what is known of a region of a project, PROJECT/REGION.
	UpdateRegion(ctx context.Context, name string, change func(flowrun.Region) (flowrun.Region, error)) (flowrun.Region, error)
	// UpdateDeployment is UpdatePool for the state of a deployment.
	UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error)
	// UpdateSweep is UpdatePool for the state of the installation's sweep.
	UpdateSweep(ctx context.Context, change func(flowrun.Sweep) (flowrun.Sweep, error)) (flowrun.Sweep, error)
}
