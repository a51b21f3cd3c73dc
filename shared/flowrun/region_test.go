package flowrun_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

var quota = flowrun.Quota{Writes: 180, Jobs: 1000}

// reserve grants n launches at once.
func reserve(r flowrun.Region, n int, newJob bool, q flowrun.Quota, at time.Time) (flowrun.Region, []time.Time) {
	granted := make([]time.Time, n)
	for i := range n {
		r, granted[i] = r.Reserve(newJob, time.Time{}, q, at)
	}
	return r, granted
}

// within counts the times in [from, to).
func within(times []time.Time, from, to time.Time) (n int) {
	for _, t := range times {
		if !t.Before(from) && t.Before(to) {
			n++
		}
	}
	return n
}

// TestARegionsQuotaIsNeverExceeded holds that whatever launches and deletions ask for, and
// whenever, no minute has more writes than the quota.
func TestARegionsQuotaIsNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := flowrun.Quota{Writes: rapid.IntRange(60, 300).Draw(t, "writes"), Jobs: rapid.IntRange(1, 300).Draw(t, "jobs")}
		r, at := flowrun.Region{}, now
		var all []time.Time
		last := time.Time{}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "milliseconds")) * time.Millisecond)
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				var granted []time.Time
				r, granted = reserve(r, rapid.IntRange(1, 60).Draw(t, "launches"), rapid.Bool().Draw(t, "new job"), q, at)
				for _, g := range granted {
					if g.Before(at) || g.Before(last) {
						t.Fatalf("granted %s, at %s and after %s", g, at, last)
					}
					last = g
				}
				all = append(all, granted...)
			case 2:
				var granted []time.Time
				r, granted = r.ReserveDeletions(rapid.IntRange(1, 60).Draw(t, "deletions"), at.Add(50*time.Second), q, at)
				all = append(all, granted...)
			case 3:
				if rapid.Bool().Draw(t, "refused") {
					r = r.Refused("quota", at)
				} else {
					r = r.Accepted()
				}
			}
		}
		slices.SortFunc(all, time.Time.Compare)
		for i := range all {
			if n := within(all[i:], all[i], all[i].Add(time.Minute)); n > q.Writes {
				t.Fatalf("%d writes in the minute after %s, %d are allowed", n, all[i].Sub(now), q.Writes)
			}
		}
	})
}

// TestAFewLaunchesGoNearlyAtOnce holds that the quota costs a launch nothing while it is far,
// and a handful at the same time little.
func TestAFewLaunchesGoNearlyAtOnce(t *testing.T) {
	_, granted := reserve(flowrun.Region{}, 40, true, quota, now)
	if granted[0] != now {
		t.Errorf("the first is granted %s from now", granted[0].Sub(now))
	}
	if last := granted[39].Sub(now); last > 2*time.Second {
		t.Errorf("the last of 40 is granted %s from now", last)
	}
}

// TestWhatWaitsIsLaunchedAtTheSpeedOfTheQuota holds the rate in every full minute, and that
// it comes evenly once the first minute's start is over.
func TestWhatWaitsIsLaunchedAtTheSpeedOfTheQuota(t *testing.T) {
	for name, newJob := range map[string]bool{"jobs": true, "slots": false} {
		t.Run(name, func(t *testing.T) {
			_, granted := reserve(flowrun.Region{}, 1000, newJob, quota, now)
			for from := now; within(granted, from.Add(time.Minute), now.Add(time.Hour)) > 180; from = from.Add(time.Minute) {
				if n := within(granted, from, from.Add(time.Minute)); n < 171 || n > 180 {
					t.Errorf("%d launches in the minute that begins %s from now", n, from.Sub(now))
				}
				if n := within(granted, from.Add(time.Minute), from.Add(time.Minute+time.Second)); n > 4 {
					t.Errorf("%d launches in the second %s from now", n, from.Sub(now)+time.Minute)
				}
			}
		})
	}
}

// TestDeletionsGetEveryOtherWriteOfACrowdedRegion holds that a load that does not fit the
// number of jobs goes on at half the quota, with a deletion for each launch, and that slots,
// which need none, go twice as fast.
func TestDeletionsGetEveryOtherWriteOfACrowdedRegion(t *testing.T) {
	r, granted := reserve(flowrun.Region{}, 3000, true, quota, now)
	jobs, most := 0, 0
	var deleted []time.Time
	for at := now; at.Before(granted[2999]); at = at.Add(time.Minute) {
		jobs += within(granted, at, at.Add(time.Minute))
		if jobs > 600 {
			var d []time.Time
			r, d = r.ReserveDeletions(jobs, at.Add(45*time.Second), quota, at) // as a sweep does
			deleted = append(deleted, d...)
			jobs -= len(d)
		}
		most = max(most, jobs)
	}
	if most > quota.Jobs {
		t.Errorf("there are up to %d jobs", most)
	}
	from, to := now.Add(15*time.Minute), now.Add(20*time.Minute)
	l, d := within(granted, from, to), within(deleted, from, to)
	if l < 5*80 || l > 5*90 || d < l {
		t.Errorf("%d launches and %d deletions in five minutes, want some 85 of each a minute", l, d)
	}
	_, slots := reserve(flowrun.Region{}, 3000, false, quota, now)
	if n := within(slots, now.Add(5*time.Minute), now.Add(10*time.Minute)); float64(n) < 1.9*float64(l) {
		t.Errorf("%d launches in slots, %d in jobs of their own", n, l)
	}
}

// TestDeletionsOfACrowdedRegionCountOnceItIsNot holds that those which were granted ahead with
// the writes that launches left them leave less to launches that come after.
func TestDeletionsOfACrowdedRegionCountOnceItIsNot(t *testing.T) {
	r := flowrun.Region{Jobs: quota.Jobs}
	r, all := reserve(r, 120, true, quota, now) // of some 85 s
	at := now.Add(80 * time.Second)
	r, deleted := r.ReserveDeletions(1000, at.Add(50*time.Second), quota, at)
	at = at.Add(10 * time.Second)
	r, more := r.ReserveDeletions(1, at.Add(50*time.Second), quota, at)
	_, burst := reserve(r, 170, false, quota, at)
	all = slices.Concat(all, deleted, more, burst)
	if len(deleted) < 40 {
		t.Fatalf("%d deletions", len(deleted))
	}
	for from := now; from.Before(at.Add(time.Minute)); from = from.Add(time.Second) {
		if n := within(all, from, from.Add(time.Minute)); n > quota.Writes {
			t.Fatalf("%d writes in the minute that begins %s from now", n, from.Sub(now))
		}
	}
}

// TestDeletionsLeaveTheQuotaToLaunchesThatFit holds that a burst that finds room is not
// slowed down by deletions, and that they begin when it is over.
func TestDeletionsLeaveTheQuotaToLaunchesThatFit(t *testing.T) {
	r, _ := reserve(flowrun.Region{}, 700, true, quota, now)
	at := now.Add(3 * time.Minute)
	r, d := r.ReserveDeletions(50, at.Add(50*time.Second), quota, at)
	if len(d) != 0 {
		t.Errorf("%d deletions while launches wait that fit", len(d))
	}
	at = now.Add(5 * time.Minute)
	if _, d = r.ReserveDeletions(50, at.Add(50*time.Second), quota, at); len(d) < 40 {
		t.Errorf("%d deletions once nothing waits", len(d))
	}
}

// TestARefusalClosesTheRegionForLongerEachTime holds that one launch tries at a time while
// Cloud Run refuses, and that what waits goes on at once when it takes one.
func TestARefusalClosesTheRegionForLongerEachTime(t *testing.T) {
	r, at := flowrun.Region{}, now
	var closed []time.Duration
	for range 5 {
		r = r.Refused("quota", at)
		r = r.Refused("quota", at.Add(time.Millisecond)) // that were on their way change nothing
		closed = append(closed, r.ClosedUntil.Sub(at))
		at = r.ClosedUntil
	}
	want := []time.Duration{2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second, 5 * time.Second}
	if diff := cmp.Diff(want, closed); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	at = at.Add(-3 * time.Second)
	_, granted := reserve(r, 3, true, quota, at)
	if granted[0] != r.ClosedUntil || granted[1].Sub(granted[0]) < 300*time.Millisecond {
		t.Errorf("granted %v while closed until %s", granted, r.ClosedUntil)
	}
	if _, granted = reserve(r.Accepted(), 1, true, quota, at); granted[0] != at {
		t.Errorf("granted %s from now after it was opened", granted[0].Sub(at))
	}
}

// TestALaunchIsGrantedNothingLaterThanItCanUse holds that asking in a second region leaves
// nothing behind in the first.
func TestALaunchIsGrantedNothingLaterThanItCanUse(t *testing.T) {
	full, _ := reserve(flowrun.Region{}, 500, true, quota, now)
	after, at := full.Reserve(true, now.Add(5*time.Second), quota, now)
	if diff := cmp.Diff(full, after); diff != "" || !at.After(now.Add(time.Minute)) {
		t.Errorf("granted %s (-before +after):\n%s", at.Sub(now), diff)
	}
}

// TestALaunchThatIsNotMadeDoesNotCount holds that times which were granted and not used, as
// while Cloud Run refuses, take nothing of the quota and of the jobs.
func TestALaunchThatIsNotMadeDoesNotCount(t *testing.T) {
	r, granted := reserve(flowrun.Region{}, 170, true, quota, now)
	for _, at := range granted[1:] {
		r = r.Returned(at, true)
	}
	if r.Jobs != 1 {
		t.Errorf("%d jobs", r.Jobs)
	}
	at := granted[len(granted)-1]
	if _, again := reserve(r, 170, true, quota, at); again[169].Sub(at) > time.Minute {
		t.Errorf("the last of 170 others is granted %s after the last of those", again[169].Sub(at))
	}
	if diff := cmp.Diff(r, r.Returned(now.Add(-time.Hour), true)); diff != "" {
		t.Errorf("one that no longer counts changes (-want +got):\n%s", diff)
	}
}

// TestWhatNobodyAskedForCounts holds that cancellations move what comes after them.
func TestWhatNobodyAskedForCounts(t *testing.T) {
	r := flowrun.Region{}.Spent(174, quota, now)
	if _, at := r.Reserve(false, time.Time{}, quota, now); at != now {
		t.Errorf("the last write of the quota is granted %s from now", at.Sub(now))
	}
	r = r.Spent(2, quota, now)
	if _, at := r.Reserve(false, time.Time{}, quota, now); at.Sub(now) < 59*time.Second {
		t.Errorf("a write beyond the quota is granted %s from now", at.Sub(now))
	}
	waiting, granted := reserve(flowrun.Region{}, 200, false, quota, now)
	_, at := waiting.Spent(3, quota, now).Reserve(false, time.Time{}, quota, now)
	if at.Sub(granted[199]) < time.Second {
		t.Errorf("three cancellations delay what follows by %s", at.Sub(granted[199]))
	}
}

// TestAListingCorrectsTheNumberOfJobs holds that jobs which others made count, and those that
// are granted ahead are not forgotten.
func TestAListingCorrectsTheNumberOfJobs(t *testing.T) {
	if r := (flowrun.Region{Jobs: 3}).Counted(700, quota, now); r.Jobs != 700 {
		t.Errorf("%d jobs", r.Jobs)
	}
	r, granted := reserve(flowrun.Region{}, 500, true, quota, now)
	at := granted[249]
	if r = r.Counted(250, quota, at); r.Jobs < 490 || r.Jobs > 510 {
		t.Errorf("%d jobs with 250 there and 250 granted ahead", r.Jobs)
	}
}
