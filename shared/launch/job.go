package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// plan is a job and how it is to be launched.
type plan struct {
	cloudrun.Launch
	Options
	flowRun prefect.FlowRun
}

// launch creates the job that starts the execution, and records it. The caller holds the
// lease; the flow run is PENDING of this launch. repeated: an earlier try may have been made.
func (l *Launcher) launch(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, o *origin, repeated bool) error {
	p, err := l.render(ctx, rec, fr, o)
	earlier := rec.Region != "" // a try was made there
	name := cloudrun.JobName{Project: cmp.Or(rec.Project, l.cfg.Projects[0]), Region: rec.Region, Job: rec.JobName}
	if !earlier && repeated {
		// The ledger may have been lost between an earlier try and this one.
		var lerr error
		if name, earlier, lerr = l.search(ctx, rec.LaunchID); lerr != nil {
			return lerr
		}
	}
	switch {
	case earlier:
		// In its place, whatever the quota says, until it is clear what came of that try.
		rec, name, err = l.repeat(ctx, holder, rec, p, name, err)
	case err == nil:
		rec, name, err = l.place(ctx, holder, rec, p)
	}
	if err != nil {
		return l.failed(ctx, holder, rec, err)
	}
	execution := name.Launched(rec.LaunchID)
	// As Prefect's worker does: Prefect cancels nothing that has no infrastructure_pid, and a
	// lost ledger is recovered by it.
	if err := l.flowRuns.UpdateFlowRun(ctx, fr.ID, map[string]any{"infrastructure_pid": pid(name, execution)}); err != nil {
		l.log.WarnContext(ctx, "infrastructure_pid was not set on the flow run; it is launched all the same",
			"flow_run_id", fr.ID, "error", err)
	}
	rec, err = l.launched(ctx, rec, flowrun.Launched{Holder: holder, LaunchID: rec.LaunchID, ExecutionName: execution.String()})
	if errors.Is(err, flowrun.ErrLost) || err == nil && rec.Status == flowrun.StatusAbandoned {
		// While this was under way, another launch took its place, or it was to be stopped:
		// nothing may be left of it.
		return l.settler.Look(ctx, holder, fr.ID)
	}
	if err != nil && !errors.Is(err, flowrun.ErrDone) {
		return err
	}
	telemetry.Note(ctx, l.log, fr.ID, "launched", slog.String("deployment_id", fr.DeploymentID),
		slog.String("work_pool", fr.WorkPoolName), slog.String("execution", execution.String()))
	return nil
}

// launched records that the execution was made, even where the message's time is over.
func (l *Launcher) launched(ctx context.Context, rec flowrun.Record, e flowrun.Launched) (flowrun.Record, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.CallTimeout)
	defer cancel()
	return l.apply(ctx, rec.FlowRunID, e)
}

// pid is what Prefect is told of the launch: the job's name, as its worker does, or a slot's
// execution, which alone is the launch's.
func pid(job cloudrun.JobName, x cloudrun.ExecutionName) string {
	if job.Slot() {
		return x.Execution
	}
	return job.Job
}

// repeat makes a launch in the place where an earlier try was made. failed is why the job
// could not be rendered again; nil if it could.
func (l *Launcher) repeat(ctx context.Context, holder string, rec flowrun.Record, p plan, name cloudrun.JobName, failed error) (flowrun.Record, cloudrun.JobName, error) {
	there := p
	there.Name = name
	rec, err := l.attempted(ctx, holder, rec, there.Launch)
	if err != nil {
		return rec, name, err
	}
	// What the earlier try made may have run and been deleted by somebody since the flow run was read: its name is
	// free then, and a job by that name would execute the flow run once more.
	fr, err := l.fresh(ctx, rec.FlowRunID)
	if err != nil && flowrun.FaultOf(err) != flowrun.NotFound {
		return rec, name, err
	}
	switch {
	case err != nil || fr.StateType != flowrun.StatePending:
		return rec, name, nil
	case failed != nil:
		err = failed
	case name.Slot():
		made, err := l.again(ctx, there)
		if made || err != nil {
			return rec, name, err
		}
		return l.place(ctx, holder, rec, p)
	default:
		err = l.create(ctx, rec.LaunchID, there.Launch)
	}
	if err == nil {
		return rec, name, nil
	}
	err = l.unlessMade(ctx, rec.LaunchID, name, err)
	if errors.Is(err, errCapacity) {
		l.tell(ctx, name, err)
		err = l.noRoom(ctx, rec, there, err, time.Time{})
	}
	return rec, name, err
}

// lost is an error of the ledger, after which nothing may be done about the launch.
type lost struct{ error }

func (e *lost) Unwrap() error { return e.error }

// attempted records where a try is made, so that whoever takes over looks there. Its error is a lost.
func (l *Launcher) attempted(ctx context.Context, holder string, rec flowrun.Record, p cloudrun.Launch) (flowrun.Record, error) {
	rec, err := l.apply(ctx, rec.FlowRunID, flowrun.Attempted{
		Holder: holder, LaunchID: rec.LaunchID, Project: p.Name.Project, Region: p.Name.Region, JobName: p.Name.Job,
		Retries: flowrun.ParseRetries(p.Job.GetLabels()[cloudrun.LabelRetries]), Resources: cloudrun.Resources(p.Job),
	})
	if err != nil {
		return rec, &lost{err}
	}
	return rec, nil
}

// render resolves the work pool's template for the flow run.
func (l *Launcher) render(ctx context.Context, rec flowrun.Record, fr prefect.FlowRun, o *origin) (plan, error) {
	if err := o.wait(); err != nil {
		return plan{}, err
	}
	in := input(l.cfg, o, l.templates.of(o.pool), fr)
	if parent := traceparent(ctx, fr); parent != "" {
		in.Settings = append(slices.Clip(in.Settings), jobtemplate.Setting{Name: "TRACEPARENT", Value: parent})
	}
	r, err := jobtemplate.Render(ctx, in, l.lookup)
	if err != nil {
		return plan{}, err
	}
	options, err := l.cfg.Options.with(r.Options)
	if err != nil {
		return plan{}, err
	}
	if err := l.permitted(r, options, o.pool.Name); err != nil {
		return plan{}, err
	}
	if err := l.cfg.Secrets.Apply(&r); err != nil {
		return plan{}, err
	}
	body, err := r.Job()
	if err != nil {
		return plan{}, err
	}
	if err := l.cfg.Policy.Permits(body); err != nil {
		return plan{}, err
	}
	cloudrun.OneAttempt(body)
	if options.FastStart {
		cloudrun.StartFast(body)
	}
	most := l.cfg.RetryMemory
	if l.cfg.Policy.Memory > 0 {
		most = min(most, l.cfg.Policy.Memory)
	}
	cloudrun.GrowMemory(body, rec.Retried[flowrun.RetryOutOfMemory], most)
	if r.KeepJob {
		cloudrun.SetKeep(body)
	}
	// Last, so that no job variable can overwrite them: by these an execution is recognised as ours.
	cloudrun.SetLabels(body, ourLabels(l.cfg, fr.ID, rec.LaunchID, options.Retries))
	name := cloudrun.JobName{Project: r.Project, Region: r.Region, Job: jobtemplate.JobID(r.Name, rec.LaunchID)}
	return plan{cloudrun.Launch{Name: name, ID: rec.LaunchID, Job: body}, options, fr}, nil
}

func ourLabels(cfg Config, flowRunID string, id flowrun.LaunchID, r flowrun.Retries) map[string]string {
	return map[string]string{
		cloudrun.LabelFlowRun: flowRunID, cloudrun.LabelLaunch: string(id), cloudrun.LabelInstall: cfg.Name, cloudrun.LabelRetries: r.String(),
	}
}

// permitted returns why a job may not be launched where its template wants it, as whom it
// wants it: never is it launched elsewhere, or as somebody else, without a word.
func (l *Launcher) permitted(r jobtemplate.Rendered, o Options, pool string) error {
	refused := func(act, hint string, args ...any) error {
		return &flowrun.Error{Fault: flowrun.Permanent, Act: act, Hint: fmt.Sprintf(hint, args...)}
	}
	switch {
	case !slices.Contains(l.cfg.Projects, r.Project):
		return refused("use the credentials of work pool "+pool,
			"they name project %q and this installation launches in %s; clear the work pool's `credentials`, or add the project to the installation",
			r.Project, strings.Join(l.cfg.Projects, ", "))
	case r.ServiceAccountKey:
		return refused("use the credentials of work pool "+pool,
			"they hold the key of a service account, and jobs are created with this installation's own identity; "+
				"clear the work pool's `credentials`, and name the identity of the flow with the job variable `service_account_name`")
	case len(l.cfg.Regions) > 0 && !slices.Contains(l.cfg.Regions, r.Region):
		return refused("launch in region "+r.Region,
			"this installation launches in %s only; change the job variable `region`, or add the region to the installation",
			strings.Join(l.cfg.Regions, ", "))
	}
	for _, region := range o.Overflow {
		if !slices.Contains(l.cfg.Regions, region) {
			return refused("overflow into region "+region,
				"this installation launches in %s only; change the job variable `pushpool_overflow_regions`, or add the region to the installation",
				strings.Join(l.cfg.Regions, ", "))
		}
	}
	return nil
}

// search returns the job of a launch whose place nobody recorded, whatever its name and
// wherever it is: the one made for it, or the slot that started its execution.
func (l *Launcher) search(ctx context.Context, id flowrun.LaunchID) (place cloudrun.JobName, found bool, err error) {
	for _, project := range l.cfg.Projects {
		for _, region := range l.cfg.Regions {
			for job, err := range l.cfg.Jobs(ctx, project, region) {
				if err != nil {
					return place, false, err
				}
				labels := job.Labels
				if job.Name.Slot() {
					if labels, err = l.made(ctx, job.Name, id); err != nil && flowrun.FaultOf(err) != flowrun.NotFound {
						return place, false, err
					}
				}
				if labels[cloudrun.LabelLaunch] == string(id) {
					return job.Name, true, nil
				}
			}
		}
	}
	return place, false, nil
}

// made returns the labels of what a launch made in a place: of its job, or, as a slot's job
// may have been updated since, of its execution there.
func (l *Launcher) made(ctx context.Context, place cloudrun.JobName, id flowrun.LaunchID) (map[string]string, error) {
	if place.Slot() {
		x, err := l.cloudRun.Execution(ctx, place.Launched(id))
		if err == nil || flowrun.FaultOf(err) != flowrun.NotFound {
			return x.Labels, err
		}
	}
	job, err := l.cloudRun.Job(ctx, place)
	return job.Labels, err
}

// create creates the job; that it exists already is success where it is this launch's own.
func (l *Launcher) create(ctx context.Context, id flowrun.LaunchID, job cloudrun.Launch) error {
	err := l.cloudRun.CreateJob(ctx, job)
	switch {
	case err == nil:
		return nil
	case flowrun.FaultOf(err) == flowrun.Refused:
		return fmt.Errorf("%w: %w", errCapacity, err)
	case flowrun.FaultOf(err) != flowrun.Exists:
		return err
	}
	there, err := l.cloudRun.Job(ctx, job.Name)
	switch {
	case err != nil && flowrun.FaultOf(err) == flowrun.NotFound:
		// It is just being deleted: there is no verdict in that.
		return &flowrun.Error{Act: "create job " + job.Name.String(), Err: fmt.Errorf("a job of that name exists, and is gone when it is read: %w", err)}
	case err != nil:
		return err
	case there.Labels[cloudrun.LabelLaunch] != string(id):
		return &flowrun.Error{
			Fault: flowrun.Permanent, Act: "create job " + job.Name.String(),
			Hint: fmt.Sprintf("a job of that name exists and belongs to launch %q, not to %q; delete it or change the flow run's name",
				there.Labels[cloudrun.LabelLaunch], id),
		}
	}
	return nil
}

// unlessMade returns what came of a try, or nil where an earlier one, of which nobody knows
// what came, has made the job: then no refusal of this one is the launch's end.
func (l *Launcher) unlessMade(ctx context.Context, id flowrun.LaunchID, name cloudrun.JobName, failed error) error {
	labels, err := l.made(ctx, name, id)
	switch {
	case err == nil && labels[cloudrun.LabelLaunch] == string(id):
		return nil
	case err != nil && flowrun.FaultOf(err) != flowrun.NotFound && flowrun.FaultOf(err) != flowrun.Permanent:
		// Of the refusal its words alone: it is not what this launch came to.
		return &flowrun.Error{Act: "look whether an earlier try made job " + name.String(), Err: fmt.Errorf("%w; before that: %s", err, failed.Error())}
	}
	return failed
}

// failed decides what a launch comes to that could not be made: put back for lack of
// quota, rejected for good, or tried again when the message is redelivered.
func (l *Launcher) failed(ctx context.Context, holder string, rec flowrun.Record, err error) error {
	var event flowrun.Event
	var wait *noRoom
	var gone *lost
	var deleted errDeleted
	switch fault := flowrun.FaultOf(err); {
	case errors.As(err, &gone):
		return gone.error
	case errors.As(err, &wait):
		event = flowrun.PutBack{
			Holder: holder, Reason: err.Error(), Region: wait.region, SlotAt: wait.at, WaitingSince: wait.since,
			Report: &flowrun.Report{
				Type: flowrun.StateScheduled, Name: flowrun.AwaitingCapacity, ScheduledTime: wait.at,
				Message: fmt.Sprintf("Cloud Run has no capacity for this flow run now; it is launched at %s. Waiting since %s: %v",
					wait.at.UTC().Format(time.TimeOnly), wait.since.UTC().Format(time.RFC3339), err),
			},
		}
	case errors.As(err, &deleted):
		event = flowrun.Rejected{Holder: holder, Reason: err.Error(), Report: &flowrun.Report{
			Type: flowrun.StateCancelled, Name: "Cancelled", Message: deleted.Error(),
		}}
	case fault == flowrun.Permanent, fault == flowrun.NotFound:
		event = flowrun.Rejected{Holder: holder, Reason: err.Error(), Report: &flowrun.Report{
			Type: flowrun.StateCrashed, Name: "Crashed", Message: "Failed to submit flow run to infrastructure: " + err.Error(),
		}}
	default:
		return err
	}
	rec, aerr := l.apply(ctx, rec.FlowRunID, event)
	if aerr != nil {
		return aerr
	}
	l.log.WarnContext(ctx, "flow run not launched", "flow_run_id", rec.FlowRunID, "work_pool", rec.WorkPool, "error", err)
	if err := l.settler.Report(ctx, holder, rec); err != nil {
		return err
	}
	if wait != nil && wait.at.Sub(l.cfg.Now()) <= l.cfg.LookAhead {
		// Prefect tells of the new state, too; the time is kept for half a minute only.
		if err := l.messages.DispatchAt(ctx, rec.FlowRunID, wait.at, "due"); err != nil {
			return err
		}
	}
	_, err = l.apply(ctx, rec.FlowRunID, flowrun.Released{Holder: holder})
	return acknowledge(err)
}
