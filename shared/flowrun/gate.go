package flowrun

import "time"

// Gate is where flow runs wait for a slot: of a work pool or of a deployment.
type Gate struct {
	// The admission lease: who holds it alone asks Prefect which flow runs may start.
	LeaseHolder string    `firestore:"leaseHolder"`
	LeaseUntil  time.Time `firestore:"leaseUntil"`
	// Again is set by whoever came while the lease was held: the holder has to ask again.
	Again bool `firestore:"again"`
	// Waits: flow runs may be waiting here for a slot. Nobody has to be woken where it is not set.
	Waits bool `firestore:"waits"`
}

// Admit takes the admission lease for holder until the given time, or, where somebody
// else holds it, asks that holder to look again. granted tells which.
func (g Gate) Admit(holder string, until, now time.Time) (gate Gate, granted bool) {
	if g.held(now) && g.LeaseHolder != holder {
		g.Again = true
		return g, false
	}
	g.LeaseHolder, g.LeaseUntil, g.Again = holder, until, false
	return g, true
}

// Freed notes that a slot came free. wake tells that somebody has to ask who takes it: flow
// runs wait, and whoever holds the admission has not been asked to look again.
func (g Gate) Freed(now time.Time) (gate Gate, wake bool) {
	if g.held(now) {
		g.Again = true
		return g, false
	}
	return g, g.Waits
}

// Leave gives the admission lease back, unless somebody asked to look again meanwhile: then
// it stays with holder, and left is false. Whoever lost the lease has left.
func (g Gate) Leave(holder string) (gate Gate, left bool) {
	if g.LeaseHolder != holder {
		return g, true
	}
	if g.Again {
		g.Again = false
		return g, false
	}
	g.LeaseHolder, g.LeaseUntil = "", time.Time{}
	return g, true
}

// Release gives the admission lease back whatever was asked meanwhile, for a holder that
// cannot go on and has somebody else ask again. Whoever lost the lease changes nothing.
func (g Gate) Release(holder string) Gate {
	if g.LeaseHolder == holder {
		g.LeaseHolder, g.LeaseUntil, g.Again = "", time.Time{}, false
	}
	return g
}

func (g Gate) held(now time.Time) bool { return g.LeaseHolder != "" && now.Before(g.LeaseUntil) }

// Deployment is the state of a deployment that has to survive an instance.
type Deployment struct {
	ID string `firestore:"id"`
	Gate
	// RefusedAt is when a flow run was last refused a slot that had been read to be free.
	RefusedAt time.Time `firestore:"refusedAt"`
	// Lead is learned from the starts of its flow runs, in nanoseconds.
	Lead Lead `firestore:"lead"`
}
