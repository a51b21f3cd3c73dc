package flowrun

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Reasons for which Apply leaves a record as it is. Callers ask with errors.Is.
var (
	// ErrDone: the event is old, done already, or somebody else is at it. Acknowledge.
	ErrDone = errors.New("nothing left to do for this event")
	// ErrBusy: somebody else holds the lease. Come back when it is over.
	ErrBusy = errors.New("another instance is working on this flow run")
	// ErrLost: the lease, or the launch, is no longer the caller's. Stop, and undo what was made.
	ErrLost = errors.New("the lease on this flow run was lost")
	// ErrUnreported: the last verdict was not told to Prefect yet. Tell it first.
	ErrUnreported = errors.New("the last verdict has to be reported first")
	// ErrUnfinished: an earlier launch may still have a live execution. End it first.
	ErrUnfinished = errors.New("an earlier launch has to be ended first")
)

// Lease is the right to write about a flow run to Prefect and to Cloud Run until a time.
type Lease struct {
	Holder string
	Until  time.Time
}

// Event is something that happened to a flow run. The types below are all there are.
type Event interface {
	apply(r Record, now time.Time) (Record, error)
}

// Apply returns the record after the event, or the unchanged record and the reason
// (ErrDone, ErrBusy, ErrLost, ErrUnreported, ErrUnfinished) why it does not apply.
func Apply(r Record, e Event, now time.Time) (Record, error) {
	after, err := e.apply(r, now)
	if err != nil {
		return r, fmt.Errorf("%w (launch %s is %q)", err, r.LaunchID, r.Status)
	}
	return after, nil
}

// Scheduled claims the launch that answers a SCHEDULED state, or takes over the claim of
// a holder whose lease is over.
type Scheduled struct {
	Lease
	LaunchID     LaunchID
	StateAt      time.Time // of the SCHEDULED state
	WorkPool     string
	DeploymentID string
	RequestedAt  time.Time // the flow run was created
	DueAt        time.Time
	// Retried are the retries that Prefect's history shows, where it was read.
	Retried map[RetryKind]int
	// Resumed: Prefect has the launch's PENDING. A ledger that does not know the launch was lost
	// then, and cannot tell that nothing was tried: ClaimedAt stays zero.
	Resumed bool
}

func (e Scheduled) apply(r Record, now time.Time) (Record, error) {
	switch {
	case r.Leased(e.Holder, now):
		return r, ErrDone // the holder finishes it, or the sweep
	case r.Unreported():
		return r, ErrUnreported
	case r.LaunchID == e.LaunchID:
		if r.Status != StatusClaimed {
			return r, ErrDone
		}
		return leased(r, e.Lease), nil
	case e.StateAt.Before(r.ScheduledStateAt):
		return r, ErrDone // a stale delivery must not win
	case !r.Status.Over():
		return r, ErrUnfinished
	}
	r, launch, known := recalled(r, e.LaunchID)
	switch {
	case !known:
		launch = Launch{
			LaunchID: e.LaunchID, ScheduledStateAt: e.StateAt, Status: StatusClaimed,
			WorkPool: e.WorkPool, DeploymentID: e.DeploymentID, RequestedAt: e.RequestedAt, DueAt: e.DueAt,
		}
		if !e.Resumed {
			launch.ClaimedAt = now
		}
	case launch.Status != StatusClaimed:
		return r, ErrDone // Corrected put it aside, which does not make it start again
	}
	r = retried(pushed(r), e.Retried)
	r.Launch, r.ExpireAt = launch, time.Time{}
	return leased(r, e.Lease), nil
}

// Taken takes the lease in order to finish or to stop the launch.
type Taken struct{ Lease }

func (e Taken) apply(r Record, now time.Time) (Record, error) {
	if r.Leased(e.Holder, now) {
		return r, ErrBusy
	}
	return leased(r, e.Lease), nil
}

// Corrected makes the record follow Prefect: its newest PENDING names the launch. For the
// holder of the lease, where the ledger was lost or knows another launch.
type Corrected struct {
	Holder string
	Launch Launch
	// Retried are the retries that Prefect's history shows.
	Retried map[RetryKind]int
}

func (e Corrected) apply(r Record, _ time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrLost
	}
	if r.LaunchID == e.Launch.LaunchID && r.Status != StatusNone {
		return r, ErrDone
	}
	r, launch, known := recalled(r, e.Launch.LaunchID)
	if !known {
		launch = e.Launch
	}
	r = retried(pushed(r), e.Retried)
	r.Launch, r.ExpireAt = launch, expiry(launch.ReportedAt)
	return r, nil
}

// Discarded drops the candidate: Prefect did not accept its PENDING.
type Discarded struct {
	Holder   string
	LaunchID LaunchID
}

func (e Discarded) apply(r Record, now time.Time) (Record, error) {
	if !r.heldBy(e.Holder) || r.LaunchID != e.LaunchID || r.Status != StatusClaimed {
		return r, ErrLost
	}
	r.Launch = Launch{}
	if len(r.Previous) > 0 {
		r.Launch, r.Previous = r.Previous[0], r.Previous[1:]
		r.ExpireAt = expiry(r.ReportedAt)
	}
	return empty(leased(r, Lease{}), now), nil
}

// Attempted is recorded before the first try to create the job, so that whoever takes over
// looks in the same place.
type Attempted struct {
	Holder                   string
	LaunchID                 LaunchID
	Project, Region, JobName string
	// Retries and Resources are nil and zero where only the place is known.
	Retries   *Retries
	Resources Resources
}

func (e Attempted) apply(r Record, _ time.Time) (Record, error) {
	if !r.heldBy(e.Holder) || r.LaunchID != e.LaunchID || r.Status != StatusClaimed {
		return r, ErrLost
	}
	r.Project, r.Region, r.JobName = e.Project, e.Region, e.JobName
	r.Retries, r.Resources = e.Retries, e.Resources
	return r, nil
}

// Launched is recorded once the execution exists. It gives the lease back. On an abandoned
// launch it records what is to be cancelled and stays Abandoned.
type Launched struct {
	Holder        string
	LaunchID      LaunchID
	ExecutionName string
}

func (e Launched) apply(r Record, now time.Time) (Record, error) {
	if r.LaunchID != e.LaunchID {
		return r, ErrLost
	}
	switch r.Status {
	case StatusClaimed:
		r.Status = StatusLaunched
	case StatusAbandoned:
	default: // the end can overtake the recording of the launch
		return r, ErrDone
	}
	r.ExecutionName, r.LaunchedAt = e.ExecutionName, now
	r.MissingSince = time.Time{} // it is there: being gone has to be seen twice from now on
	if r.heldBy(e.Holder) {
		r = leased(r, Lease{})
	}
	return r, nil
}

// Rejected is the verdict on a launch that can never succeed.
type Rejected struct {
	Holder string
	Reason string
	Report *Report
}

func (e Rejected) apply(r Record, now time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrLost
	}
	if r.Status != StatusClaimed {
		return r, ErrDone
	}
	return concluded(r, StatusRejected, "", e.Reason, e.Report, now), nil
}

// PutBack ends a claim that cannot be launched now: the report makes the flow run SCHEDULED again.
type PutBack struct {
	Holder string
	Reason string
	Report *Report
	// Region and SlotAt are where and when the next launch is granted; WaitingSince is when
	// the flow run was first put back.
	Region               string
	SlotAt, WaitingSince time.Time
}

func (e PutBack) apply(r Record, now time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrLost
	}
	if r.Status != StatusClaimed {
		return r, ErrDone
	}
	r.Region, r.SlotAt, r.WaitingSince = e.Region, e.SlotAt, e.WaitingSince
	return concluded(r, StatusFinished, "", e.Reason, e.Report, now), nil
}

// Cancelling notes that the flow run is CANCELLING. Since is when it became that, by Prefect's
// clock: the grace counts from there, whoever notices it and whenever; zero: now.
type Cancelling struct {
	Holder string
	Since  time.Time
}

func (e Cancelling) apply(r Record, now time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrLost
	}
	if r.CancelRequestedAt.IsZero() {
		r.CancelRequestedAt = e.Since
		if e.Since.IsZero() {
			r.CancelRequestedAt = now
		}
	}
	return r, nil
}

// Abandon is the decision to stop a launch: nothing may be created for it any more.
type Abandon struct {
	Holder string
	Reason string
	// Outcome is the verdict where it is reached already, and Reason its text: then what
	// Cloud Run says of the execution that we stopped is not. Empty: the end tells.
	Outcome OutcomeKind
}

func (e Abandon) apply(r Record, _ time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrLost
	}
	if r.Status.Over() {
		return r, ErrDone
	}
	if r.Status == StatusAbandoned && r.Outcome != "" {
		return r, ErrDone // the verdict stands
	}
	r.Status, r.Reason, r.Outcome = StatusAbandoned, e.Reason, e.Outcome
	return r, nil
}

// Missing notes that the job or the execution was not found.
type Missing struct{ Holder string }

func (e Missing) apply(r Record, now time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrLost
	}
	if r.MissingSince.IsZero() {
		r.MissingSince = now
	}
	return r, nil
}

// Foreign notes that the flow run, in the state with that id, is somebody else's.
type Foreign struct{ Holder, StateID string }

func (e Foreign) apply(r Record, _ time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrLost
	}
	r.ForeignStateID = e.StateID
	return r, nil
}

// Released gives the lease back at the given time: now, or a little later where a request
// may still be under way.
type Released struct {
	Holder string
	At     time.Time
}

func (e Released) apply(r Record, now time.Time) (Record, error) {
	if !r.heldBy(e.Holder) {
		return r, ErrDone
	}
	if e.At.After(now) {
		if e.At.Before(r.LeaseUntil) {
			r.LeaseUntil = e.At
		}
		return r, nil
	}
	return empty(leased(r, Lease{}), now), nil
}

// heldBy reports whether holder was the last to take the lease. It may be over: as long as
// nobody else took it, what its holder knows is still the newest.
func (r Record) heldBy(holder string) bool { return holder != "" && r.LeaseHolder == holder }

func leased(r Record, l Lease) Record {
	r.LeaseHolder, r.LeaseUntil = l.Holder, l.Until
	return r
}

func concluded(r Record, s Status, kind OutcomeKind, reason string, report *Report, at time.Time) Record {
	r.Status, r.Outcome, r.Reason, r.Report = s, kind, reason, report
	r.FinishedAt, r.ReportedAt = at, time.Time{}
	return r
}

// pushed moves the current launch, if there is one, to the previous ones.
func pushed(r Record) Record {
	if r.Status == StatusNone {
		return r
	}
	r.Previous = append([]Launch{r.Launch}, r.Previous...)
	if len(r.Previous) > maxPrevious {
		r.Previous = r.Previous[:maxPrevious:maxPrevious]
	}
	return r
}

// recalled takes the launch out of the previous ones, if it is there. What it made, and
// where, is known only as long as it is not claimed anew.
func recalled(r Record, id LaunchID) (Record, Launch, bool) {
	i := slices.IndexFunc(r.Previous, func(l Launch) bool { return l.LaunchID == id })
	if i < 0 {
		return r, Launch{}, false
	}
	l := r.Previous[i]
	r.Previous = slices.Concat(r.Previous[:i], r.Previous[i+1:])
	return r, l, true
}

// empty lets a record be forgotten that holds no launch: of a flow run that turned out to be
// somebody else's, or that nobody claimed after all.
func empty(r Record, now time.Time) Record {
	if r.Status == StatusNone {
		r.ExpireAt = expiry(now)
	}
	return r
}

func expiry(reportedAt time.Time) time.Time {
	if reportedAt.IsZero() {
		return time.Time{}
	}
	return reportedAt.Add(Retention)
}
