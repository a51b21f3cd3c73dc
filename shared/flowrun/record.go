package flowrun

import "time"

// Status is where a launch stands.
type Status string

// A launch is Claimed, then Launched, then Finished; or leaves that way.
const (
	// StatusNone: the ledger knows no launch of the flow run.
	StatusNone Status = ""
	// StatusClaimed: somebody holds, or held, the lease in order to launch.
	StatusClaimed Status = "Claimed"
	// StatusLaunched: the execution was created.
	StatusLaunched Status = "Launched"
	// StatusAbandoned: the launch is to be stopped; whatever it made is cancelled.
	StatusAbandoned Status = "Abandoned"
	// StatusFinished: the execution ended, or the flow run was put back before it was launched.
	StatusFinished Status = "Finished"
	// StatusRejected: the launch can never succeed.
	StatusRejected Status = "Rejected"
)

// Over reports whether nothing more will be executed for a launch in this status.
func (s Status) Over() bool { return s == StatusNone || s == StatusFinished || s == StatusRejected }

// StateType is the type of a Prefect state. Names of states are free; decide on the type.
type StateType string

// Prefect's state types.
const (
	StateScheduled  StateType = "SCHEDULED"
	StatePending    StateType = "PENDING"
	StateRunning    StateType = "RUNNING"
	StatePaused     StateType = "PAUSED"
	StateCancelling StateType = "CANCELLING"
	StateCompleted  StateType = "COMPLETED"
	StateFailed     StateType = "FAILED"
	StateCrashed    StateType = "CRASHED"
	StateCancelled  StateType = "CANCELLED"
)

// AwaitingCapacity is the name of the SCHEDULED state of a flow run that waits for room at Cloud Run.
const AwaitingCapacity = "AwaitingCapacity"

// Terminal reports whether a flow run in a state of this type has ended.
func (t StateType) Terminal() bool {
	switch t {
	case StateCompleted, StateFailed, StateCrashed, StateCancelled:
		return true
	}
	return false
}

// Report is the state that Prefect is to be told. It is stored before it is told, so that
// whoever comes next can tell it.
type Report struct {
	Type    StateType `firestore:"type"`
	Name    string    `firestore:"name"`
	Message string    `firestore:"message"`
	// ScheduledTime is set where Type is StateScheduled.
	ScheduledTime time.Time `firestore:"scheduledTime"`
	// Retry is set where the report has the flow run launched again for how it ended.
	Retry Retry `firestore:"retry"`
}

// Launch is one attempt to execute a flow run: the answer to one SCHEDULED state.
type Launch struct {
	LaunchID LaunchID `firestore:"launchID"`
	// ScheduledStateAt is the time of the SCHEDULED state that the launch answers. It orders launches.
	ScheduledStateAt time.Time `firestore:"scheduledStateAt"`
	Status           Status    `firestore:"status"`

	WorkPool     string `firestore:"workPool"`
	DeploymentID string `firestore:"deploymentID"`
	// Project, Region and JobName are written before the first attempt to create the job there.
	Project       string `firestore:"project"`
	Region        string `firestore:"region"`
	JobName       string `firestore:"jobName"`
	ExecutionName string `firestore:"executionName"`

	// Outcome and Reason are the verdict, of an abandoned launch the one it will have, or why; Report is what Prefect is to be told of it, nil if nothing.
	Outcome    OutcomeKind `firestore:"outcome"`
	Reason     string      `firestore:"reason"`
	Report     *Report     `firestore:"report"`
	ReportedAt time.Time   `firestore:"reportedAt"`

	// Retries and Resources are written with the first attempt to create the job; nil and zero
	// where the ledger was lost since.
	Retries   *Retries  `firestore:"retries"`
	Resources Resources `firestore:"resources"`

	// The times of the launch; one that has not come, or that nobody was told, is zero.
	RequestedAt time.Time `firestore:"requestedAt"` // the flow run was created
	DueAt       time.Time `firestore:"dueAt"`
	ClaimedAt   time.Time `firestore:"claimedAt"`
	LaunchedAt  time.Time `firestore:"launchedAt"` // Cloud Run accepted the job
	StartedAt   time.Time `firestore:"startedAt"`  // the execution started
	RunningAt   time.Time `firestore:"runningAt"`  // the flow began to run
	FinishedAt  time.Time `firestore:"finishedAt"` // the execution ended
	FinalAt     time.Time `firestore:"finalAt"`    // Prefect was told the flow run's end
	// CancelRequestedAt is when the flow run became CANCELLING, by Prefect's clock.
	CancelRequestedAt time.Time `firestore:"cancelRequestedAt"`
	// MissingSince is when the job or execution was first found gone. Gone is believed
	// only when it is seen twice.
	MissingSince time.Time `firestore:"missingSince"`
	// SlotAt is the time granted in Region to the launch after this one, which was put back for
	// lack of capacity; WaitingSince is when that happened for the first time.
	SlotAt       time.Time `firestore:"slotAt"`
	WaitingSince time.Time `firestore:"waitingSince"`
}

// Unreported reports whether the launch has a verdict that was not carried to its end.
func (l Launch) Unreported() bool {
	return (l.Status == StatusFinished || l.Status == StatusRejected) && l.ReportedAt.IsZero()
}

// Open reports whether something is left to be done about the launch: it is not over, or
// its verdict was not carried to its end.
func (l Launch) Open() bool { return !l.Status.Over() || l.Unreported() }

// Record is what the ledger holds of one flow run. Its embedded Launch is the current
// one, or the candidate until Prefect accepted its PENDING.
type Record struct {
	FlowRunID string `firestore:"flowRunID"`
	Launch

	// The lease: one for each flow run, for whoever may write about it to Prefect or Cloud Run.
	LeaseHolder string    `firestore:"leaseHolder"`
	LeaseUntil  time.Time `firestore:"leaseUntil"`

	// Retried is how many retries were made for how executions ended, by kind.
	Retried map[RetryKind]int `firestore:"retried"`

	// Previous holds the last launches before this one, newest first, at most maxPrevious.
	Previous []Launch `firestore:"previous"`
	// ForeignStateID is the state in which the flow run was found to be somebody else's: as
	// long as it has that one, nobody has to ask Prefect again.
	ForeignStateID string `firestore:"foreignStateID"`
	// ExpireAt is when the ledger may forget the flow run; zero while a launch is not reported.
	ExpireAt time.Time `firestore:"expireAt,omitempty"`
}

// Waited returns the launch before the current one, if that was put back for lack of capacity.
func (r Record) Waited() (l Launch, ok bool) {
	if len(r.Previous) == 0 || r.Previous[0].SlotAt.IsZero() {
		return Launch{}, false
	}
	return r.Previous[0], true
}

const (
	// maxPrevious bounds a record's size; explain shows no more.
	maxPrevious = 5
	// Retention is how long the ledger remembers a flow run after its verdict was reported:
	// longer than any message can be redelivered (Pub/Sub keeps one for 7 days).
	Retention = 30 * 24 * time.Hour
)

// Leased reports whether somebody other than holder holds the lease at now.
func (r Record) Leased(holder string, now time.Time) bool {
	return r.LeaseHolder != "" && r.LeaseHolder != holder && now.Before(r.LeaseUntil)
}

// Pool is the state of a work pool that has to survive an instance.
type Pool struct {
	Name string `firestore:"name"`
	Gate
	// HeartbeatAt is when Prefect was last told that the pool is served.
	HeartbeatAt time.Time `firestore:"heartbeatAt"`
}
