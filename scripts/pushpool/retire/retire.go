// Package retire brings an installation to rest: nothing starts, nothing is executed, nothing is left behind.
package retire

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

// Prefect is what retiring asks of Prefect.
type Prefect interface {
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
	WorkPool(ctx context.Context, name string) (prefect.WorkPool, error)
	SetWorkPoolPaused(ctx context.Context, name string, paused bool) error
}

// Claims tells whose flow runs are.
type Claims interface {
	Claim(ctx context.Context, fr prefect.FlowRun, rec flowrun.Record) (settle.Claim, error)
}

// CloudRun is what retiring asks of Cloud Run.
type CloudRun interface {
	Jobs(ctx context.Context, project, region string) iter.Seq2[cloudrun.Job, error]
	Executions(ctx context.Context, project, region string) iter.Seq2[cloudrun.Execution, error]
	DeleteJob(ctx context.Context, n cloudrun.JobName) error
}

// Installation says where to look.
type Installation struct {
	Name                         string
	Projects, Regions, WorkPools []string
}

// Retirer works on one installation.
type Retirer struct {
	prefect  Prefect
	claims   Claims
	cloudRun CloudRun
	in       Installation
}

// New returns a Retirer.
func New(p Prefect, claims Claims, c CloudRun, in Installation) *Retirer {
	return &Retirer{prefect: p, claims: claims, cloudRun: c, in: in}
}

// FlowRun is a flow run of ours that has not ended.
type FlowRun struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	WorkPool  string            `json:"work_pool"`
	StateType flowrun.StateType `json:"state_type"`
}

// Left is what there still is of an installation.
type Left struct {
	// FlowRuns are under way: PENDING, RUNNING, PAUSED or CANCELLING, claimed by this installation.
	FlowRuns []FlowRun `json:"flow_runs"`
	// Executions are alive; Jobs are of this installation, with executions that ended or without.
	Executions []string `json:"executions"`
	Jobs       []string `json:"jobs"`
	// Open are the work pools that are not paused.
	Open []string `json:"open_work_pools"`

	jobs []cloudrun.JobName
}

// AtRest reports whether nothing is under way.
func (l Left) AtRest() bool { return len(l.FlowRuns) == 0 && len(l.Executions) == 0 }

// Nothing reports whether nothing is left at all, open work pools aside.
func (l Left) Nothing() bool { return l.AtRest() && len(l.Jobs) == 0 }

// Look finds what there still is.
func (r *Retirer) Look(ctx context.Context) (Left, error) {
	left := Left{FlowRuns: []FlowRun{}, Executions: []string{}, Jobs: []string{}, Open: []string{}}
	err := errors.Join(r.flowRuns(ctx, &left), r.executions(ctx, &left), r.pools(ctx, &left))
	return left, err
}

func (r *Retirer) flowRuns(ctx context.Context, left *Left) error {
	f := prefect.Filter{
		WorkPools: r.in.WorkPools, Sort: prefect.OldestFirst,
		StateTypes: []prefect.StateType{flowrun.StatePending, flowrun.StateRunning, flowrun.StateCancelling, flowrun.StatePaused},
	}
	for fr, err := range prefect.EachFlowRun(ctx, r.prefect.FlowRuns, f) {
		if err != nil {
			return err
		}
		claim, err := r.claims.Claim(ctx, fr, flowrun.Record{})
		if err != nil {
			return err
		}
		if claim.Ours {
			left.FlowRuns = append(left.FlowRuns, FlowRun{fr.ID, fr.Name, fr.WorkPoolName, fr.StateType})
		}
	}
	return nil
}

func (r *Retirer) executions(ctx context.Context, left *Left) error {
	for _, project := range r.in.Projects {
		for _, region := range r.in.Regions {
			alive := map[cloudrun.JobName]bool{}
			for x, err := range r.cloudRun.Executions(ctx, project, region) {
				if err != nil {
					return err
				}
				if x.Outcome == nil && x.Labels[cloudrun.LabelInstall] == r.in.Name {
					alive[x.Name.JobName()] = true
					left.Executions = append(left.Executions, x.Name.String())
				}
			}
			for job, err := range r.cloudRun.Jobs(ctx, project, region) {
				if err != nil {
					return err
				}
				if job.Labels[cloudrun.LabelInstall] == r.in.Name && !alive[job.Name] {
					left.Jobs = append(left.Jobs, job.Name.String())
					left.jobs = append(left.jobs, job.Name)
				}
			}
		}
	}
	return nil
}

func (r *Retirer) pools(ctx context.Context, left *Left) error {
	for _, name := range r.in.WorkPools {
		p, err := r.prefect.WorkPool(ctx, name)
		if flowrun.FaultOf(err) == flowrun.NotFound && err != nil {
			continue
		}
		if err != nil {
			return err
		}
		if !p.IsPaused {
			left.Open = append(left.Open, name)
		}
	}
	return nil
}

// noticed is how long the functions' knowledge of a work pool may be old (prefect.Client.WorkPool), and a margin.
const noticed = 12 * time.Second

// Pause keeps everything from starting, or lets it start again. Flow runs that are due wait in
// Prefect. It returns once every function knows that the work pools are paused.
func (r *Retirer) Pause(ctx context.Context, paused bool) error {
	var failed []error
	for _, name := range r.in.WorkPools {
		failed = append(failed, r.prefect.SetWorkPoolPaused(ctx, name, paused))
	}
	if err := errors.Join(failed...); err != nil || !paused {
		return err
	}
	return sleep(ctx, noticed)
}

const (
	// interval is between two looks at what is still under way.
	interval = 5 * time.Second
	// again is how long Cloud Run is left alone that is out of quota.
	again = 20 * time.Second
)

// Wait looks until nothing is under way, and tells of each look.
func (r *Retirer) Wait(ctx context.Context, tell func(Left)) (Left, error) {
	for {
		left, err := r.Look(ctx)
		if err != nil || left.AtRest() {
			return left, err
		}
		tell(left)
		if err := sleep(ctx, interval); err != nil {
			return left, fmt.Errorf("wait until nothing is under way: %d flow runs and %d executions still are: %w", len(left.FlowRuns), len(left.Executions), err)
		}
	}
}

// Delete deletes the jobs that are left, with what Cloud Run knows of their executions. Logs
// are not touched. tell hears of each hundred.
func (r *Retirer) Delete(ctx context.Context, left Left, tell func(deleted, of int)) (int, error) {
	for i := 0; i < len(left.jobs); {
		err := r.cloudRun.DeleteJob(ctx, left.jobs[i])
		switch {
		case err == nil:
			i++
			if i%100 == 0 {
				tell(i, len(left.jobs))
			}
		case flowrun.FaultOf(err) == flowrun.Refused:
			tell(i, len(left.jobs))
			if serr := sleep(ctx, again); serr != nil {
				return i, errors.Join(err, serr)
			}
		default:
			return i, err
		}
	}
	return len(left.jobs), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
