package flowrun_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// The time of a test is now; a lease lasts a minute.
var (
	now   = time.Date(2026, 1, 1, 6, 0, 0, 0, time.UTC)
	long  = flowrun.Lease{Holder: "a", Until: now.Add(time.Minute)}
	crash = &flowrun.Report{Type: flowrun.StateCrashed, Name: "Crashed", Message: "m"}
)

// record is a record of launch "l2", leased by holder "a" unless edits say otherwise, with a
// finished and reported launch "l1" before it.
func record(s flowrun.Status, edits ...func(*flowrun.Record)) flowrun.Record {
	r := flowrun.Record{
		FlowRunID: "f", LeaseHolder: "a", LeaseUntil: now.Add(time.Minute),
		Launch: flowrun.Launch{
			LaunchID: "l2", ScheduledStateAt: now.Add(-time.Minute), Status: s, WorkPool: "p", DeploymentID: "d",
			Region: "r", JobName: "j", DueAt: now.Add(-time.Minute), ClaimedAt: now.Add(-time.Minute),
		},
		Previous: []flowrun.Launch{before()},
	}
	for _, edit := range edits {
		edit(&r)
	}
	return r
}

func before() flowrun.Launch {
	return flowrun.Launch{
		LaunchID: "l1", Status: flowrun.StatusFinished, ScheduledStateAt: now.Add(-time.Hour),
		FinishedAt: now.Add(-30 * time.Minute), ReportedAt: now.Add(-30 * time.Minute),
	}
}

func leaseOver(r *flowrun.Record) { r.LeaseUntil = now }
func unleased(r *flowrun.Record)  { r.LeaseHolder, r.LeaseUntil = "", time.Time{} }
func otherHas(r *flowrun.Record)  { r.LeaseHolder = "b" }
func reported(r *flowrun.Record) {
	r.ReportedAt, r.ExpireAt = now.Add(-time.Second), now.Add(-time.Second).Add(flowrun.Retention)
}

func toReport(r *flowrun.Record) {
	r.Outcome, r.Reason, r.Report, r.FinishedAt = flowrun.ExitCode, "why", crash, now.Add(-time.Second)
}

// scheduled is the event of launch id, whose SCHEDULED state is that old.
func scheduled(id flowrun.LaunchID, age time.Duration) flowrun.Scheduled {
	return flowrun.Scheduled{
		Lease: long, LaunchID: id, StateAt: now.Add(-age), WorkPool: "p", DeploymentID: "d", DueAt: now.Add(-age),
	}
}

// claimed is the launch that scheduled leads to.
func claimed(id flowrun.LaunchID, age time.Duration) flowrun.Launch {
	return flowrun.Launch{
		LaunchID: id, ScheduledStateAt: now.Add(-age), Status: flowrun.StatusClaimed,
		WorkPool: "p", DeploymentID: "d", DueAt: now.Add(-age), ClaimedAt: now,
	}
}

func TestApply(t *testing.T) {
	// A row of the design's table each, in its order; then what the other events add to it.
	for _, test := range []struct {
		rule  string
		from  flowrun.Record
		event flowrun.Event
		// Either to changes from into what is expected, or err is why nothing changes.
		to  func(*flowrun.Record)
		err error
	}{
		{
			"nothing known: a SCHEDULED state is claimed",
			flowrun.Record{FlowRunID: "f"}, scheduled("l1", time.Second),
			func(r *flowrun.Record) {
				r.Launch, r.LeaseHolder, r.LeaseUntil = claimed("l1", time.Second), "a", long.Until
			}, nil,
		},
		{"somebody else at it: Scheduled is acknowledged", record(flowrun.StatusClaimed, otherHas), scheduled("l2", time.Minute), nil, flowrun.ErrDone},
		{"somebody else at it: whoever ends or stops it comes back", record(flowrun.StatusLaunched, otherHas), flowrun.Taken{Lease: long}, nil, flowrun.ErrBusy},
		{
			"Claimed, lease over: Scheduled takes over and keeps region and job",
			record(flowrun.StatusClaimed, otherHas, leaseOver), scheduled("l2", time.Minute),
			func(r *flowrun.Record) { r.LeaseHolder, r.LeaseUntil = "a", long.Until }, nil,
		},
		{
			"Claimed, refused: the record is as before the claim",
			record(flowrun.StatusClaimed), flowrun.Discarded{Holder: "a", LaunchID: "l2"},
			func(r *flowrun.Record) {
				*r = flowrun.Record{FlowRunID: "f", Launch: before(), Previous: []flowrun.Launch{}, ExpireAt: before().ReportedAt.Add(flowrun.Retention)}
			}, nil,
		},
		{
			"Claimed, refused, nothing before: nothing is known",
			record(flowrun.StatusClaimed, func(r *flowrun.Record) { r.Previous = nil }), flowrun.Discarded{Holder: "a", LaunchID: "l2"},
			func(r *flowrun.Record) {
				*r = flowrun.Record{FlowRunID: "f", ExpireAt: now.Add(flowrun.Retention)}
			}, nil,
		},
		{
			"Claimed, put back: Finished, with a report that makes it SCHEDULED",
			record(flowrun.StatusClaimed), flowrun.PutBack{Holder: "a", Reason: "quota", Report: crash, Region: "r2", SlotAt: now.Add(time.Hour), WaitingSince: now.Add(-time.Hour)},
			func(r *flowrun.Record) {
				r.Status, r.Reason, r.Report, r.FinishedAt = flowrun.StatusFinished, "quota", crash, now
				r.Region, r.SlotAt, r.WaitingSince = "r2", now.Add(time.Hour), now.Add(-time.Hour)
			}, nil,
		},
		{
			"Claimed, launched: the lease is given back, and being missing starts anew",
			record(flowrun.StatusClaimed, func(r *flowrun.Record) { r.MissingSince = now }),
			flowrun.Launched{Holder: "a", LaunchID: "l2", ExecutionName: "x"},
			func(r *flowrun.Record) {
				r.Status, r.ExecutionName, r.LaunchedAt, r.MissingSince = flowrun.StatusLaunched, "x", now, time.Time{}
				unleased(r)
			}, nil,
		},
		{
			"Claimed, launched by somebody whose lease was taken: recorded, the lease stays",
			record(flowrun.StatusClaimed, otherHas), flowrun.Launched{Holder: "a", LaunchID: "l2", ExecutionName: "x"},
			func(r *flowrun.Record) {
				r.Status, r.ExecutionName, r.LaunchedAt = flowrun.StatusLaunched, "x", now
			}, nil,
		},
		{
			"Claimed, rejected: Rejected with its report",
			record(flowrun.StatusClaimed), flowrun.Rejected{Holder: "a", Reason: "template", Report: crash},
			func(r *flowrun.Record) {
				r.Status, r.Reason, r.Report, r.FinishedAt = flowrun.StatusRejected, "template", crash, now
			}, nil,
		},
		{"Launched cannot be rejected", record(flowrun.StatusLaunched), flowrun.Rejected{Holder: "a"}, nil, flowrun.ErrDone},
		{"Launched cannot be put back", record(flowrun.StatusLaunched), flowrun.PutBack{Holder: "a"}, nil, flowrun.ErrDone},
		{"Launched cannot be discarded", record(flowrun.StatusLaunched), flowrun.Discarded{Holder: "a", LaunchID: "l2"}, nil, flowrun.ErrLost},
		{
			"Claimed, abandoned", record(flowrun.StatusClaimed), flowrun.Abandon{Holder: "a", Reason: "why"},
			func(r *flowrun.Record) { r.Status, r.Reason = flowrun.StatusAbandoned, "why" }, nil,
		},
		{
			"Launched, abandoned", record(flowrun.StatusLaunched), flowrun.Abandon{Holder: "a", Reason: "why"},
			func(r *flowrun.Record) { r.Status, r.Reason = flowrun.StatusAbandoned, "why" }, nil,
		},
		{
			"Abandoned, launched: it stays Abandoned, with what is to be cancelled",
			record(flowrun.StatusAbandoned), flowrun.Launched{Holder: "a", LaunchID: "l2", ExecutionName: "x"},
			func(r *flowrun.Record) { r.ExecutionName, r.LaunchedAt = "x", now; unleased(r) }, nil,
		},
		{"Abandoned: nothing is attempted for it", record(flowrun.StatusAbandoned), flowrun.Attempted{Holder: "a", LaunchID: "l2", Region: "s"}, nil, flowrun.ErrLost},
		{"Abandoned: Scheduled does not launch it again", record(flowrun.StatusAbandoned, unleased), scheduled("l2", time.Minute), nil, flowrun.ErrDone},
		{"Claimed, ended: the end overtook the recording of the launch", record(flowrun.StatusClaimed), ended(), finished, nil},
		{"Launched, ended", record(flowrun.StatusLaunched), ended(), finished, nil},
		{"Abandoned, ended", record(flowrun.StatusAbandoned), ended(), finished, nil},
		{
			"ended, nothing to tell: reported at once",
			record(flowrun.StatusLaunched), flowrun.Ended{Holder: "a", LaunchID: "l2", Outcome: flowrun.Outcome{Kind: flowrun.Succeeded}},
			func(r *flowrun.Record) {
				r.Status, r.Outcome, r.FinishedAt, r.ReportedAt, r.ExpireAt = flowrun.StatusFinished, flowrun.Succeeded, now, now, now.Add(flowrun.Retention)
			}, nil,
		},
		{"the end of another launch changes nothing", record(flowrun.StatusLaunched), flowrun.Ended{Holder: "a", LaunchID: "l1"}, nil, flowrun.ErrDone},
		{"Finished, launched late", record(flowrun.StatusFinished, toReport), flowrun.Launched{Holder: "a", LaunchID: "l2", ExecutionName: "x"}, nil, flowrun.ErrDone},
		{"Finished, not reported: the report comes before a new launch", record(flowrun.StatusFinished, toReport), scheduled("l3", 0), nil, flowrun.ErrUnreported},
		{"Rejected, not reported: the report comes before a new launch", record(flowrun.StatusRejected, toReport), scheduled("l3", 0), nil, flowrun.ErrUnreported},
		{
			"Finished, reported: may be forgotten after a while",
			record(flowrun.StatusFinished, toReport), flowrun.Reported{Holder: "a", LaunchID: "l2"},
			func(r *flowrun.Record) { r.ReportedAt, r.ExpireAt = now, now.Add(flowrun.Retention) }, nil,
		},
		{
			"a newer SCHEDULED state: a new launch, the old one to previous",
			record(flowrun.StatusFinished, toReport, reported, unleased), scheduled("l3", 0),
			func(r *flowrun.Record) {
				r.Previous = []flowrun.Launch{r.Launch, before()}
				r.Launch, r.LeaseHolder, r.LeaseUntil, r.ExpireAt = claimed("l3", 0), "a", long.Until, time.Time{}
			}, nil,
		},
		{"a newer SCHEDULED state, but the launch may be alive: end it first", record(flowrun.StatusLaunched, unleased), scheduled("l3", 0), nil, flowrun.ErrUnfinished},
		{"an older SCHEDULED state: a stale delivery does not win", record(flowrun.StatusFinished, toReport, reported), scheduled("l0", time.Hour), nil, flowrun.ErrDone},
		{"an older SCHEDULED state, launch alive: acknowledged all the same", record(flowrun.StatusLaunched, unleased), scheduled("l0", time.Hour), nil, flowrun.ErrDone},
		{"Finished, reported: Scheduled of the same launch", record(flowrun.StatusFinished, toReport, reported), scheduled("l2", time.Minute), nil, flowrun.ErrDone},
		{"Finished, reported: ended again", record(flowrun.StatusFinished, toReport, reported), ended(), nil, flowrun.ErrDone},
		{"Finished, reported: abandoned", record(flowrun.StatusFinished, toReport, reported), flowrun.Abandon{Holder: "a"}, nil, flowrun.ErrDone},
		{"Finished, reported: reported again", record(flowrun.StatusFinished, toReport, reported), flowrun.Reported{Holder: "a", LaunchID: "l2"}, nil, flowrun.ErrDone},

		{
			"a launch that Prefect overruled is claimed again with its region, not anew",
			record(flowrun.StatusFinished, toReport, reported, unleased, putAside(flowrun.StatusClaimed)), scheduled("l3", 0),
			func(r *flowrun.Record) {
				aside := r.Previous[0]
				r.Previous = []flowrun.Launch{r.Launch, before()}
				r.Launch, r.LeaseHolder, r.LeaseUntil, r.ExpireAt = aside, "a", long.Until, time.Time{}
			}, nil,
		},
		{
			"a launch that Prefect overruled after its end is not launched again",
			record(flowrun.StatusFinished, toReport, reported, unleased, putAside(flowrun.StatusFinished)), scheduled("l3", 0), nil, flowrun.ErrDone,
		},
		{
			"corrected to a launch that the ledger does not know",
			record(flowrun.StatusFinished, toReport, reported), flowrun.Corrected{Holder: "a", Launch: claimed("l3", 0)},
			func(r *flowrun.Record) {
				r.Previous = []flowrun.Launch{r.Launch, before()}
				r.Launch, r.ExpireAt = claimed("l3", 0), time.Time{}
			}, nil,
		},
		{
			"corrected to a launch before: with all that is known of it",
			record(flowrun.StatusClaimed), flowrun.Corrected{Holder: "a", Launch: claimed("l1", time.Hour)},
			func(r *flowrun.Record) {
				r.Previous = []flowrun.Launch{r.Launch}
				r.Launch, r.ExpireAt = before(), before().ReportedAt.Add(flowrun.Retention)
			}, nil,
		},
		{"corrected to what is recorded", record(flowrun.StatusLaunched), flowrun.Corrected{Holder: "a", Launch: claimed("l2", 0)}, nil, flowrun.ErrDone},
		{
			"region and job are recorded before they are made", record(flowrun.StatusClaimed),
			flowrun.Attempted{Holder: "a", LaunchID: "l2", Project: "q", Region: "s", JobName: "k"},
			func(r *flowrun.Record) { r.Project, r.Region, r.JobName = "q", "s", "k" }, nil,
		},
		{
			"seen CANCELLING: the first time counts",
			record(flowrun.StatusLaunched, func(r *flowrun.Record) { r.CancelRequestedAt = now.Add(-time.Hour) }),
			flowrun.Cancelling{Holder: "a"}, func(*flowrun.Record) {}, nil,
		},
		{
			"a cancellation counts from when Prefect made it", record(flowrun.StatusLaunched),
			flowrun.Cancelling{Holder: "a", Since: now.Add(-time.Minute)}, func(r *flowrun.Record) { r.CancelRequestedAt = now.Add(-time.Minute) }, nil,
		},
		{
			"not found: the first time counts",
			record(flowrun.StatusLaunched, func(r *flowrun.Record) { r.MissingSince = now.Add(-time.Hour) }),
			flowrun.Missing{Holder: "a"}, func(*flowrun.Record) {}, nil,
		},
		{
			"a lease that is over and that nobody took still counts",
			record(flowrun.StatusLaunched, leaseOver), flowrun.Missing{Holder: "a"}, func(r *flowrun.Record) { r.MissingSince = now }, nil,
		},
		{"no holder is not the holder of a lease that nobody has", record(flowrun.StatusClaimed, unleased), flowrun.Rejected{}, nil, flowrun.ErrLost},
		{"released at once", record(flowrun.StatusLaunched), flowrun.Released{Holder: "a", At: now}, unleased, nil},
		{
			"released soon, for a request that may be under way", record(flowrun.StatusLaunched), flowrun.Released{Holder: "a", At: now.Add(time.Second)},
			func(r *flowrun.Record) { r.LeaseUntil = now.Add(time.Second) }, nil,
		},
		{
			"released without a launch: it may be forgotten", flowrun.Record{FlowRunID: "f", LeaseHolder: "a", LeaseUntil: now.Add(time.Second)},
			flowrun.Released{Holder: "a", At: now},
			func(r *flowrun.Record) {
				*r = flowrun.Record{FlowRunID: "f", ExpireAt: now.Add(flowrun.Retention)}
			}, nil,
		},
		{"released never extends a lease", record(flowrun.StatusLaunched), flowrun.Released{Holder: "a", At: now.Add(time.Hour)}, func(*flowrun.Record) {}, nil},
		{"released by somebody else", record(flowrun.StatusLaunched, otherHas), flowrun.Released{Holder: "a", At: now}, nil, flowrun.ErrDone},
	} {
		t.Run(test.rule, func(t *testing.T) {
			want := test.from
			if test.to != nil {
				test.to(&want)
			}
			got, err := flowrun.Apply(test.from, test.event, now)
			if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func ended() flowrun.Ended {
	return flowrun.Ended{
		Holder: "a", LaunchID: "l2", ExecutionName: "x", Outcome: flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 1},
		StartedAt: now.Add(-30 * time.Second), EndedAt: now.Add(-time.Second), Reason: "why", Report: crash,
	}
}

func finished(r *flowrun.Record) {
	toReport(r)
	r.Status, r.ExecutionName, r.StartedAt = flowrun.StatusFinished, "x", now.Add(-30*time.Second)
}

// putAside adds launch "l3" to the previous ones, as Corrected does with a launch that
// Prefect does not know.
func putAside(s flowrun.Status) func(*flowrun.Record) {
	return func(r *flowrun.Record) {
		l := claimed("l3", 0)
		l.Status, l.Region, l.JobName = s, "r", "j3"
		r.Previous = append([]flowrun.Launch{l}, r.Previous...)
	}
}

func TestOnlyTheHolderOfTheLeaseWrites(t *testing.T) {
	for name, event := range map[string]flowrun.Event{
		"Corrected":  flowrun.Corrected{Holder: "a", Launch: claimed("l3", 0)},
		"Discarded":  flowrun.Discarded{Holder: "a", LaunchID: "l2"},
		"Attempted":  flowrun.Attempted{Holder: "a", LaunchID: "l2", Region: "s"},
		"Rejected":   flowrun.Rejected{Holder: "a"},
		"PutBack":    flowrun.PutBack{Holder: "a"},
		"Cancelling": flowrun.Cancelling{Holder: "a"},
		"Abandon":    flowrun.Abandon{Holder: "a"},
		"Missing":    flowrun.Missing{Holder: "a"},
		"Ended":      ended(),
		"Reported":   flowrun.Reported{Holder: "a", LaunchID: "l2"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, from := range []flowrun.Record{record(flowrun.StatusClaimed, otherHas), record(flowrun.StatusClaimed, otherHas, leaseOver)} {
				got, err := flowrun.Apply(from, event, now)
				if !errors.Is(err, flowrun.ErrLost) {
					t.Errorf("error %v, want ErrLost", err)
				}
				if diff := cmp.Diff(from, got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// TestALedgerThatWasLostDoesNotSayThatNothingWasTried holds that a launch that is resumed without
// a record does not look like one that this ledger saw being claimed: of such a launch without a
// place nothing has been made, and a cancellation is told at once.
func TestALedgerThatWasLostDoesNotSayThatNothingWasTried(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for resumed, want := range map[bool]time.Time{false: now, true: {}} {
		r, err := flowrun.Apply(flowrun.Record{FlowRunID: "fr"}, flowrun.Scheduled{
			Lease: flowrun.Lease{Holder: "h", Until: now.Add(time.Minute)}, LaunchID: "launch", StateAt: now, Resumed: resumed,
		}, now)
		if err != nil || !r.ClaimedAt.Equal(want) {
			t.Errorf("resumed %t: claimed at %v, %v; want %v", resumed, r.ClaimedAt, err, want)
		}
	}
}
