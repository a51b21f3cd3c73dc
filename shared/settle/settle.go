// Package settle brings a launched flow run to its true end in Prefect and in the ledger.
//
// The finalizer calls it when an execution ended, the dispatcher when a flow run is
// cancelled or launched anew, the reconciler when the three records differ. All of them
// go the same way: take the flow run's lease, read the flow run, look at the execution,
// decide, store the verdict, tell Prefect.
package settle

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Prefect is what settling asks of Prefect's API.
type Prefect interface {
	FlowRun(ctx context.Context, id string) (prefect.FlowRun, error)
	FlowRunStates(ctx context.Context, flowRunID string) ([]prefect.State, error)
	SetState(ctx context.Context, flowRunID string, p prefect.Proposal) (prefect.Answer, error)
}

// CloudRun is what settling asks of Cloud Run.
type CloudRun interface {
	Job(ctx context.Context, name cloudrun.JobName) (cloudrun.Job, error)
	Execution(ctx context.Context, name cloudrun.ExecutionName) (cloudrun.Execution, error)
	CancelExecution(ctx context.Context, name cloudrun.ExecutionName) error
	DeleteJob(ctx context.Context, name cloudrun.JobName) error
}

// Executions lists executions; *cloudrun.Client does.
type Executions interface {
	Executions(ctx context.Context, project, region string) iter.Seq2[cloudrun.Execution, error]
}

// Ledger is what settling asks of the ledger.
type Ledger interface {
	Update(ctx context.Context, flowRunID string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error)
	UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error)
}

// Messages sends what follows to the topic flow-runs.
type Messages interface {
	// Dispatch asks to look at the flow run now.
	Dispatch(ctx context.Context, flowRunID string) error
	// DispatchAt asks to look at the flow run at a time; cause tells timers of the same
	// time apart.
	DispatchAt(ctx context.Context, flowRunID string, at time.Time, cause string) error
	// Freed tells that a slot of the work pool and of the deployment came free; either may be empty.
	Freed(ctx context.Context, workPool, deploymentID string) error
}

// Config holds the deadlines of settling.
type Config struct {
	// Projects are those that jobs may run in, the installation's own first.
	Projects []string
	Install  string
	// Regions are looked through for an execution whose place the ledger has lost.
	Regions []string
	// Lease is how long one handler may write about a flow run; CallTimeout is the longest
	// that one call to Prefect or Cloud Run takes. No call starts in the last CallTimeout of a lease.
	Lease, CallTimeout time.Duration
	// ReportGrace is how long a flow run may stay RUNNING after its container exited with 0.
	ReportGrace time.Duration
	// CancelGrace is how long a flow that listens for its cancellation is left to itself.
	CancelGrace time.Duration
	// GoneAfter is how long after the first look a missing execution has to be missing still.
	GoneAfter time.Duration
	// StartDeadline is how long a flow run may be PENDING before its launch is given up; 0: for ever.
	StartDeadline time.Duration
	// Retries are those of launches whose own are not known: the ledger was lost, and nothing
	// of the launch is left that holds them.
	Retries flowrun.Retries
	// RetryDelay passes before the first retry of a kind; before each further one twice as much.
	RetryDelay time.Duration
	// RetryMemory is the most memory that a retry may have, in bytes.
	RetryMemory int64
	// Executions lists those of a region, for a launch whose job's name nobody knows any more.
	Executions Executions
	// Lines and Logs copy a container's last lines to the flow run's log; nil: they are not.
	Lines Lines
	Logs  FlowRunLogs
	Now   func() time.Time
	// Random spreads retries, from 0 up to 1; nil means rand.Float64.
	Random func() float64
}

// Settler settles flow runs. It is safe for concurrent use.
type Settler struct {
	prefect  Prefect
	cloudRun CloudRun
	ledger   Ledger
	messages Messages
	log      *slog.Logger
	cfg      Config
}

// New returns a settler.
func New(p Prefect, c CloudRun, l Ledger, m Messages, log *slog.Logger, cfg Config) *Settler {
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	return &Settler{prefect: p, cloudRun: c, ledger: l, messages: m, log: log, cfg: cfg}
}

// ErrWait: there is nothing to do yet. The message is to be delivered again.
var ErrWait = errors.New("not yet")

// Ending is an execution's end as somebody else told it.
type Ending struct {
	LaunchID  flowrun.LaunchID
	Execution cloudrun.ExecutionName
	Outcome   flowrun.Outcome
	StartedAt time.Time
	EndedAt   time.Time
	// Resources and Retries are zero and nil where nobody told them.
	Resources flowrun.Resources
	Retries   *flowrun.Retries
}

// Ended settles the flow run whose execution ended. An ending of a launch that is not
// the flow run's current one is recorded and not reported.
func (s *Settler) Ended(ctx context.Context, holder, flowRunID string, e Ending) error {
	return s.settle(ctx, holder, flowRunID, &e,
		func(ctx context.Context, rec flowrun.Record) error { return s.deleted(ctx, holder, rec, e) },
		func(ctx context.Context, rec flowrun.Record, fr prefect.FlowRun, c Claim) error {
			return s.conclude(ctx, holder, rec, fr, c, e)
		})
}

// Look settles the flow run by what Prefect and Cloud Run show of it: its execution ended
// or is gone, it is to be cancelled, an earlier launch stands in a new one's way.
// The error is flowrun.ErrBusy or ErrWait where somebody has to come again.
func (s *Settler) Look(ctx context.Context, holder, flowRunID string) error {
	return s.settle(ctx, holder, flowRunID, nil,
		func(ctx context.Context, rec flowrun.Record) error { return s.lookWithout(ctx, holder, rec) },
		func(ctx context.Context, rec flowrun.Record, fr prefect.FlowRun, c Claim) error {
			return s.look(ctx, holder, rec, fr, c)
		})
}

// settle takes the lease, finds out whose the flow run is, and goes on with next, or with gone where
// Prefect has it no more. Functions, so that whoever is told of ends stops nothing and needs no
// permission to.
func (s *Settler) settle(
	ctx context.Context, holder, flowRunID string, told *Ending,
	gone func(context.Context, flowrun.Record) error,
	next func(context.Context, flowrun.Record, prefect.FlowRun, Claim) error,
) (err error) {
	rec, err := s.take(ctx, holder, flowRunID)
	if err != nil {
		return err
	}
	caller, before, there := ctx, rec, false
	defer func() {
		// Its last lines keep nobody waiting: by then the lease is given back.
		if after := s.release(ctx, holder, flowRunID, err); there {
			s.tail(caller, before, after)
		}
	}()
	ctx, cancel := s.Fence(ctx, rec)
	defer cancel()

	fr, err := s.prefect.FlowRun(ctx, flowRunID)
	if flowrun.FaultOf(err) == flowrun.NotFound && err != nil {
		return gone(ctx, rec)
	}
	if err != nil {
		return err
	}
	there = true
	c, err := s.Claim(ctx, fr, rec)
	if err != nil {
		return err
	}
	known := !c.Ours || c.LaunchID == rec.LaunchID
	if rec.Unreported() {
		// Where somebody else claimed the flow run meanwhile, the verdict is no longer about it.
		if rec, err = s.report(ctx, holder, rec, fr, c.Ours && known); err != nil {
			return err
		}
		if known && (told == nil || told.LaunchID == rec.LaunchID) {
			return s.messages.Freed(ctx, fr.WorkPoolName, fr.DeploymentID)
		}
	}
	if !known {
		if rec, err = s.apply(ctx, flowRunID, flowrun.Corrected{Holder: holder, Launch: s.recovered(fr, c, told), Retried: c.Retried}); err != nil {
			return err
		}
	}
	return next(ctx, rec, fr, c)
}

// look goes by what Cloud Run shows of the launch.
func (s *Settler) look(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, c Claim) error {
	if rec.Status.Over() {
		// The ledger has its verdict and Prefect was told; or nothing was ever launched.
		if fr.StateType == flowrun.StateCancelling && c.Ours {
			return s.cancelled(ctx, rec, fr)
		}
		return s.foreign(ctx, holder, rec, fr, c)
	}
	f, rec, err := s.find(ctx, holder, rec, fr.Name)
	if err != nil {
		return err
	}
	switch {
	case f.ended != nil:
		return s.conclude(ctx, holder, rec, fr, c, *f.ended)
	case f.missing:
		return s.missing(ctx, holder, rec, fr, c)
	}
	return s.alive(ctx, holder, rec, fr, c, f)
}

// conclude stores the verdict on an execution that ended, then tells Prefect.
func (s *Settler) conclude(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, c Claim, e Ending) error {
	v := view(fr)
	v.Current = c.Ours && e.LaunchID == c.LaunchID
	if rec.Status == flowrun.StatusAbandoned && rec.Outcome != "" && e.LaunchID == rec.LaunchID {
		e.Outcome = flowrun.Outcome{Kind: rec.Outcome, Text: rec.Reason} // its end is our doing
	}
	now := s.cfg.Now()
	endedAt := e.EndedAt
	if endedAt.IsZero() {
		endedAt = now
	}
	report, next := flowrun.Verdict(v, rec.Launch, e.Outcome, s.where(e.Execution), endedAt, now, s.cfg.ReportGrace)
	if next == flowrun.NextLook {
		return fmt.Errorf("%w: execution %s succeeded, flow run %s is %s; it is looked at again until %s",
			ErrWait, e.Execution, rec.FlowRunID, v.StateType, endedAt.Add(s.cfg.ReportGrace).Format(time.RFC3339))
	}
	report, err := s.again(ctx, rec, fr, c, e, report)
	if err != nil {
		return err
	}
	rec, err = s.apply(ctx, rec.FlowRunID, flowrun.Ended{
		Holder: holder, LaunchID: e.LaunchID, ExecutionName: e.Execution.String(),
		Outcome: e.Outcome, StartedAt: e.StartedAt, RunningAt: runningAt(rec.Launch, fr), EndedAt: endedAt, FinalAt: finalAt(fr),
		Resources: e.Resources, Reason: e.Outcome.Text, Report: report,
	})
	switch {
	case errors.Is(err, flowrun.ErrDone):
		// Recorded before, or unknown to a ledger that was lost: what follows may not have been sent.
	case err != nil:
		return err
	case report == nil:
		s.learn(ctx, rec)
		s.finished(ctx, rec, fr.StateType)
	default:
		if _, err = s.report(ctx, holder, rec, fr, true); err != nil {
			return err
		}
	}
	if next == flowrun.NextDispatch {
		if err := s.messages.Dispatch(ctx, fr.ID); err != nil {
			return err
		}
	}
	return s.messages.Freed(ctx, fr.WorkPoolName, fr.DeploymentID)
}

// missing deals with a launch of which neither job nor execution is to be found.
func (s *Settler) missing(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, c Claim) error {
	now := s.cfg.Now()
	lost := rec.ClaimedAt.IsZero() // by the ledger, which follows Prefect since
	if fr.StateType == flowrun.StatePending && rec.Status == flowrun.StatusClaimed && (!lost || !Made(fr, rec.LaunchID)) {
		if !s.late(fr, rec.LaunchedAt) {
			// The launch was interrupted: resume it, which makes nothing that is there already.
			return s.messages.Dispatch(ctx, rec.FlowRunID)
		}
		var err error
		if rec, err = s.abandon(ctx, holder, rec, s.notStarted("no job could be created; the dispatcher's log lines tell why"), flowrun.NotStarted); err != nil {
			return err
		}
	}
	// Only a ledger that has seen the claim knows that nothing was tried.
	attempted := rec.Region != "" || lost
	if fr.StateType == flowrun.StateScheduled && !c.Ours && !attempted {
		// Its launcher died before Prefect had the PENDING. A launch that had ended would not start again.
		if _, err := s.apply(ctx, rec.FlowRunID, flowrun.Discarded{Holder: holder, LaunchID: rec.LaunchID}); err != nil {
			return err
		}
		return s.messages.Dispatch(ctx, rec.FlowRunID)
	}
	if rec.MissingSince.IsZero() && attempted {
		rec, err := s.apply(ctx, rec.FlowRunID, flowrun.Missing{Holder: holder})
		if err != nil {
			return err
		}
		return s.later(ctx, rec, rec.MissingSince.Add(s.cfg.GoneAfter), "missing", "its execution was not found; it is believed gone when it is not found again")
	}
	if attempted && now.Before(rec.MissingSince.Add(s.cfg.GoneAfter)) {
		return s.later(ctx, rec, rec.MissingSince.Add(s.cfg.GoneAfter), "missing", "its execution was not found a moment ago")
	}
	kind := flowrun.Deleted
	if fr.StateType == flowrun.StateCancelling || !attempted {
		kind = flowrun.Cancelled
	}
	return s.conclude(ctx, holder, rec, fr, c, Ending{
		LaunchID: rec.LaunchID, Execution: s.name(rec.Launch), EndedAt: now,
		Outcome: flowrun.Outcome{Kind: kind},
	})
}

// alive deals with a launch whose execution runs, or whose job is about to start it.
func (s *Settler) alive(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, c Claim, f found) error {
	if rec.Status == flowrun.StatusClaimed && f.execution != nil {
		// Whoever launched it died before recording it.
		var err error
		rec, err = s.apply(ctx, rec.FlowRunID, flowrun.Launched{LaunchID: rec.LaunchID, ExecutionName: f.execution.Name.String()})
		if err != nil && !errors.Is(err, flowrun.ErrDone) {
			return err
		}
	}
	switch {
	case fr.StateType == flowrun.StateCancelling && c.Ours:
		return s.cancel(ctx, holder, rec, fr, c, f)
	case fr.StateType == flowrun.StateScheduled && fr.RetryType() == prefect.RetryInProcess:
		return nil // the container waits and tries again itself
	case fr.StateType == flowrun.StateScheduled:
		return s.stop(ctx, holder, rec, f, "the flow run is to be launched anew", "")
	case fr.StateType == flowrun.StatePending && c.Ours && s.late(fr, rec.LaunchedAt, f.made):
		return s.stop(ctx, holder, rec, f, s.notStarted(f.waits()), flowrun.NotStarted)
	case fr.StateType == flowrun.StateCrashed, fr.StateType == flowrun.StateCancelled:
		// Never because it completed or failed: its container may be cleaning up.
		if s.outlived(fr) {
			return s.stop(ctx, holder, rec, f, "the flow run is "+string(fr.StateType), "")
		}
	case !fr.StateType.Terminal() && !c.Ours:
		return s.stop(ctx, holder, rec, f, "somebody else launched the flow run", "")
	}
	return nil
}
