package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pushpool/pushpool/scripts/pushpool/goldentest"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

var now = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

const launchID = flowrun.LaunchID("6469ccee-cf71-5297-b458-b96c53b57074")

// situation is facts about a flow run of the work pool etl in a state since a minute.
func situation(typ flowrun.StateType, name, message string, change ...func(*Facts)) Facts {
	at := now.Add(-time.Minute)
	f := Facts{
		Now: now, ID: "0198a1c2-0000-7000-8000-000000000001",
		Setting: Setting{
			WorkPools: []string{"etl"}, Projects: []string{"p"}, Regions: []string{"r"}, UI: "http://prefect",
			LookAhead: 150 * time.Second, CancelGrace: time.Minute, ReportGrace: 30 * time.Second,
			StartDeadline: 15 * time.Minute, GoneAfter: 30 * time.Second,
		},
		FlowRun: &prefect.FlowRun{
			Name: "brisk-dolphin", WorkPoolName: "etl", WorkQueueName: "default", DeploymentID: "d", StateType: typ, StateName: name,
			State: &prefect.State{Type: typ, Name: name, Message: message, Timestamp: at}, NextScheduledStartTime: &at, ExpectedStartTime: &at,
		},
		Pool: &prefect.WorkPool{Name: "etl"}, Queue: &prefect.WorkQueue{Name: "default"}, Deployment: &prefect.Deployment{Name: "prod"},
	}
	f.FlowRun.ID = f.ID
	for _, c := range change {
		c(&f)
	}
	return f
}

func dueAt(at time.Time) func(*Facts) {
	return func(f *Facts) { f.FlowRun.NextScheduledStartTime = &at }
}

// ours: the flow run was claimed by this installation and launched.
func ours(started bool) func(*Facts) {
	return func(f *Facts) {
		f.Claim = settle.Claim{Ours: true, LaunchID: launchID, Started: started}
		f.Record = flowrun.Record{FlowRunID: f.ID, Launch: flowrun.Launch{
			LaunchID: launchID, Status: flowrun.StatusLaunched, Project: "p", Region: "r", JobName: "pp-brisk-dolphin-mru4z3wpofjjp",
			ClaimedAt: now.Add(-50 * time.Second), LaunchedAt: now.Add(-49 * time.Second),
		}}
	}
}

// executes: Cloud Run has the execution, alive or with the outcome.
func executes(command string, o *flowrun.Outcome) func(*Facts) {
	return func(f *Facts) {
		x := cloudrun.JobName{Project: "p", Region: "r", Job: "pp-brisk-dolphin-mru4z3wpofjjp"}.Execution("x")
		f.Execution = &cloudrun.Execution{
			Name: x, CreateTime: now.Add(-49 * time.Second), StartTime: now.Add(-45 * time.Second), Outcome: o, Command: strings.Fields(command),
		}
		if o != nil {
			f.Execution.CompletionTime = now.Add(-5 * time.Second)
		}
	}
}

const listens = "prefect flow-run execute"

// TestWhatIsRareIsExplained holds, to the letter, what is said of what the local stack cannot be brought to, or not for long; the other
// situations are made there (scripts/pushpool/situations_test.go).
func TestWhatIsRareIsExplained(t *testing.T) {
	var got strings.Builder
	rare := map[string]Facts{
		"due in a minute":      situation("SCHEDULED", "Scheduled", "", dueAt(now.Add(time.Minute))),
		"due and not seen yet": situation("SCHEDULED", "Late", ""),
		"due for long":         situation("SCHEDULED", "Late", "", dueAt(now.Add(-time.Hour))),
		"others first":         situation("SCHEDULED", "Late", "", func(f *Facts) { two := 2; f.Pool.ConcurrencyLimit, f.PoolBusy, f.Ahead = &two, 1, 1 }),
		"retried by the flow itself": situation("SCHEDULED", "AwaitingRetry", "", ours(true), executes(listens, nil), dueAt(now.Add(20*time.Second)), func(f *Facts) {
			f.FlowRun.EmpiricalPolicy = map[string]any{"retry_type": "in_process"}
		}),
		"to be run again while the old container lives": situation("SCHEDULED", "AwaitingRetry", "", ours(true), executes(listens, nil), func(f *Facts) { f.FlowRun.StateName = "Scheduled" }),
		"claimed, launch interrupted":                   situation("PENDING", "Pending", "", ours(false)),
		"runs":                                          situation("RUNNING", "Running", "", ours(true), executes(listens, nil)),
		"exited with 0 and said nothing":                situation("RUNNING", "Running", "", ours(true), executes(listens, &flowrun.Outcome{Kind: flowrun.Succeeded})),
		"cancelled, the flow ends itself":               situation("CANCELLING", "Cancelling", "", ours(true), executes(listens, nil)),
		"cancelled, nothing there":                      situation("CANCELLING", "Cancelling", "", ours(false)),
		"suspended":                                     situation("PAUSED", "Suspended", "", ours(true), func(f *Facts) { f.FlowRun.State.Details.PauseReschedule = true }),
		"cancelled and still executed":                  situation("CANCELLED", "Cancelled", "", ours(true), executes(listens, nil)),
		"completed and still executed":                  situation("COMPLETED", "Completed", "", ours(true), executes(listens, nil)),
		"completed a moment ago":                        situation("COMPLETED", "Completed", "", ours(true), executes(listens, nil), func(f *Facts) { f.FlowRun.State.Timestamp = now.Add(-time.Second) }),
		"unknown":                                       situation("RUNNING", "Running", "", func(f *Facts) { f.FlowRun = nil }),
		"another work pool":                             situation("SCHEDULED", "Scheduled", "", func(f *Facts) { f.FlowRun.WorkPoolName = "other" }),
	}
	for _, name := range slices.Sorted(maps.Keys(rare)) {
		fmt.Fprintf(&got, "== %s\n", name)
		e := Explain(rare[name])
		e.Print(&got)
		if e.NextAt != nil {
			fmt.Fprintf(&got, "next_at %s\n", e.NextAt.Format(time.RFC3339))
		}
	}
	goldentest.Hold(t, "rare", got.String())
}

func TestTheTimelineIsInOrderAndNamesItsSources(t *testing.T) {
	f := situation("RUNNING", "Running", "", ours(true), executes(listens, nil))
	f.States = []prefect.State{
		{Type: "SCHEDULED", Name: "Scheduled", Timestamp: now.Add(-time.Minute)},
		{Type: "PENDING", Name: "Pending", Message: "Claimed by pushpool.", Timestamp: now.Add(-49500 * time.Millisecond)},
		{Type: "RUNNING", Name: "Running", Timestamp: now.Add(-40 * time.Second)},
	}
	var b strings.Builder
	Explain(f).Print(&b)
	want := `flow run 0198a1c2-0000-7000-8000-000000000001 (brisk-dolphin), work pool etl, deployment prod

It runs.
next:      The flow reports its end, and the finalizer records it.

Prefect    RUNNING since 2026-01-02 11:59:00
ledger     Launched, launch 6469ccee-cf71-5297-b458-b96c53b57074
Cloud Run  execution pp-brisk-dolphin-mru4z3wpofjjp-x is alive since 2026-01-02 11:59:15
they agree

2026-01-02 11:59:00.00               prefect    SCHEDULED
2026-01-02 11:59:10.00     +10.00 s  ledger     launch 6469ccee claimed
2026-01-02 11:59:10.50      +0.50 s  prefect    PENDING: Claimed by pushpool.
2026-01-02 11:59:11.00      +0.50 s  ledger     launch 6469ccee: job pp-brisk-dolphin-mru4z3wpofjjp created in r
2026-01-02 11:59:11.00      +0.00 s  cloud_run  execution pp-brisk-dolphin-mru4z3wpofjjp-x created
2026-01-02 11:59:15.00      +4.00 s  cloud_run  execution pp-brisk-dolphin-mru4z3wpofjjp-x started
2026-01-02 11:59:20.00      +5.00 s  prefect    RUNNING
`
	if got, _, _ := strings.Cut(b.String(), "\nPrefect    http"); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
}
