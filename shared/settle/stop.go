package settle

import (
	"context"
	"errors"
	"fmt"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// cancel stops the execution of a flow run that is CANCELLING, after a grace where its
// container listens for the cancellation itself.
func (s *Settler) cancel(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, c Claim, f found) error {
	rec, err := s.apply(ctx, rec.FlowRunID, flowrun.Cancelling{Holder: holder, Since: stateAt(fr)})
	if err != nil {
		return err
	}
	until := rec.CancelRequestedAt.Add(s.cfg.CancelGrace)
	if c.Started && f.execution != nil && f.execution.ListensForCancellation() && s.cfg.Now().Before(until) {
		return s.messages.DispatchAt(ctx, rec.FlowRunID, until, "cancel")
	}
	err = s.stop(ctx, holder, rec, f, "the flow run was cancelled", "")
	if errors.Is(err, ErrWait) {
		return nil // its end is an event, and the sweep looks too
	}
	return err
}

// stop abandons the launch and stops what it made. It returns ErrWait: the execution's end is still to come.
// outcome is the verdict where it is reached by that.
func (s *Settler) stop(ctx context.Context, holder string, rec flowrun.Record, f found, why string, outcome flowrun.OutcomeKind) error {
	rec, err := s.abandon(ctx, holder, rec, why, outcome)
	if err != nil {
		return err
	}
	if f.execution != nil {
		if err := s.cloudRun.CancelExecution(ctx, f.execution.Name); err != nil {
			return err
		}
		return fmt.Errorf("%w: execution %s is being stopped because %s", ErrWait, f.execution.Name, why)
	}
	if job := s.name(rec.Launch).JobName(); job.Slot() {
		// It runs others' executions, too: this one is cancelled once it is there.
		return fmt.Errorf("%w: job %s is still starting an execution, which is then cancelled because %s", ErrWait, job, why)
	}
	if err := s.cloudRun.DeleteJob(ctx, s.name(rec.Launch).JobName()); err != nil {
		return err
	}
	return fmt.Errorf("%w: job %s, which had not started, was deleted because %s", ErrWait, rec.JobName, why)
}

// lookWithout deals with a launch whose flow run Prefect no longer has, by what Cloud Run shows of it.
func (s *Settler) lookWithout(ctx context.Context, holder string, rec flowrun.Record) error {
	var e Ending
	if !rec.Unreported() && !rec.Status.Over() {
		var f found
		var err error
		if f, rec, err = s.find(ctx, holder, rec, ""); err != nil {
			return err
		}
		switch {
		case f.ended != nil:
			e = *f.ended
		case f.missing:
			e = Ending{LaunchID: rec.LaunchID, Execution: s.name(rec.Launch), Outcome: flowrun.Outcome{Kind: flowrun.Deleted}}
		default:
			if err := s.stop(ctx, holder, rec, f, "the flow run was deleted in Prefect", ""); !errors.Is(err, ErrWait) {
				return err
			}
			return nil
		}
	}
	return s.deleted(ctx, holder, rec, e)
}

// deleted records how a launch ended whose flow run Prefect no longer has: nobody is left to be told.
func (s *Settler) deleted(ctx context.Context, holder string, rec flowrun.Record, told Ending) error {
	if rec.Unreported() {
		rec, err := s.apply(ctx, rec.FlowRunID, flowrun.Reported{Holder: holder, LaunchID: rec.LaunchID})
		if err == nil {
			s.finished(ctx, rec, stateDeleted)
		}
		return err
	}
	if rec.Status.Over() {
		return nil
	}
	rec, err := s.apply(ctx, rec.FlowRunID, flowrun.Ended{
		Holder: holder, LaunchID: told.LaunchID, ExecutionName: told.Execution.String(), Outcome: told.Outcome,
		StartedAt: told.StartedAt, EndedAt: told.EndedAt, Resources: told.Resources, Reason: "the flow run was deleted in Prefect",
	})
	if errors.Is(err, flowrun.ErrDone) {
		return nil
	}
	if err == nil {
		s.finished(ctx, rec, stateDeleted)
	}
	return err
}

// cancelled ends a flow run that is CANCELLING after its last launch was over, while it
// waited for the next one: Prefect asks us to cancel it for the infrastructure_pid of the last.
func (s *Settler) cancelled(ctx context.Context, rec flowrun.Record, fr prefect.FlowRun) error {
	answer, err := s.prefect.SetState(ctx, fr.ID, prefect.Proposal{
		Type: flowrun.StateCancelled, Message: "The flow run was cancelled. Nothing of it was being executed.",
	})
	if err != nil {
		return err
	}
	if answer.Status == prefect.StatusAccept {
		// The times of its last launch are in that one's line.
		rec.Launch = flowrun.Launch{
			WorkPool: fr.WorkPoolName, DeploymentID: fr.DeploymentID, RequestedAt: fr.Created, Outcome: flowrun.Cancelled, FinalAt: s.cfg.Now(),
		}
		s.finished(ctx, rec, flowrun.StateCancelled)
	}
	return s.messages.Freed(ctx, fr.WorkPoolName, fr.DeploymentID)
}
