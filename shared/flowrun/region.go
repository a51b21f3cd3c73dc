package flowrun

import (
	"slices"
	"time"
)

// Region is what all instances know together of one region of a project: which of its writes
// are spoken for, and whether it takes any. It decides when a launch may be made, so that the
// quota is used up evenly and never exceeded; who comes when nothing is free is told a time
// that is kept for it.
type Region struct {
	// Name is PROJECT/REGION.
	Name string `firestore:"name"`

	// Last is the time of the last launch that was granted. It can be far ahead.
	Last time.Time `firestore:"last"`
	// FirstSpan numbers, since 1970, the span of time that Spans[0] is about; Spans are the
	// writes granted in each, for a minute before Last and later.
	FirstSpan int64 `firestore:"firstSpan"`
	Spans     []int `firestore:"spans"`

	// ClosedUntil is when a launch may be tried again after Cloud Run refused one, ClosedFor
	// how long that was, Reason what it said.
	ClosedUntil time.Time     `firestore:"closedUntil"`
	ClosedFor   time.Duration `firestore:"closedFor"`
	Reason      string        `firestore:"reason"`

	// Jobs counts those of the last listing, and those that were granted and deleted since.
	Jobs int `firestore:"jobs"`
	// SharedFrom is from when on deletions are made with the writes that each launch leaves
	// them; zero: launches leave none.
	SharedFrom time.Time `firestore:"sharedFrom"`
	// LastDeletion is the time of the last deletion that was granted. Deletions are those of
	// the last minute and later that are not among Spans: the launches before them are there twice.
	LastDeletion time.Time   `firestore:"lastDeletion"`
	Deletions    []time.Time `firestore:"deletions"`

	// Reads are those of the minute, numbered since 1970, that instances have taken for themselves.
	Minute int64 `firestore:"minute"`
	Reads  int   `firestore:"reads"`

	// Slots is from when on each of the jobs of launch mode slots may be taken for a launch.
	Slots []time.Time `firestore:"slots"`
}

// Quota is what Cloud Run allows in one region of a project.
type Quota struct {
	// Writes in a minute, 60 or more: with fewer a deletion in between is more than the rest that is kept.
	Writes int
	// Jobs that may exist.
	Jobs int
	// Reads in a minute.
	Reads int
}

const (
	quotaWindow = time.Minute
	span        = 500 * time.Millisecond
	// firstClosed and lastClosed bound how long a region is left alone after a refusal: the
	// time doubles with each that follows. One try in lastClosed costs nothing and is how
	// long what waits may wait in vain.
	firstClosed, lastClosed = 2 * time.Second, 5 * time.Second
)

// pace is the time between two writes while others wait. A few in a hundred are left for
// writes that ask nobody, and for those that arrive late and so fall into the next minute.
func (q Quota) pace() time.Duration {
	return time.Duration(float64(quotaWindow) / (0.965 * float64(q.Writes)))
}

// most is how many writes are granted in any minute; deletions beside launches can come out
// of step with them by a few.
func (q Quota) most() int { return q.Writes - 5 }

// crowded reports whether a new job needs another one deleted. It comes well after the 60 %
// at which ended jobs begin to be deleted in what launches leave, with the quota of a new project: a burst that
// finds room is launched at the whole quota. Room is kept for what is launched in the minute until deletions begin.
func (r Region) crowded(q Quota) bool { return r.Jobs >= q.Jobs*94/100-q.Writes/2 }

// Reserve grants a launch the next free time, now if one is. newJob: it creates a job, which
// has to be deleted some day. Nothing is granted after latest, unless that is zero.
func (r Region) Reserve(newJob bool, latest time.Time, q Quota, now time.Time) (Region, time.Time) {
	t := later(now, r.ClosedUntil)
	t = later(t, r.Last.Add(r.gap(later(t, r.Last), q)))
	t = r.free(t, q)
	if !latest.IsZero() && t.After(latest) {
		return r, t
	}
	r = r.grant(t, 1, q, now)
	r.Last = t
	if newJob {
		r.Jobs++
		if r.SharedFrom.IsZero() && r.crowded(q) {
			// A minute later: what was granted in that minute was not granted with deletions in mind.
			r.SharedFrom = later(t, r.LastDeletion).Add(quotaWindow)
		}
	}
	if !r.SharedFrom.IsZero() {
		r.Last = t.Add(q.pace() * 106 / 100) // launches the slower of the two, or jobs would add up
		r = r.grant(r.Last, 1, q, now)
	}
	return r, t
}

// Returned takes back a launch that was granted at t and was not made, as where the region
// refused others meanwhile. Its time is not granted again, but it no longer counts.
func (r Region) Returned(t time.Time, newJob bool) Region {
	i := spanOf(t) - r.FirstSpan
	if i < 0 || i >= int64(len(r.Spans)) || r.Spans[i] == 0 {
		return r // too old to count
	}
	r.Spans = slices.Clone(r.Spans)
	r.Spans[i]--
	if newJob {
		r.Jobs = max(0, r.Jobs-1)
	}
	return r
}

// ReserveDeletions grants at most n deletions of jobs between now and until, evenly: every
// other write where the region is crowded, and else as many as long as no launch waits.
func (r Region) ReserveDeletions(n int, until time.Time, q Quota, now time.Time) (Region, []time.Time) {
	waiting := r.Last.After(now.Add(q.pace()))
	if !waiting {
		r = r.unshared(q, now)
	}
	shared := !r.SharedFrom.IsZero()
	if waiting && !shared {
		return r, nil
	}
	r.Deletions = slices.DeleteFunc(slices.Clone(r.Deletions), func(t time.Time) bool { return t.Before(now.Add(-quotaWindow)) })
	apart := 2 * q.pace()
	if shared {
		apart = q.pace() // sweeps have pauses, after which deletions catch up
	}
	var granted []time.Time
	for len(granted) < n {
		t := later(later(now, r.ClosedUntil), r.LastDeletion.Add(apart))
		if shared {
			t = later(t, r.SharedFrom)
			// As many in a minute as launches leave.
			if before, most := len(r.Deletions), q.most()/2; before >= most {
				t = later(t, r.Deletions[before-most].Add(quotaWindow))
			}
		} else {
			t = r.free(t, q)
		}
		if !t.Before(until) {
			break
		}
		granted = append(granted, t)
		if shared {
			r.Deletions = append(r.Deletions, t)
		} else {
			r = r.grant(t, 1, q, now)
		}
		r.Jobs, r.LastDeletion = max(0, r.Jobs-1), t
	}
	return r, granted
}

// unshared ends the sharing: launches no longer leave writes to deletions, and those that
// were made, or will be, with such writes count like all others from now on.
func (r Region) unshared(q Quota, now time.Time) Region {
	for _, t := range r.Deletions {
		r = r.grant(t, 1, q, now)
	}
	r.SharedFrom, r.Deletions = time.Time{}, nil
	return r
}

// Spent notes writes that were made without asking, as an execution's cancellation is.
func (r Region) Spent(n int, q Quota, now time.Time) Region {
	if r.Last.After(now) {
		r.Last = r.Last.Add(time.Duration(n) * q.pace())
		return r
	}
	return r.grant(now, n, q, now)
}

// TakeReads takes at most n reads of the minute, for whoever makes them by its end. The number
// that was taken is 0 where none are left.
func (r Region) TakeReads(n int, q Quota, now time.Time) (after Region, taken int) {
	if minute := Minute(now); r.Minute != minute {
		r.Minute, r.Reads = minute, 0
	}
	taken = max(0, min(n, q.Reads-r.Reads))
	r.Reads += taken
	return r, taken
}

// Minute numbers, since 1970, the minute that t is in.
func Minute(t time.Time) int64 { return t.Unix() / 60 }

// Refused closes the region after Cloud Run refused a write, longer each time in a row.
func (r Region) Refused(reason string, now time.Time) Region {
	if now.Before(r.ClosedUntil) {
		return r // several were on their way
	}
	r.ClosedFor = min(max(2*r.ClosedFor, firstClosed), lastClosed)
	r.ClosedUntil, r.Reason = now.Add(r.ClosedFor), reason
	return r
}

// Accepted opens the region after Cloud Run took a write.
func (r Region) Accepted() Region {
	r.ClosedUntil, r.ClosedFor, r.Reason = time.Time{}, 0, ""
	return r
}

// Counted takes over how many jobs a listing found. Those granted ahead come on top.
func (r Region) Counted(jobs int, q Quota, now time.Time) Region {
	if ahead := r.Last.Sub(now); ahead > 0 {
		jobs += int(ahead / q.pace())
	}
	r.Jobs = jobs
	return r
}

func spanOf(t time.Time) int64 { return t.UnixNano() / int64(span) }

// granted counts the writes since a minute before t, and finds the first of them. Deletions
// after t are among them: they are of a minute with t.
func (r Region) granted(t time.Time) (n int, first time.Time) {
	for i := max(0, spanOf(t.Add(-quotaWindow))-r.FirstSpan); i < int64(len(r.Spans)); i++ {
		if n == 0 && r.Spans[i] > 0 {
			first = time.Unix(0, (r.FirstSpan+i)*int64(span)).UTC()
		}
		n += r.Spans[i]
	}
	return n, first
}

// free is the first time from t on at which the minute before it has room for a write.
func (r Region) free(t time.Time, q Quota) time.Time {
	for {
		n, first := r.granted(t)
		if n < q.most() {
			return t
		}
		t = first.Add(span + quotaWindow) // when the first of them has left
	}
}

// gap is the time to leave between the last launch and one at t. After a quiet minute a few
// may go nearly at once; what the minute still allows is then spread over the rest of it.
func (r Region) gap(t time.Time, q Quota) time.Duration {
	n, first := r.granted(t)
	switch left := q.most() - n; {
	case r.ClosedFor == 0 && n < q.Writes/4:
		return q.pace() / 8
	case left > 0:
		return max(q.pace(), first.Add(quotaWindow).Sub(t)/time.Duration(left))
	}
	return q.pace()
}

// grant counts n writes at t and forgets those that no longer matter.
func (r Region) grant(t time.Time, n int, q Quota, now time.Time) Region {
	spans, first := slices.Clone(r.Spans), r.FirstSpan
	oldest := spanOf(later(now, r.Last.Add(-2*q.pace())).Add(-quotaWindow))
	if drop := oldest - first; drop >= int64(len(spans)) {
		spans, first = nil, oldest
	} else if drop > 0 {
		spans, first = spans[drop:], oldest
	}
	if i := spanOf(t) - first; i >= 0 {
		for int64(len(spans)) <= i {
			spans = append(spans, 0)
		}
		spans[i] += n
	}
	r.Spans, r.FirstSpan = spans, first
	return r
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// TakeSlot takes, until the given time, the one of n slots that has been free for longest. ok
// is false where none is.
func (r Region) TakeSlot(n int, until, now time.Time) (after Region, slot int, ok bool) {
	slots := make([]time.Time, n)
	copy(slots, r.Slots)
	for i := range slots {
		if slots[i].Before(slots[slot]) {
			slot = i
		}
	}
	if slots[slot].After(now) {
		return r, slot, false
	}
	slots[slot] = until
	r.Slots = slots
	return r, slot, true
}

// KeepSlot has a slot left alone until the given time.
func (r Region) KeepSlot(slot int, until time.Time) Region {
	if slot < len(r.Slots) {
		r.Slots = slices.Clone(r.Slots)
		r.Slots[slot] = later(r.Slots[slot], until)
	}
	return r
}
