package settle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Agrees reports whether a flow run as Prefect lists it and its record agree while the
// record's execution is alive: then there is nothing to look at. It makes no call.
func (s *Settler) Agrees(fr prefect.FlowRun, rec flowrun.Record) bool {
	if rec.Status != flowrun.StatusLaunched {
		return false
	}
	// A worker that launches the flow run writes its own there.
	same := cloudrun.JobOf(fr.InfrastructurePID, rec.LaunchID) == rec.JobName
	switch fr.StateType {
	case flowrun.StatePending:
		return fr.State != nil && fr.State.Details.TransitionID == string(rec.LaunchID) && !s.late(fr, rec.LaunchedAt)
	case flowrun.StateRunning, flowrun.StatePaused:
		return same
	case flowrun.StateScheduled:
		return same && fr.RetryType() == prefect.RetryInProcess
	case flowrun.StateCompleted, flowrun.StateFailed:
		return true // its container may be cleaning up
	case flowrun.StateCrashed, flowrun.StateCancelled:
		return !s.outlived(fr)
	case flowrun.StateCancelling:
	}
	return false
}

// Check is Look for a flow run as Prefect lists it, and the record that the ledger has of it.
// Where all is as it should be it costs one read at Cloud Run, and no call to Prefect.
func (s *Settler) Check(ctx context.Context, holder string, fr prefect.FlowRun, rec flowrun.Record) error {
	name, err := cloudrun.ParseExecutionName(rec.ExecutionName)
	if err != nil || !s.Agrees(fr, rec) {
		return s.Look(ctx, holder, fr.ID)
	}
	x, err := s.cloudRun.Execution(ctx, name)
	switch {
	case err == nil && x.Outcome == nil && x.Labels[cloudrun.LabelLaunch] == string(rec.LaunchID):
		return nil
	case err != nil && flowrun.FaultOf(err) != flowrun.NotFound:
		return err
	}
	return s.Look(ctx, holder, fr.ID)
}

// Stray settles an execution of ours of whose launch the ledger knows nothing, or that is not
// its flow run's current one: the ledger learns of the current launch, every other execution
// is stopped. Like Look it returns flowrun.ErrBusy or ErrWait where somebody has to come again.
func (s *Settler) Stray(ctx context.Context, holder, flowRunID string, name cloudrun.ExecutionName) (err error) {
	rec, err := s.take(ctx, holder, flowRunID)
	if err != nil {
		return err
	}
	defer func() { s.release(ctx, holder, flowRunID, err) }()
	ctx, cancel := s.Fence(ctx, rec)
	defer cancel()
	x, err := s.cloudRun.Execution(ctx, name)
	if err == nil && x.Outcome != nil || err != nil && flowrun.FaultOf(err) == flowrun.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	launchID := flowrun.LaunchID(x.Labels[cloudrun.LabelLaunch])
	if launchID == rec.LaunchID && rec.Open() {
		return nil // it was recorded meanwhile
	}
	fr, err := s.prefect.FlowRun(ctx, flowRunID)
	why := "its flow run was deleted in Prefect"
	switch {
	case err == nil:
		states, err := s.prefect.FlowRunStates(ctx, flowRunID)
		if err != nil {
			return err
		}
		c := claim(s.cfg.Install, flowRunID, states)
		if c.Ours && c.LaunchID == launchID {
			return s.remember(ctx, holder, fr, c, x)
		}
		why = "its flow run was launched anew"
	case flowrun.FaultOf(err) != flowrun.NotFound:
		return err
	}
	if err := s.cloudRun.CancelExecution(ctx, x.Name); err != nil {
		return err
	}
	return fmt.Errorf("%w: execution %s is being stopped because %s", ErrWait, x.Name, why)
}

// remember records the current launch of a flow run, which a lost ledger has forgotten.
func (s *Settler) remember(ctx context.Context, holder string, fr prefect.FlowRun, c Claim, x cloudrun.Execution) error {
	for _, e := range []flowrun.Event{
		flowrun.Corrected{Holder: holder, Launch: s.recovered(fr, c, &Ending{LaunchID: c.LaunchID, Execution: x.Name})},
		flowrun.Launched{LaunchID: c.LaunchID, ExecutionName: x.Name.String()},
	} {
		if _, err := s.apply(ctx, fr.ID, e); err != nil && !errors.Is(err, flowrun.ErrDone) {
			return err
		}
	}
	return nil
}

// foreign notes that a flow run under way is somebody else's, so that the next sweep need not ask.
func (s *Settler) foreign(ctx context.Context, holder string, rec flowrun.Record, fr prefect.FlowRun, c Claim) error {
	if c.Ours || fr.StateType.Terminal() || fr.StateType == flowrun.StateScheduled {
		return nil
	}
	_, err := s.apply(ctx, rec.FlowRunID, flowrun.Foreign{Holder: holder, StateID: fr.StateID})
	return err
}

// take takes the flow run's lease.
func (s *Settler) take(ctx context.Context, holder, flowRunID string) (flowrun.Record, error) {
	return s.apply(ctx, flowRunID, flowrun.Taken{Lease: flowrun.Lease{Holder: holder, Until: s.cfg.Now().Add(s.cfg.Lease)}})
}

// abandon records that the launch is being stopped, if it is not yet.
func (s *Settler) abandon(ctx context.Context, holder string, rec flowrun.Record, why string, outcome flowrun.OutcomeKind) (flowrun.Record, error) {
	rec, err := s.apply(ctx, rec.FlowRunID, flowrun.Abandon{Holder: holder, Reason: why, Outcome: outcome})
	if errors.Is(err, flowrun.ErrDone) {
		err = nil
	}
	return rec, err
}

// late reports whether a PENDING flow run has passed its start deadline. A launch that came late itself, by one
// of the times given, has all of it.
func (s *Settler) late(fr prefect.FlowRun, launched ...time.Time) bool {
	since := slices.MaxFunc(append(launched, stateAt(fr)), time.Time.Compare)
	return s.cfg.StartDeadline > 0 && !s.cfg.Now().Before(since.Add(s.cfg.StartDeadline))
}

// outlived reports whether a flow run has ended for so long that its container has no
// business any more.
func (s *Settler) outlived(fr prefect.FlowRun) bool {
	return !s.cfg.Now().Before(stateAt(fr).Add(s.cfg.CancelGrace))
}

func (s *Settler) notStarted(why string) string {
	return fmt.Sprintf("It was PENDING for %s: %s.", s.cfg.StartDeadline.Round(time.Second), why)
}
