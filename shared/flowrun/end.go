package flowrun

import "time"

// Ended is the verdict on a launch whose execution ended. Report is nil where the flow run
// has told Prefect itself.
type Ended struct {
	Holder        string
	LaunchID      LaunchID
	ExecutionName string
	Outcome       Outcome
	StartedAt     time.Time
	RunningAt     time.Time
	EndedAt       time.Time
	// FinalAt is when the flow run ended in Prefect by itself; zero where it did not.
	FinalAt time.Time
	// Resources replace those recorded with the launch, if they are not zero.
	Resources Resources
	Reason    string
	Report    *Report
}

func (e Ended) apply(r Record, now time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrLost
	}
	if r.LaunchID != e.LaunchID || r.Status.Over() {
		return r, ErrDone
	}
	if e.ExecutionName != "" {
		r.ExecutionName = e.ExecutionName
	}
	r.StartedAt, r.RunningAt, r.FinalAt = e.StartedAt, e.RunningAt, e.FinalAt
	if e.Resources != (Resources{}) {
		r.Resources = e.Resources
	}
	at := e.EndedAt
	if at.IsZero() {
		at = now
	}
	r = concluded(r, StatusFinished, e.Outcome.Kind, e.Reason, e.Report, at)
	if e.Report == nil {
		r.ReportedAt, r.ExpireAt = now, expiry(now)
	} else if n := e.Report.Retry.Number; n > 0 {
		r = retried(r, map[RetryKind]int{e.Report.Retry.Kind: n})
	}
	return r, nil
}

// Reported is recorded when Prefect was told, or when there is nothing left to tell.
type Reported struct {
	Holder   string
	LaunchID LaunchID
	// Final: the report was accepted, and it ends the flow run.
	Final bool
}

func (e Reported) apply(r Record, now time.Time) (Record, error) {
	if !r.heldBy(e.Holder) || r.LaunchID != e.LaunchID {
		return r, ErrLost
	}
	if !r.Unreported() {
		return r, ErrDone
	}
	r.ReportedAt, r.ExpireAt = now, expiry(now)
	if e.Final {
		r.FinalAt = now
	}
	return r, nil
}
