package flowrun

import "time"

// Sweep is the state of an installation's sweep that has to survive an instance.
type Sweep struct {
	// The sweep's lease: one sweep at a time.
	LeaseHolder string    `firestore:"leaseHolder"`
	LeaseUntil  time.Time `firestore:"leaseUntil"`
	// Count is how many sweeps began. What does not fit one sweep takes turns by it.
	Count int `firestore:"count"`
}

// Begin takes the sweep's lease for holder until the given time. granted is false while
// somebody else holds it.
func (s Sweep) Begin(holder string, until, now time.Time) (sweep Sweep, granted bool) {
	if s.LeaseHolder != "" && s.LeaseHolder != holder && now.Before(s.LeaseUntil) {
		return s, false
	}
	return Sweep{LeaseHolder: holder, LeaseUntil: until, Count: s.Count + 1}, true
}

// End gives the sweep's lease back, if holder still has it.
func (s Sweep) End(holder string) Sweep {
	if s.LeaseHolder == holder {
		s.LeaseHolder, s.LeaseUntil = "", time.Time{}
	}
	return s
}
