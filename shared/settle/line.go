package settle

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// Messages of the line about the end of a launch. Log-based metrics select by them.
const (
	lineFlowRun = "flow run finished" // it is final
	lineLaunch  = "launch finished"   // it will be launched again, or goes on elsewhere
)

// stateDeleted is what a line has for the state of a flow run that Prefect has no more.
const stateDeleted flowrun.StateType = "DELETED"

// finished writes the one line about a launch that is over, or about a flow run that ended while
// it had none; state is the flow run's now.
// The keys are stable: metrics are made of them. Durations are in seconds, and left out where
// one of their ends is not known:
//
//	queue_delay_s   due → Cloud Run accepted the job
//	start_delay_s   Cloud Run accepted the job → the flow began to run
//	duration_s      the execution's start → its end
//	end_to_final_s  the execution's end → Prefect was told; 0 where the flow told it before
//	vcpu_s, gib_s, cost_usd_estimate   flowrun.Usage; an estimate at list price
func (s *Settler) finished(ctx context.Context, rec flowrun.Record, state flowrun.StateType) {
	message := lineLaunch
	if state.Terminal() || state == stateDeleted {
		message = lineFlowRun
	}
	l := rec.Launch
	attrs := []slog.Attr{
		slog.String(telemetry.FlowRunID, rec.FlowRunID), slog.String("deployment_id", l.DeploymentID), slog.String("work_pool", l.WorkPool),
		slog.String("execution", l.ExecutionName), slog.String("region", l.Region), slog.String("launch_id", string(l.LaunchID)),
		slog.String("outcome", string(cmp.Or(l.Outcome, outcomeOf(l)))), slog.String("state_type", string(state)),
	}
	if l.Report != nil && l.Report.Retry.Number > 0 {
		attrs = append(attrs, slog.String("retry", l.Report.Retry.Kind), slog.Int("retry_number", l.Report.Retry.Number))
	}
	for _, t := range []struct {
		key string
		at  time.Time
	}{
		{"requested_at", l.RequestedAt}, {"due_at", l.DueAt}, {"claimed_at", l.ClaimedAt}, {"launched_at", l.LaunchedAt},
		{"started_at", l.StartedAt}, {"running_at", l.RunningAt}, {"ended_at", l.FinishedAt}, {"final_at", l.FinalAt},
	} {
		if !t.at.IsZero() {
			attrs = append(attrs, slog.Time(t.key, t.at))
		}
	}
	for _, d := range []struct {
		key      string
		from, to time.Time
	}{
		{"queue_delay_s", l.DueAt, l.LaunchedAt}, {"start_delay_s", l.LaunchedAt, l.RunningAt},
		{"duration_s", l.StartedAt, l.FinishedAt}, {"end_to_final_s", l.FinishedAt, l.FinalAt},
	} {
		if !d.from.IsZero() && !d.to.IsZero() {
			attrs = append(attrs, slog.Float64(d.key, max(0, d.to.Sub(d.from).Seconds())))
		}
	}
	if !l.StartedAt.IsZero() && l.Resources != (flowrun.Resources{}) {
		u := l.Resources.Used(l.FinishedAt.Sub(l.StartedAt))
		attrs = append(attrs, slog.Float64("vcpu_s", u.VCPUSeconds), slog.Float64("gib_s", u.GiBSeconds), slog.Float64("cost_usd_estimate", u.Dollars))
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, message, attrs...)
}

// outcomeOf is what the outcome of a launch that has no execution is called.
func outcomeOf(l flowrun.Launch) flowrun.OutcomeKind {
	if l.Status == flowrun.StatusRejected {
		return "rejected"
	}
	return "put_back"
}

// runningAt is when the flow began to run in this launch, as far as Prefect tells: it keeps
// the first time of all.
func runningAt(l flowrun.Launch, fr prefect.FlowRun) time.Time {
	if fr.StartTime == nil || fr.StartTime.Before(l.ClaimedAt) {
		return time.Time{}
	}
	return *fr.StartTime
}

// finalAt is when the flow run ended in Prefect, zero where it did not.
func finalAt(fr prefect.FlowRun) time.Time {
	if !fr.StateType.Terminal() {
		return time.Time{}
	}
	return stateAt(fr)
}

// learn takes over into its deployment's lead how long a flow took to start that was due at a
// time and told its own end. Those that were asked for at once teach nothing, also where they waited for
// capacity: they have no use for a lead, and come by the hundred, all of which would write to one
// document. It is a help: where it fails, the next flow run teaches the same.
func (s *Settler) learn(ctx context.Context, rec flowrun.Record) {
	_, waited := rec.Waited()
	if rec.DeploymentID == "" || rec.RunningAt.IsZero() || rec.DueAt.Sub(rec.RequestedAt) < time.Second || waited {
		return
	}
	_, err := s.ledger.UpdateDeployment(ctx, rec.DeploymentID, func(d flowrun.Deployment) (flowrun.Deployment, error) {
		d.Lead = d.Lead.Learn(rec.DueAt, rec.ClaimedAt, rec.RunningAt)
		return d, nil
	})
	if err != nil {
		s.log.WarnContext(ctx, "how long the flow took to start was not recorded; the next flow run of its deployment tells as well",
			"flow_run_id", rec.FlowRunID, "deployment_id", rec.DeploymentID, "error", err)
	}
}
