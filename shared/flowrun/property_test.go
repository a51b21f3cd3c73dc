package flowrun_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// mostPrevious is how many launches a record keeps besides the current one.
const mostPrevious = 5

// history is a flow run's record while events of several holders come in, in any order.
type history struct {
	r    flowrun.Record
	now  time.Time
	last flowrun.Event
	// over holds each launch that was seen to be over, as it was first seen so.
	over map[flowrun.LaunchID]flowrun.Launch
	// overruled holds the launches that Corrected put aside before they were over.
	overruled map[flowrun.LaunchID]bool
}

// launches is how many SCHEDULED states the flow run has. As many as a record keeps: what
// it had to forget, it cannot hold to.
const launches = mostPrevious

// stateAt is when the SCHEDULED state of a launch was set: each at its own time.
func stateAt(n int) time.Time { return now.Add(time.Duration(n) * time.Second) }

// retryReport has the flow run launched again.
var retryReport = &flowrun.Report{Type: flowrun.StateScheduled, Retry: flowrun.Retry{Kind: flowrun.RetryStart, Number: 2}}

// drawEvent draws any event of any holder, the stale and the wrong included.
func drawEvent(t *rapid.T, at time.Time, launches int) flowrun.Event {
	holder := rapid.SampledFrom([]string{"a", "b", "c", ""}).Draw(t, "holder")
	n := rapid.IntRange(1, launches).Draw(t, "launch")
	id := flowrun.LaunchID(fmt.Sprintf("l%d", n))
	lease := flowrun.Lease{Holder: holder, Until: at.Add(time.Minute)}
	report := rapid.SampledFrom([]*flowrun.Report{nil, crash, retryReport}).Draw(t, "report")
	made := map[flowrun.RetryKind]int{flowrun.RetryStart: rapid.IntRange(0, 3).Draw(t, "retries")}
	execution := "x" + string(id)
	return rapid.SampledFrom([]flowrun.Event{
		flowrun.Scheduled{Lease: lease, LaunchID: id, StateAt: stateAt(n), Retried: made},
		flowrun.Taken{Lease: lease},
		flowrun.Corrected{Holder: holder, Launch: flowrun.Launch{LaunchID: id, ScheduledStateAt: stateAt(n), Status: flowrun.StatusClaimed}, Retried: made},
		flowrun.Discarded{Holder: holder, LaunchID: id},
		flowrun.Attempted{Holder: holder, LaunchID: id, Region: "r", JobName: "j" + string(id)},
		flowrun.Launched{Holder: holder, LaunchID: id, ExecutionName: execution},
		flowrun.Rejected{Holder: holder, Reason: "rejected", Report: report},
		flowrun.PutBack{Holder: holder, Reason: "put back", Report: report},
		flowrun.Cancelling{Holder: holder},
		flowrun.Abandon{Holder: holder, Reason: "abandoned"},
		flowrun.Missing{Holder: holder},
		flowrun.Foreign{Holder: holder, StateID: "s"},
		flowrun.Ended{Holder: holder, LaunchID: id, ExecutionName: execution, Outcome: flowrun.Outcome{Kind: flowrun.ExitCode}, EndedAt: at, Report: report},
		flowrun.Reported{Holder: holder, LaunchID: id},
		flowrun.Released{Holder: holder, At: at.Add(rapid.SampledFrom([]time.Duration{0, time.Second, time.Hour}).Draw(t, "release"))},
	}).Draw(t, "event")
}

// holderOf is who claims to hold the lease with the event.
func holderOf(e flowrun.Event) string {
	switch e := e.(type) {
	case flowrun.Scheduled:
		return e.Holder
	case flowrun.Taken:
		return e.Holder
	case flowrun.Corrected:
		return e.Holder
	case flowrun.Discarded:
		return e.Holder
	case flowrun.Attempted:
		return e.Holder
	case flowrun.Launched:
		return e.Holder
	case flowrun.Rejected:
		return e.Holder
	case flowrun.PutBack:
		return e.Holder
	case flowrun.Cancelling:
		return e.Holder
	case flowrun.Abandon:
		return e.Holder
	case flowrun.Missing:
		return e.Holder
	case flowrun.Foreign:
		return e.Holder
	case flowrun.Ended:
		return e.Holder
	case flowrun.Reported:
		return e.Holder
	case flowrun.Released:
		return e.Holder
	}
	panic(fmt.Sprintf("an event that the properties do not know: %T", e))
}

func clone(r flowrun.Record) flowrun.Record {
	r.Previous, r.Retried = slices.Clone(r.Previous), maps.Clone(r.Retried)
	return r
}

// all returns the current launch and the previous ones.
func all(r flowrun.Record) []flowrun.Launch {
	if r.Status == flowrun.StatusNone {
		return r.Previous
	}
	return append([]flowrun.Launch{r.Launch}, r.Previous...)
}

func applyKeepsItsPromises(t *rapid.T) {
	h := history{r: flowrun.Record{FlowRunID: "f"}, now: now, over: map[flowrun.LaunchID]flowrun.Launch{}, overruled: map[flowrun.LaunchID]bool{}}
	for range rapid.IntRange(1, 60).Draw(t, "events") {
		h.now = h.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
		h.last = drawEvent(t, h.now, launches)
		from := clone(h.r)
		to, err := flowrun.Apply(h.r, h.last, h.now)
		if diff := cmp.Diff(from, h.r); diff != "" {
			t.Fatalf("%T changed the record that it was given: %s", h.last, diff)
		}
		if err != nil {
			if diff := cmp.Diff(from, to); diff != "" {
				t.Fatalf("%T failed (%v) and changed the record: %s", h.last, err, diff)
			}
			continue
		}
		h.follow(t, from, to)
		h.r = to
	}
}

// follow checks one step that was made.
func (h *history) follow(t *rapid.T, from, to flowrun.Record) {
	h.onlyTheHolderWrites(t, from, to)
	if e, ok := h.last.(flowrun.Scheduled); ok && e.StateAt.Before(from.ScheduledStateAt) {
		t.Fatalf("a stale Scheduled (%s) won over %s", e.LaunchID, from.LaunchID)
	}
	if _, ok := h.last.(flowrun.Released); ok && to.LeaseUntil.After(from.LeaseUntil) {
		t.Fatalf("Released made the lease longer: %s, then %s", from.LeaseUntil, to.LeaseUntil)
	}
	if _, ok := h.last.(flowrun.Corrected); ok && !from.Status.Over() {
		h.overruled[from.LaunchID] = true
	}
	if len(to.Previous) > mostPrevious {
		t.Fatalf("%d previous launches", len(to.Previous))
	}
	seen := map[flowrun.LaunchID]bool{}
	for i, l := range all(to) {
		if seen[l.LaunchID] {
			t.Fatalf("launch %s is recorded twice", l.LaunchID)
		}
		seen[l.LaunchID] = true
		if current := i == 0 && to.Status != flowrun.StatusNone; !current && !l.Status.Over() && !h.overruled[l.LaunchID] {
			t.Fatalf("%T left launch %s behind, which is %s", h.last, l.LaunchID, l.Status)
		}
		if was, ok := h.over[l.LaunchID]; ok {
			was.ReportedAt, was.FinalAt = l.ReportedAt, l.FinalAt // all that may come later
			was.CancelRequestedAt, was.MissingSince = l.CancelRequestedAt, l.MissingSince
			if diff := cmp.Diff(was, l); diff != "" {
				t.Fatalf("%T changed a launch that was over: %s", h.last, diff)
			}
		} else if l.Status.Over() {
			h.over[l.LaunchID] = l
		}
	}
	for k, n := range from.Retried {
		if to.Retried[k] < n {
			t.Fatalf("%T forgot retries: %v became %v", h.last, from.Retried, to.Retried)
		}
	}
	want := time.Time{}
	if !to.ReportedAt.IsZero() {
		want = to.ReportedAt.Add(flowrun.Retention)
	}
	if to.Status == flowrun.StatusNone {
		want = to.ExpireAt // without a launch it may be forgotten at any time
	}
	if !to.ExpireAt.Equal(want) || !to.ReportedAt.IsZero() && (to.Status == flowrun.StatusNone || !to.Status.Over()) {
		t.Fatalf("%T: %q, reported at %s, may be forgotten at %s", h.last, to.Status, to.ReportedAt, to.ExpireAt)
	}
}

// onlyTheHolderWrites checks that whoever does not hold the lease changes nothing, but for
// taking a lease that is free and for telling what was launched.
func (h *history) onlyTheHolderWrites(t *rapid.T, from, to flowrun.Record) {
	holder := holderOf(h.last)
	if holder != "" && holder == from.LeaseHolder {
		return
	}
	want := from
	switch h.last.(type) {
	case flowrun.Scheduled:
		if from.Leased(holder, h.now) {
			t.Fatalf("%q claimed while %q held the lease", holder, from.LeaseHolder)
		}
		return
	case flowrun.Taken:
		if from.Leased(holder, h.now) {
			t.Fatalf("%q took the lease that %q held", holder, from.LeaseHolder)
		}
		want.LeaseHolder, want.LeaseUntil = to.LeaseHolder, to.LeaseUntil
	case flowrun.Launched:
		want.Status, want.ExecutionName, want.LaunchedAt, want.MissingSince = to.Status, to.ExecutionName, to.LaunchedAt, to.MissingSince
		if to.Status != from.Status && (from.Status != flowrun.StatusClaimed || to.Status != flowrun.StatusLaunched) {
			t.Fatalf("Launched made %s of %s", to.Status, from.Status)
		}
	}
	if diff := cmp.Diff(want, to); diff != "" {
		t.Fatalf("%T of %q changed the record that %q holds: %s", h.last, holder, from.LeaseHolder, diff)
	}
}

func TestApplyKeepsItsPromises(t *testing.T) { rapid.Check(t, applyKeepsItsPromises) }

func FuzzApply(f *testing.F) { f.Fuzz(rapid.MakeFuzz(applyKeepsItsPromises)) }

func TestPreviousLaunchesAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := flowrun.Record{FlowRunID: "f"}
		many := rapid.IntRange(1, 20).Draw(t, "launches")
		for n := range many {
			at := now.Add(time.Duration(n) * time.Minute)
			id := flowrun.LaunchID(fmt.Sprintf("l%d", n))
			for _, e := range []flowrun.Event{
				flowrun.Scheduled{Lease: flowrun.Lease{Holder: "a", Until: at.Add(time.Minute)}, LaunchID: id, StateAt: at},
				flowrun.Ended{Holder: "a", LaunchID: id},
				flowrun.Released{Holder: "a", At: at},
			} {
				var err error
				if r, err = flowrun.Apply(r, e, at); err != nil {
					t.Fatalf("%T: %v", e, err)
				}
			}
		}
		var got, want []flowrun.LaunchID
		for _, l := range r.Previous {
			got = append(got, l.LaunchID)
		}
		for n := many - 2; n >= max(0, many-1-mostPrevious); n-- {
			want = append(want, flowrun.LaunchID(fmt.Sprintf("l%d", n)))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("newest first, %d at most: %s", mostPrevious, diff)
		}
	})
}
