package settle

import (
	"context"
	"errors"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// report tells Prefect a stored verdict, if it is still to be told, and records that it was.
// fr was read under the lease that holder has; current: it is held by the verdict's launch.
func (s *Settler) report(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, current bool) (flowrun.Record, error) {
	if !rec.Unreported() {
		return rec, nil
	}
	state, final := fr.StateType, false
	if current && due(rec, fr) {
		p := prefect.Proposal{
			Type: rec.Report.Type, Name: rec.Report.Name, Message: rec.Report.Message, ScheduledTime: timePointer(rec.Report.ScheduledTime),
		}
		if r := rec.Report.Retry; r.Number > 0 {
			p.TransitionID = flowrun.RetryID(s.cfg.Install, rec.FlowRunID, r.Kind, r.Number)
		}
		answer, err := s.prefect.SetState(ctx, rec.FlowRunID, p)
		// Whatever Prefect answers but an error settles it: ACCEPT tells it, REJECT and ABORT
		// say that the flow run moved on by itself.
		if err != nil && flowrun.FaultOf(err) != flowrun.NotFound {
			return rec, err
		}
		if answer.Status == prefect.StatusAccept {
			state, final = p.Type, p.Type.Terminal()
		} else if answer.State != nil {
			state = answer.State.Type // for the line, which says whether the flow run has ended
		}
	}
	rec, err := s.apply(ctx, rec.FlowRunID, flowrun.Reported{Holder: holder, LaunchID: rec.LaunchID, Final: final})
	if errors.Is(err, flowrun.ErrDone) {
		return rec, nil
	}
	if err == nil {
		s.finished(ctx, rec, state)
	}
	return rec, err
}

// Report tells Prefect a verdict just stored by the holder of the lease, on a launch whose
// PENDING was the flow run's newest. It reads the flow run: while the launch was tried, a
// person may have ended it, and SCHEDULED would be accepted over CANCELLED.
func (s *Settler) Report(ctx context.Context, holder string, rec flowrun.Record) error {
	fr, err := s.prefect.FlowRun(ctx, rec.FlowRunID)
	if err != nil && flowrun.FaultOf(err) == flowrun.NotFound {
		return s.lookWithout(ctx, holder, rec)
	}
	if err == nil {
		_, err = s.report(ctx, holder, rec, fr, true)
	}
	return err
}

// due reports whether the stored report still applies to the flow run as it was read.
// CRASHED is always safe to propose: Prefect refuses it over anything final.
func due(rec flowrun.Record, fr prefect.FlowRun) bool {
	if rec.Report == nil {
		return false
	}
	switch rec.Report.Type {
	case flowrun.StateCancelled:
		return fr.StateType == flowrun.StateCancelling || rec.Status == flowrun.StatusRejected && fr.StateType == flowrun.StatePending ||
			fr.StateType == flowrun.StateCrashed && !rec.CancelRequestedAt.IsZero() && stateAt(fr).After(rec.CancelRequestedAt)
	case flowrun.StateScheduled:
		return fr.StateType == flowrun.StatePending || fr.StateType == flowrun.StateRunning
	default:
		return fr.StateType == flowrun.StatePending || fr.StateType == flowrun.StateRunning || fr.StateType == flowrun.StatePaused
	}
}
