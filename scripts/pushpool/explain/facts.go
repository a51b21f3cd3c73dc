// Package explain says of one flow run where it stands, why, and what happens next by itself.
package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

// Prefect is what an explanation asks of Prefect.
type Prefect interface {
	FlowRun(ctx context.Context, id string) (prefect.FlowRun, error)
	FlowRunStates(ctx context.Context, flowRunID string) ([]prefect.State, error)
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
	Catalog
}

// Catalog is what a flow run is made from.
type Catalog interface {
	WorkPool(ctx context.Context, name string) (prefect.WorkPool, error)
	WorkQueues(ctx context.Context, pool string) ([]prefect.WorkQueue, error)
	Deployment(ctx context.Context, id string) (prefect.Deployment, error)
}

// CloudRun is what an explanation asks of Cloud Run.
type CloudRun interface {
	Job(ctx context.Context, n cloudrun.JobName) (cloudrun.Job, error)
	Execution(ctx context.Context, n cloudrun.ExecutionName) (cloudrun.Execution, error)
}

// Records reads the ledger.
type Records interface {
	Get(ctx context.Context, flowRunID string) (flowrun.Record, error)
}

// Claims tells whose a flow run is.
type Claims interface {
	Claim(ctx context.Context, fr prefect.FlowRun, rec flowrun.Record) (settle.Claim, error)
}

// Setting is the installation that explains.
type Setting struct {
	WorkPools, Projects, Regions []string
	// LookAhead and the deadlines are the functions' own.
	LookAhead, CancelGrace, ReportGrace, StartDeadline, GoneAfter time.Duration
	// UI is the address of Prefect's user interface.
	UI string
}

// Facts are what the three records, and what a flow run waits for, show at one moment.
type Facts struct {
	Now     time.Time
	Setting Setting
	ID      string

	// FlowRun is nil where Prefect has none.
	FlowRun *prefect.FlowRun
	States  []prefect.State
	Claim   settle.Claim

	Record flowrun.Record
	// LedgerError is why the ledger could not be read.
	LedgerError string

	// Job and Execution are nil where Cloud Run has none, or the launch has none.
	Job           *cloudrun.Job
	Execution     *cloudrun.Execution
	CloudRunError string

	Pool       *prefect.WorkPool
	Queue      *prefect.WorkQueue
	Deployment *prefect.Deployment
	// Busy are how many flow runs of the pool, the queue and the deployment are PENDING or
	// RUNNING, at most 200.
	PoolBusy, QueueBusy, DeploymentBusy int
	// Ahead and QueueAhead are how many flow runs of the pool and of the queue wait, too, and go
	// before this one, at most 200: by the priority of their queue, then by when they are due.
	Ahead, QueueAhead int
}

// Gather reads the facts. What cannot be read is named in them; only Prefect has to answer.
func Gather(ctx context.Context, id string, s Setting, p Prefect, c CloudRun, records Records, claims Claims) (Facts, error) {
	f := Facts{Now: time.Now(), Setting: s, ID: id}
	var err error
	if f.Record, err = records.Get(ctx, id); err != nil {
		f.Record, f.LedgerError = flowrun.Record{FlowRunID: id}, err.Error()
	}
	fr, err := p.FlowRun(ctx, id)
	switch {
	case err == nil:
		f.FlowRun = &fr
	case flowrun.FaultOf(err) != flowrun.NotFound:
		return f, err
	default:
		f.place(ctx, c)
		return f, nil
	}
	if f.States, err = p.FlowRunStates(ctx, id); err != nil {
		return f, err
	}
	if f.Claim, err = claims.Claim(ctx, fr, flowrun.Record{}); err != nil { // by Prefect's history alone
		return f, err
	}
	if err := f.limits(ctx, p); err != nil {
		return f, err
	}
	f.place(ctx, c)
	return f, nil
}

// limits reads what may keep the flow run from starting.
func (f *Facts) limits(ctx context.Context, p Prefect) error {
	fr := f.FlowRun
	g, ctx := errgroup.WithContext(ctx)
	if fr.WorkPoolName != "" {
		g.Go(func() error {
			pool, err := p.WorkPool(ctx, fr.WorkPoolName)
			if err == nil {
				f.Pool = &pool
			}
			return ignoreMissing(err)
		})
		g.Go(func() error {
			queues, err := p.WorkQueues(ctx, fr.WorkPoolName)
			if ignoreMissing(err) != nil {
				return err
			}
			all := map[string]prefect.WorkQueue{}
			for _, q := range queues {
				if all[q.Name] = q; q.Name == fr.WorkQueueName {
					f.Queue = &q
				}
			}
			return f.busy(ctx, p, all)
		})
	}
	if fr.DeploymentID != "" {
		g.Go(func() error {
			d, err := p.Deployment(ctx, fr.DeploymentID)
			if err == nil {
				f.Deployment = &d
			}
			return ignoreMissing(err)
		})
	}
	return g.Wait()
}

func (f *Facts) busy(ctx context.Context, p Prefect, queues map[string]prefect.WorkQueue) error {
	if f.FlowRun.StateType != flowrun.StateScheduled {
		return nil
	}
	active, err := p.FlowRuns(ctx, prefect.Filter{
		WorkPools: []string{f.FlowRun.WorkPoolName}, StateTypes: []prefect.StateType{flowrun.StatePending, flowrun.StateRunning},
	})
	if err != nil {
		return err
	}
	for _, other := range active {
		f.PoolBusy++
		if other.WorkQueueName == f.FlowRun.WorkQueueName {
			f.QueueBusy++
		}
		if other.DeploymentID == f.FlowRun.DeploymentID {
			f.DeploymentBusy++
		}
	}
	waiting, err := p.FlowRuns(ctx, prefect.Filter{
		WorkPools: []string{f.FlowRun.WorkPoolName}, StateTypes: []prefect.StateType{flowrun.StateScheduled}, ScheduledBefore: f.Now,
	})
	ours := queues[f.FlowRun.WorkQueueName]
	for _, other := range waiting {
		theirs := queues[other.WorkQueueName]
		if other.ID == f.ID || theirs.IsPaused || cmp.Or(cmp.Compare(theirs.Priority, ours.Priority), other.Due().Compare(f.FlowRun.Due())) >= 0 {
			continue
		}
		if f.Ahead++; theirs.Name == ours.Name {
			f.QueueAhead++
		}
	}
	return err
}

// place looks for the job and the execution of the current launch, where the ledger says or,
// where it says nothing, in all places that the installation launches in.
func (f *Facts) place(ctx context.Context, c CloudRun) {
	for _, name := range f.executions() {
		x, err := c.Execution(ctx, name)
		if err == nil && x.Labels[cloudrun.LabelFlowRun] == f.ID {
			f.Execution = &x
			return
		}
		if ignoreMissing(err) != nil {
			f.CloudRunError = err.Error()
			return
		}
		job, err := c.Job(ctx, name.JobName())
		if err == nil && job.Labels[cloudrun.LabelFlowRun] == f.ID {
			f.Job = &job
			return
		}
		if ignoreMissing(err) != nil {
			f.CloudRunError = err.Error()
			return
		}
	}
}

// executions are the names that the current launch's execution can have.
func (f *Facts) executions() []cloudrun.ExecutionName {
	if n, err := cloudrun.ParseExecutionName(f.Record.ExecutionName); err == nil {
		return []cloudrun.ExecutionName{n}
	}
	if f.Record.JobName != "" && f.Record.Region != "" {
		project := f.Record.Project
		if project == "" {
			project = f.Setting.Projects[0]
		}
		return []cloudrun.ExecutionName{cloudrun.JobName{Project: project, Region: f.Record.Region, Job: f.Record.JobName}.Launched(f.Record.LaunchID)}
	}
	if f.FlowRun == nil || f.FlowRun.InfrastructurePID == "" || !f.Claim.Ours {
		return nil
	}
	var names []cloudrun.ExecutionName
	for _, project := range f.Setting.Projects {
		for _, region := range f.Setting.Regions {
			job := cloudrun.JobOf(f.FlowRun.InfrastructurePID, f.Claim.LaunchID)
			names = append(names, cloudrun.JobName{Project: project, Region: region, Job: job}.Launched(f.Claim.LaunchID))
		}
	}
	return names
}

// ignoreMissing drops the error that says that there is no such object.
func ignoreMissing(err error) error {
	var e *flowrun.Error
	if errors.As(err, &e) && e.Fault == flowrun.NotFound {
		return nil
	}
	return err
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
