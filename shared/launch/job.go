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

// errCapacity marks a job that Cloud Run definitely refused to create now.
var errCapacity = errors.New("no capacity")

// launch creates the job that starts the execution, and records it. The caller holds the
// lease; the flow run is PENDING of this launch. repeated: an earlier try may have been made.
func (l *Launcher) launch(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, o *origin, repeated bool) error {
	job, err := l.render(ctx, rec, fr, o)
	earlier := repeated || rec.Region != ""
	switch {
	case rec.Region != "": // a try was made there
		job.Name = cloudrun.JobName{Project: cmp.Or(rec.Project, l.cfg.Projects[0]), Region: rec.Region, Job: rec.JobName}
	case err == nil && repeated:
		// The ledger may have been lost between an earlier try and this one.
		job.Name, err = l.search(ctx, rec.LaunchID, job.Name)
	}
	if err == nil {
		attempted, aerr := l.apply(ctx, rec.FlowRunID, flowrun.Attempted{
			Holder: holder, LaunchID: rec.LaunchID, Project: job.Name.Project, Region: job.Name.Region, JobName: job.Name.Job,
			Retries: flowrun.ParseRetries(job.Job.GetLabels()[cloudrun.LabelRetries]), Resources: cloudrun.Resources(job.Job),
		})
		if aerr != nil {
			return aerr
		}
		rec, err = attempted, l.create(ctx, rec.LaunchID, job)
	}
	if err != nil && earlier && job.Name.Job != "" {
		err = l.unlessMade(ctx, rec.LaunchID, job.Name, err)
	}
	if err != nil {
		return l.failed(ctx, holder, rec, err)
	}
	execution := job.Name.Execution(cloudrun.Token)
	// As Prefect's worker does: Prefect cancels nothing that has no infrastructure_pid, and a
	// lost ledger is recovered by it.
	if err := l.flowRuns.UpdateFlowRun(ctx, fr.ID, map[string]any{"infrastructure_pid": job.Name.Job}); err != nil {
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

// render resolves the work pool's template for the flow run.
func (l *Launcher) render(ctx context.Context, rec flowrun.Record, fr prefect.FlowRun, o *origin) (cloudrun.Launch, error) {
	if err := o.wait(); err != nil {
		return cloudrun.Launch{}, err
	}
	in := input(l.cfg, o, l.templates.of(o.pool), fr)
	if parent := traceparent(ctx, fr); parent != "" {
		in.Settings = append(slices.Clip(in.Settings), jobtemplate.Setting{Name: "TRACEPARENT", Value: parent})
	}
	r, err := jobtemplate.Render(ctx, in, l.lookup)
	if err != nil {
		return cloudrun.Launch{}, err
	}
	options, err := l.cfg.Options.with(r.Options)
	if err != nil {
		return cloudrun.Launch{}, err
	}
	if err := l.permitted(r, o.pool.Name); err != nil {
		return cloudrun.Launch{}, err
	}
	if err := l.cfg.Secrets.Apply(&r); err != nil {
		return cloudrun.Launch{}, err
	}
	body, err := r.Job()
	if err != nil {
		return cloudrun.Launch{}, err
	}
	if options.FastStart {
		cloudrun.StartFast(body)
	}
	cloudrun.GrowMemory(body, rec.Retried[flowrun.RetryOutOfMemory], l.cfg.RetryMemory)
	// Last, so that no job variable can overwrite them: by these an execution is recognised as ours.
	cloudrun.SetLabels(body, ourLabels(l.cfg, fr.ID, rec.LaunchID, options.Retries))
	name := cloudrun.JobName{Project: r.Project, Region: r.Region, Job: jobtemplate.JobID(r.Name, rec.LaunchID)}
	return cloudrun.Launch{Name: name, Token: cloudrun.Token, Job: body}, nil
}

func ourLabels(cfg Config, flowRunID string, id flowrun.LaunchID, r flowrun.Retries) map[string]string {
	return map[string]string{
		cloudrun.LabelFlowRun: flowRunID, cloudrun.LabelLaunch: string(id), cloudrun.LabelInstall: cfg.Name, cloudrun.LabelRetries: r.String(),
	}
}

// permitted returns why a job may not be launched where its template wants it, as whom it
// wants it: never is it launched elsewhere, or as somebody else, without a word.
func (l *Launcher) permitted(r jobtemplate.Rendered, pool string) error {
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
	return nil
}

// search returns the name of the job of a launch whose place nobody recorded, wherever it
// is, and the name given where it is nowhere.
func (l *Launcher) search(ctx context.Context, id flowrun.LaunchID, name cloudrun.JobName) (cloudrun.JobName, error) {
	places := []cloudrun.JobName{name}
	for _, project := range l.cfg.Projects {
		for _, region := range l.cfg.Regions {
			places = append(places, cloudrun.JobName{Project: project, Region: region, Job: name.Job})
		}
	}
	for _, place := range places {
		job, err := l.cloudRun.Job(ctx, place)
		switch {
		case err == nil && job.Labels[cloudrun.LabelLaunch] == string(id):
			return place, nil
		case err != nil && flowrun.FaultOf(err) != flowrun.NotFound:
			return name, err
		}
	}
	return name, nil
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
	there, err := l.cloudRun.Job(ctx, name)
	switch {
	case err == nil && there.Labels[cloudrun.LabelLaunch] == string(id):
		return nil
	case err != nil && flowrun.FaultOf(err) != flowrun.NotFound && flowrun.FaultOf(err) != flowrun.Permanent:
		return &flowrun.Error{Act: "look whether an earlier try made job " + name.String(), Err: errors.Join(err, failed)}
	}
	return failed
}

// failed decides what a launch comes to that could not be made: put back for lack of
// quota, rejected for good, or tried again when the message is redelivered.
func (l *Launcher) failed(ctx context.Context, holder string, rec flowrun.Record, err error) error {
	now := l.cfg.Now()
	var event flowrun.Event
	switch flowrun.FaultOf(err) {
	case flowrun.Permanent, flowrun.NotFound:
		event = flowrun.Rejected{Holder: holder, Reason: err.Error(), Report: &flowrun.Report{
			Type: flowrun.StateCrashed, Name: "Crashed", Message: "Failed to submit flow run to infrastructure: " + err.Error(),
		}}
	case flowrun.Refused:
		if !errors.Is(err, errCapacity) {
			return err
		}
		wait := l.cfg.PutBackFor/2 + time.Duration(l.cfg.Random()*float64(l.cfg.PutBackFor))
		event = flowrun.PutBack{Holder: holder, Reason: err.Error(), Report: &flowrun.Report{
			Type: flowrun.StateScheduled, Name: "AwaitingCapacity", ScheduledTime: now.Add(wait),
			Message: "Cloud Run has no capacity for this flow run now; it is tried again. " + err.Error(),
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
	_, err = l.apply(ctx, rec.FlowRunID, flowrun.Released{Holder: holder})
	return acknowledge(err)
}
