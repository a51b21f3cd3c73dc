// Package ledgertest is the suite that every ledger has to pass.
package ledgertest

import (
	"context"
	"errors"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
)

// at is a time that every store keeps in full: Firestore truncates to microseconds.
var at = time.Date(2026, 1, 1, 6, 0, 0, 123_456_000, time.UTC)

// errRefused is a change's own error.
var errRefused = errors.New("refused")

// Run runs the suite. open returns an empty ledger, each time another one.
func Run(t *testing.T, open func(*testing.T) ledger.Ledger) {
	for name, test := range map[string]func(*testing.T, ledger.Ledger){
		"a flow run that is not known has a record with its id alone": testUnknown,
		"every field comes back":                      testRoundTrip,
		"an update replaces the whole record":         testReplace,
		"a refused change leaves all as it is":        testRefused,
		"a cancelled context changes nothing":         testCancelled,
		"concurrent updates lose nothing":             testConcurrent,
		"nobody shares what is stored":                testShared,
		"open: what is not over, or was not reported": testOpen,
		"by execution: the current launch's":          testByExecution,
		"pools: updated like records":                 testPool,
		"regions: updated like records":               testRegion,
		"the sweep: updated like records":             testSweep,
		"deployments: updated like records":           testDeployment,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// full is a record with something in every field.
func full(id string) flowrun.Record {
	tick := at
	next := func() time.Time { tick = tick.Add(time.Second); return tick }
	launch := func(n string, s flowrun.Status) flowrun.Launch {
		return flowrun.Launch{
			LaunchID: flowrun.LaunchID("launch" + n), ScheduledStateAt: next(), Status: s,
			WorkPool: "pool" + n, DeploymentID: "deployment" + n, Project: "project" + n, Region: "region" + n, JobName: "job" + n,
			ExecutionName: "execution" + n, Outcome: flowrun.ExitCode, Reason: "reason" + n,
			Report: &flowrun.Report{
				Type: flowrun.StateScheduled, Name: "AwaitingRetry", Message: "message" + n, ScheduledTime: next(),
				Retry: flowrun.Retry{Kind: flowrun.RetryStart, Number: 2},
			},
			Retries:     &flowrun.Retries{Budget: map[flowrun.RetryKind]int{flowrun.RetryStart: 3}, Started: true},
			Resources:   flowrun.Resources{MilliCPU: 1000, MemoryBytes: 1 << 29},
			RequestedAt: next(), DueAt: next(), ClaimedAt: next(), LaunchedAt: next(), StartedAt: next(), RunningAt: next(), FinishedAt: next(), FinalAt: next(),
			ReportedAt: next(), CancelRequestedAt: next(), MissingSince: next(), SlotAt: next(), WaitingSince: next(),
		}
	}
	return flowrun.Record{
		FlowRunID: id, Launch: launch("3", flowrun.StatusFinished), LeaseHolder: "holder", LeaseUntil: next(),
		Retried:  map[flowrun.RetryKind]int{flowrun.RetryStart: 2},
		Previous: []flowrun.Launch{launch("2", flowrun.StatusRejected), launch("1", flowrun.StatusAbandoned)}, ForeignStateID: "state", ExpireAt: next(),
	}
}

// put stores r, whatever was there before.
func put(t *testing.T, l ledger.Ledger, r flowrun.Record) {
	t.Helper()
	written, err := l.Update(t.Context(), r.FlowRunID, func(flowrun.Record) (flowrun.Record, error) { return r, nil })
	if err != nil {
		t.Fatal(err)
	}
	same(t, r, written)
}

func get(t *testing.T, l ledger.Ledger, id string) flowrun.Record {
	t.Helper()
	r, err := l.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func same(t *testing.T, want, got any) {
	t.Helper()
	// A store may not tell a list without elements from none.
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

func testUnknown(t *testing.T, l ledger.Ledger) {
	same(t, flowrun.Record{FlowRunID: "f"}, get(t, l, "f"))
	_, err := l.Update(t.Context(), "f", func(r flowrun.Record) (flowrun.Record, error) {
		same(t, flowrun.Record{FlowRunID: "f"}, r)
		return r, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkFull fails where a field that v holds is zero: one that was added since, and that
// no test would miss.
func checkFull(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch {
	case v.IsZero():
		t.Errorf("%s is not set: give it a value in this suite", name)
	case v.Kind() == reflect.Pointer:
		checkFull(t, name, v.Elem())
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			checkFull(t, name, v.Index(i))
		}
	case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]():
		for i := range v.NumField() {
			checkFull(t, name+"."+v.Type().Field(i).Name, v.Field(i))
		}
	}
}

func testRoundTrip(t *testing.T, l ledger.Ledger) {
	checkFull(t, "Record", reflect.ValueOf(full("full")))
	for name, r := range map[string]flowrun.Record{
		"full": full("full"),
		// No report, no time, nothing before.
		"bare": {FlowRunID: "bare", Launch: flowrun.Launch{LaunchID: "l", Status: flowrun.StatusClaimed}},
		// Nothing but a lease, as Taken leaves it.
		"lease": {FlowRunID: "lease", LeaseHolder: "h", LeaseUntil: at},
	} {
		t.Run(name, func(t *testing.T) {
			put(t, l, r)
			got := get(t, l, r.FlowRunID)
			same(t, r, got)
			if r.ReportedAt.IsZero() && (!got.ReportedAt.IsZero() || !got.ExpireAt.IsZero() || got.Report != nil) {
				t.Errorf("nothing was reported, but %+v", got)
			}
			_, err := l.Update(t.Context(), r.FlowRunID, func(inside flowrun.Record) (flowrun.Record, error) {
				same(t, r, inside)
				return inside, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			same(t, r, get(t, l, r.FlowRunID))
		})
	}
}

func testReplace(t *testing.T, l ledger.Ledger) {
	put(t, l, full("f"))
	put(t, l, full("other"))
	bare := flowrun.Record{FlowRunID: "f", Launch: flowrun.Launch{LaunchID: "l", Status: flowrun.StatusClaimed}}
	put(t, l, bare)
	same(t, bare, get(t, l, "f"))
	same(t, full("other"), get(t, l, "other"))
}

func testRefused(t *testing.T, l ledger.Ledger) {
	put(t, l, full("f"))
	for id, want := range map[string]flowrun.Record{"f": full("f"), "unknown": {FlowRunID: "unknown"}} {
		got, err := l.Update(t.Context(), id, func(r flowrun.Record) (flowrun.Record, error) {
			r.Reason = "changed"
			return r, errRefused
		})
		if !errors.Is(err, errRefused) {
			t.Errorf("error %v, want the change's own", err)
		}
		same(t, want, got)
		same(t, want, get(t, l, id))
	}
}

func testCancelled(t *testing.T, l ledger.Ledger) {
	put(t, l, full("f"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := l.Update(ctx, "f", func(r flowrun.Record) (flowrun.Record, error) { r.Reason = "changed"; return r, nil })
	if err == nil {
		t.Error("no error")
	}
	if _, err := l.UpdatePool(ctx, "p", func(p flowrun.Pool) (flowrun.Pool, error) { p.Again = true; return p, nil }); err == nil {
		t.Error("pool: no error")
	}
	if _, err := l.UpdateDeployment(ctx, "p", func(d flowrun.Deployment) (flowrun.Deployment, error) { d.Again = true; return d, nil }); err == nil {
		t.Error("deployment: no error")
	}
	same(t, full("f"), get(t, l, "f"))
}

func testConcurrent(t *testing.T, l ledger.Ledger) {
	const callers, times = 4, 5
	group, ctx := errgroup.WithContext(t.Context())
	for range callers {
		group.Go(func() error {
			for range times {
				_, err := l.Update(ctx, "f", func(r flowrun.Record) (flowrun.Record, error) {
					n, _ := strconv.Atoi(r.Reason) // none yet: 0
					r.Reason = strconv.Itoa(n + 1)
					return r, nil
				})
				if err != nil {
					return err
				}
				_, err = l.UpdateRegion(ctx, "r", func(r flowrun.Region) (flowrun.Region, error) {
					r.Jobs++
					return r, nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	r, err := l.UpdateRegion(t.Context(), "r", func(r flowrun.Region) (flowrun.Region, error) { return r, errRefused })
	if !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	if got := get(t, l, "f").Reason; got != strconv.Itoa(callers*times) || r.Jobs != callers*times {
		t.Errorf("counted %s and %d, want %d", got, r.Jobs, callers*times)
	}
}

func testShared(t *testing.T, l ledger.Ledger) {
	r := full("f")
	put(t, l, r)
	spoil := func(r flowrun.Record) {
		r.Report.Message, r.Previous[0].Reason, r.Previous[1].Report.Message = "spoilt", "spoilt", "spoilt"
	}
	spoil(r)
	spoil(get(t, l, "f"))
	_, err := l.Update(t.Context(), "f", func(r flowrun.Record) (flowrun.Record, error) { spoil(r); return r, errRefused })
	if !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	if found, ok, err := l.ByExecution(t.Context(), "execution3"); err != nil || !ok {
		t.Errorf("found %t, %v", ok, err)
	} else {
		spoil(found)
	}
	same(t, full("f"), get(t, l, "f"))
}

// verdict is a record whose verdict was reached at the given time.
func verdict(id string, s flowrun.Status, finished, reported time.Time) flowrun.Record {
	return flowrun.Record{FlowRunID: id, Launch: flowrun.Launch{
		LaunchID: "l", Status: s, FinishedAt: finished, ReportedAt: reported,
		Report: &flowrun.Report{Type: flowrun.StateCrashed},
	}}
}

func testOpen(t *testing.T, l ledger.Ledger) {
	running := full("running") // one before it is unreported, which nobody is told any more
	running.Status, running.ReportedAt, running.Previous[0].ReportedAt = flowrun.StatusLaunched, time.Time{}, time.Time{}
	over := full("over")
	over.Previous[0].Status = flowrun.StatusLaunched
	want := map[string]flowrun.Record{"running": running}
	for _, s := range []flowrun.Status{flowrun.StatusClaimed, flowrun.StatusAbandoned} {
		want[string(s)] = flowrun.Record{FlowRunID: string(s), Launch: flowrun.Launch{LaunchID: "l", Status: s}}
	}
	for _, s := range []flowrun.Status{flowrun.StatusFinished, flowrun.StatusRejected} {
		want["untold "+string(s)] = verdict("untold "+string(s), s, at, time.Time{})
		put(t, l, verdict("told "+string(s), s, at, at))
	}
	for _, r := range want {
		put(t, l, r)
	}
	put(t, l, over)
	put(t, l, flowrun.Record{FlowRunID: "somebody else's", ForeignStateID: "s"})
	same(t, want, opened(t, l))

	delete(want, "untold Finished")
	put(t, l, verdict("untold Finished", flowrun.StatusFinished, at, at))
	same(t, want, opened(t, l))
}

func opened(t *testing.T, l ledger.Ledger) map[string]flowrun.Record {
	t.Helper()
	found, err := l.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]flowrun.Record{}
	for _, r := range found {
		byID[r.FlowRunID] = r
	}
	return byID
}

func testByExecution(t *testing.T, l ledger.Ledger) {
	put(t, l, full("f"))
	put(t, l, flowrun.Record{FlowRunID: "claimed", Launch: flowrun.Launch{LaunchID: "l", Status: flowrun.StatusClaimed}})
	for name, want := range map[string]bool{"execution3": true, "execution2": false, "other": false, "": false} {
		r, found, err := l.ByExecution(t.Context(), name)
		if err != nil || found != want {
			t.Errorf("%q: found %t, %v", name, found, err)
		}
		if found {
			same(t, full("f"), r)
		}
	}
}

func testPool(t *testing.T, l ledger.Ledger) {
	document(t, "Pool", l.UpdatePool, func(name string) flowrun.Pool { return flowrun.Pool{Name: name} }, flowrun.Pool{
		Name: "p", Gate: flowrun.Gate{LeaseHolder: "h", LeaseUntil: at, Again: true, Waits: true}, HeartbeatAt: at.Add(time.Second),
	}, "p", func(p *flowrun.Pool) { p.LeaseHolder = "changed" })
}

func testRegion(t *testing.T, l ledger.Ledger) {
	document(t, "Region", l.UpdateRegion, func(name string) flowrun.Region { return flowrun.Region{Name: name} }, flowrun.Region{
		Name: "p/r", Last: at, FirstSpan: 7, Spans: []int{1, 3, 2}, Minute: 8, Reads: 100, ClosedUntil: at.Add(time.Second), ClosedFor: time.Minute, Reason: "quota",
		Jobs: 3, SharedFrom: at.Add(time.Hour), LastDeletion: at.Add(-time.Minute), Deletions: []time.Time{at.Add(-time.Hour)}, Slots: []time.Time{at, at.Add(time.Minute)},
	}, "p/r", func(r *flowrun.Region) { r.Jobs = 99 })
}

func testDeployment(t *testing.T, l ledger.Ledger) {
	document(t, "Deployment", l.UpdateDeployment, func(id string) flowrun.Deployment { return flowrun.Deployment{ID: id} }, flowrun.Deployment{
		ID: "d", Gate: flowrun.Gate{LeaseHolder: "h", LeaseUntil: at, Again: true, Waits: true}, RefusedAt: at, Lead: flowrun.Lead(7 * time.Second),
	}, "d", func(d *flowrun.Deployment) { d.Waits = false })
}

// document holds an update of a document other than a record to what Update promises. want
// has every field set.
func document[T any](t *testing.T, kind string,
	update func(context.Context, string, func(T) (T, error)) (T, error), empty func(name string) T, want T, name string, change func(*T),
) {
	t.Helper()
	checkFull(t, kind, reflect.ValueOf(want))
	written, err := update(t.Context(), name, func(v T) (T, error) {
		same(t, empty(name), v)
		return want, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, want, written)
	for name, want := range map[string]T{name: want, "other": empty("other")} {
		got, err := update(t.Context(), name, func(v T) (T, error) {
			same(t, want, v)
			change(&v)
			return v, errRefused
		})
		if !errors.Is(err, errRefused) {
			t.Errorf("error %v, want the change's own", err)
		}
		same(t, want, got)
	}
	if _, err := update(t.Context(), name, func(v T) (T, error) {
		same(t, want, v)
		return v, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func testSweep(t *testing.T, l ledger.Ledger) {
	want := flowrun.Sweep{LeaseHolder: "h", LeaseUntil: at, Count: 7}
	checkFull(t, "Sweep", reflect.ValueOf(want))
	for _, before := range []flowrun.Sweep{{}, want} {
		written, err := l.UpdateSweep(t.Context(), func(s flowrun.Sweep) (flowrun.Sweep, error) {
			same(t, before, s)
			return want, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		same(t, want, written)
	}
	got, err := l.UpdateSweep(t.Context(), func(flowrun.Sweep) (flowrun.Sweep, error) { return flowrun.Sweep{}, errRefused })
	if !errors.Is(err, errRefused) {
		t.Errorf("error %v, want the change's own", err)
	}
	same(t, want, got)
}
