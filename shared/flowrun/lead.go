package flowrun

import "time"

const (
	// MaxLead bounds how long before it is due a flow run is launched: what it waits for in its
	// container is paid for.
	MaxLead = 25 * time.Second
	// leadMargin covers what a start takes now and then beyond the slowest seen.
	leadMargin = 250 * time.Millisecond
	// onTime is how late RUNNING may come and still count as on time: a flow that waits in its
	// container asks Prefect again a moment after it is due.
	onTime = 500 * time.Millisecond
	// leadDecay is the part of the lead that each start gives up which was on time: slowly, so that
	// few starts are late, and never so slowly that one slow start is paid for by hundreds.
	leadDecay = 200
)

// Lead is how long before it is due a flow run has to be launched for its flow to start on time.
type Lead time.Duration

// Learn returns the lead after one more start: of a flow run due at a time, claimed at a
// time, and RUNNING at a time. A start that was late lengthens the lead at once to what it
// would have taken; one that was on time shortens it slowly. A flow never starts before it is
// due (Prefect has it wait), so a lead too long costs a waiting container, and no punctuality.
// It is safe to call with times that are not known, or make no sense: then nothing is learned.
func (l Lead) Learn(dueAt, claimedAt, startedAt time.Time) Lead {
	if dueAt.IsZero() || claimedAt.IsZero() || !startedAt.After(claimedAt) {
		return l
	}
	took := startedAt.Sub(claimedAt)
	enough := took <= time.Duration(l)
	if claimedAt.Before(dueAt) { // launched early: it may have waited for its time
		enough = startedAt.Before(dueAt.Add(onTime))
	}
	if enough {
		return l - l/leadDecay
	}
	return max(l, min(Lead(took+leadMargin), Lead(MaxLead)))
}

// Before is when a flow run that is due at a time is launched, in whole seconds before it, so
// that who sets a timer twice sets it for the same time.
func (l Lead) Before(due time.Time) time.Time {
	return due.Add(-time.Duration(l+Lead(time.Second)-1) / time.Second * time.Second)
}
