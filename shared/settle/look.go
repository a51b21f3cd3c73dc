package settle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// Claim is who holds a flow run, as Prefect tells it: the newest PENDING of its history.
type Claim struct {
	// Ours: the PENDING carries a transition id that we can compute from a SCHEDULED state
	// before it. A worker's, or another installation's, is never ours.
	Ours     bool
	LaunchID flowrun.LaunchID
	// ScheduledStateAt is the time of that SCHEDULED state.
	ScheduledStateAt time.Time
	// Started: a RUNNING followed the PENDING.
	Started bool
	// CancellingAt is when it became CANCELLING after the PENDING; zero if it did not, or where
	// the history was not read.
	CancellingAt time.Time
	// Retried are the retries in the flow run's history; nil where that was not read.
	Retried map[flowrun.RetryKind]int
}

// Claim tells who holds the flow run. It reads the flow run's history only where flow run
// and record do not tell.
func (s *Settler) Claim(ctx context.Context, fr prefect.FlowRun, rec flowrun.Record) (Claim, error) {
	if fr.StateType == flowrun.StatePending && rec.LaunchID != "" && fr.State != nil &&
		fr.State.Details.TransitionID == string(rec.LaunchID) && rec.Status != flowrun.StatusNone {
		return Claim{Ours: true, LaunchID: rec.LaunchID, ScheduledStateAt: rec.ScheduledStateAt}, nil
	}
	switch fr.StateType {
	case flowrun.StateCompleted, flowrun.StateFailed, flowrun.StateCancelled:
		if rec.Status != flowrun.StatusNone {
			return Claim{LaunchID: rec.LaunchID}, nil // nothing is ever written over these
		}
	}
	states, err := s.prefect.FlowRunStates(ctx, fr.ID)
	if err != nil {
		return Claim{}, err
	}
	return claim(s.cfg.Install, fr.ID, states), nil
}

// claim finds the newest PENDING in a history, oldest state first, and whose it is.
func claim(install, flowRunID string, states []prefect.State) Claim {
	var c Claim
	var transitions []string
	scheduled := map[flowrun.LaunchID]time.Time{}
	for _, st := range states {
		switch st.Type {
		case flowrun.StateScheduled:
			transitions = append(transitions, st.Details.TransitionID)
			scheduled[flowrun.NewLaunchID(install, flowRunID, st.ID)] = st.Timestamp
		case flowrun.StatePending:
			id := flowrun.LaunchID(st.Details.TransitionID)
			at, ours := scheduled[id]
			c = Claim{Ours: ours, LaunchID: id, ScheduledStateAt: at}
		case flowrun.StateRunning:
			c.Started = true
		case flowrun.StateCancelling:
			c.CancellingAt = st.Timestamp
		}
	}
	c.Retried = flowrun.UsedRetries(install, flowRunID, transitions)
	return c
}

// Made reports whether the flow run itself tells that the launch's job was made.
func Made(fr prefect.FlowRun, id flowrun.LaunchID) bool {
	return strings.HasSuffix(fr.InfrastructurePID, "-"+id.Suffix())
}

// recovered is the launch as it can be known without the ledger.
func (s *Settler) recovered(fr prefect.FlowRun, c Claim, told *Ending) flowrun.Launch {
	l := flowrun.Launch{
		LaunchID: c.LaunchID, ScheduledStateAt: c.ScheduledStateAt, Status: flowrun.StatusClaimed,
		WorkPool: fr.WorkPoolName, DeploymentID: fr.DeploymentID, RequestedAt: fr.Created,
		CancelRequestedAt: c.CancellingAt,
	}
	if told != nil && told.LaunchID == c.LaunchID {
		l.Project, l.Region = told.Execution.Project, told.Execution.Region
		l.JobName, l.ExecutionName = told.Execution.Job, told.Execution.String()
	} else if Made(fr, c.LaunchID) {
		l.JobName = cloudrun.JobOf(fr.InfrastructurePID, c.LaunchID) // the region is looked for
	}
	return l
}

// found is what Cloud Run has of a launch.
type found struct {
	missing   bool
	execution *cloudrun.Execution // alive or ended
	ended     *Ending
	made      time.Time // when Cloud Run made it; the ledger may have lost it
	waiting   string    // what a job that has not started its execution waits for, if Cloud Run says
}

// waits says what a launch that is alive waits for.
func (f found) waits() string {
	switch {
	case f.execution != nil:
		return fmt.Sprintf("its execution %s runs, and no flow in it reported to Prefect", f.execution.Name.Execution)
	case f.waiting != "":
		return "its job is not ready. Cloud Run says: " + f.waiting
	}
	return "its job is not ready, and Cloud Run does not say why"
}

// find looks for the launch's execution, in its region or, where that is unknown, in all.
// Where the ledger lost the job's name too, it tries the one that most jobs have: after the
// flow run. What it finds out about the place, it records.
func (s *Settler) find(ctx context.Context, holder string, rec flowrun.Record, flowRunName string) (found, flowrun.Record, error) {
	l := rec.Launch
	if l.JobName == "" && l.ClaimedAt.IsZero() {
		l.JobName = jobtemplate.JobID(flowRunName, l.LaunchID)
	}
	if l.JobName == "" { // claimed, and nothing was tried yet
		return found{missing: true}, rec, nil
	}
	for _, place := range s.places(l) {
		l.Project, l.Region = place.Project, place.Region
		f, err := s.findIn(ctx, l)
		if err != nil {
			return f, rec, err
		}
		if f.missing {
			continue
		}
		if rec.Region == "" && rec.Status == flowrun.StatusClaimed {
			rec, err = s.apply(ctx, rec.FlowRunID, flowrun.Attempted{
				Holder: holder, LaunchID: l.LaunchID, Project: l.Project, Region: l.Region, JobName: l.JobName,
			})
		}
		return f, rec, err
	}
	if rec.JobName == "" {
		return s.search(ctx, holder, rec)
	}
	return found{missing: true}, rec, nil
}

// search looks through all executions for the launch's: the ledger was lost, Prefect was never
// told the job's name, and it is not the one that most jobs have.
func (s *Settler) search(ctx context.Context, holder string, rec flowrun.Record) (found, flowrun.Record, error) {
	for _, place := range s.places(flowrun.Launch{}) {
		for x, err := range s.cfg.Executions.Executions(ctx, place.Project, place.Region) {
			if err != nil {
				return found{}, rec, err
			}
			if x.Labels[cloudrun.LabelLaunch] != string(rec.LaunchID) {
				continue
			}
			rec, err := s.apply(ctx, rec.FlowRunID, flowrun.Attempted{
				Holder: holder, LaunchID: rec.LaunchID, Project: place.Project, Region: place.Region, JobName: x.Name.Job,
			})
			if err != nil {
				return found{}, rec, err
			}
			f, err := s.findIn(ctx, rec.Launch)
			return f, rec, err
		}
	}
	return found{missing: true}, rec, nil
}

// places are where the launch's job can be.
func (s *Settler) places(l flowrun.Launch) []cloudrun.JobName {
	if l.Region != "" {
		return []cloudrun.JobName{s.name(l).JobName()}
	}
	var all []cloudrun.JobName
	for _, project := range s.cfg.Projects {
		for _, region := range s.cfg.Regions {
			all = append(all, cloudrun.JobName{Project: project, Region: region, Job: l.JobName})
		}
	}
	return all
}

func (s *Settler) findIn(ctx context.Context, l flowrun.Launch) (found, error) {
	x, err := s.cloudRun.Execution(ctx, s.name(l))
	if err == nil && x.Labels[cloudrun.LabelLaunch] != string(l.LaunchID) {
		return found{missing: true}, nil // somebody else's job of that name
	}
	if err == nil {
		f := found{execution: &x, made: x.CreateTime}
		if x.Outcome != nil {
			f.ended = &Ending{
				LaunchID: l.LaunchID, Execution: x.Name, Outcome: *x.Outcome, StartedAt: x.StartTime, EndedAt: x.CompletionTime,
				Resources: x.Resources, Retries: flowrun.ParseRetries(x.Labels[cloudrun.LabelRetries]),
			}
		}
		return f, nil
	}
	if flowrun.FaultOf(err) != flowrun.NotFound {
		return found{}, err
	}
	job, err := s.cloudRun.Job(ctx, s.name(l).JobName())
	if err != nil {
		if flowrun.FaultOf(err) == flowrun.NotFound {
			return found{missing: true}, nil
		}
		return found{}, err
	}
	if job.Labels[cloudrun.LabelLaunch] != string(l.LaunchID) {
		return found{missing: true}, nil
	}
	if job.Failure != nil { // it never started, and never will
		return found{ended: &Ending{
			LaunchID: l.LaunchID, Execution: s.name(l), Outcome: *job.Failure, EndedAt: s.cfg.Now(),
			Retries: flowrun.ParseRetries(job.Labels[cloudrun.LabelRetries]),
		}}, nil
	}
	if job.Reconciling {
		return found{made: job.CreateTime, waiting: job.Waiting}, nil
	}
	return found{missing: true}, nil // a job that is ready and whose execution was deleted
}

// name is the full name of the launch's execution.
func (s *Settler) name(l flowrun.Launch) cloudrun.ExecutionName {
	if n, err := cloudrun.ParseExecutionName(l.ExecutionName); err == nil {
		return n
	}
	return cloudrun.JobName{Project: cmp.Or(l.Project, s.cfg.Projects[0]), Region: l.Region, Job: l.JobName}.Launched(l.LaunchID)
}

// where is the links that end a message to the flow's author.
func (s *Settler) where(n cloudrun.ExecutionName) string {
	if n.Job == "" || n.Region == "" {
		return ""
	}
	return " " + n.Links()
}

// apply writes an event to the ledger.
func (s *Settler) apply(ctx context.Context, flowRunID string, e flowrun.Event) (flowrun.Record, error) {
	return s.ledger.Update(ctx, flowRunID, func(r flowrun.Record) (flowrun.Record, error) {
		return flowrun.Apply(r, e, s.cfg.Now())
	})
}

// Fence bounds ctx so that every call made with it ends before the lease does.
func (s *Settler) Fence(ctx context.Context, rec flowrun.Record) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, rec.LeaseUntil.Sub(s.cfg.Now())-s.cfg.CallTimeout/2)
}

// release gives the lease back. After an unclear failure a request may still be under way:
// then the lease ends a little later.
func (s *Settler) release(ctx context.Context, holder, flowRunID string, failed error) flowrun.Record {
	return Release(ctx, s.ledger, s.log, holder, flowRunID, failed, s.cfg.Now, s.cfg.CallTimeout)
}

// Release gives a lease back, at once or, where failed leaves open what came of a call,
// when that call must be over. It returns the record as it leaves it, empty where the lease
// was no longer the holder's. A lease that cannot be given back runs out by itself.
func Release(ctx context.Context, l Ledger, log interface {
	WarnContext(ctx context.Context, msg string, args ...any)
}, holder, flowRunID string, failed error, now func() time.Time, callTimeout time.Duration,
) flowrun.Record {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	at := now()
	var call *flowrun.Error
	if errors.As(failed, &call) && call.Fault == flowrun.Unclear || errors.Is(failed, context.DeadlineExceeded) {
		at = at.Add(callTimeout / 2)
	}
	rec, err := l.Update(ctx, flowRunID, func(r flowrun.Record) (flowrun.Record, error) {
		return flowrun.Apply(r, flowrun.Released{Holder: holder, At: at}, now())
	})
	if err == nil {
		return rec
	}
	if !errors.Is(err, flowrun.ErrDone) {
		log.WarnContext(ctx, "the lease on a flow run could not be given back; it runs out by itself", "flow_run_id", flowRunID, "error", err)
	}
	return flowrun.Record{}
}

// later asks for another look at a time and says why.
func (s *Settler) later(ctx context.Context, rec flowrun.Record, at time.Time, cause, why string) error {
	if err := s.messages.DispatchAt(ctx, rec.FlowRunID, at, cause); err != nil {
		return err
	}
	telemetry.Note(ctx, s.log, rec.FlowRunID, why, slog.Time("look_again_at", at))
	return nil
}

func view(fr prefect.FlowRun) flowrun.View {
	v := flowrun.View{
		StateType: fr.StateType, StateName: fr.StateName, StateAt: stateAt(fr),
		RetryInProcess: fr.RetryType() == prefect.RetryInProcess,
	}
	v.Suspended = fr.State != nil && fr.State.Details.PauseReschedule
	return v
}

func stateAt(fr prefect.FlowRun) time.Time {
	if fr.State == nil {
		return time.Time{}
	}
	return fr.State.Timestamp
}

func timePointer(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
