package explain

import (
	"strings"
	"testing"
	"time"

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

// TestWhatIsRareIsExplained has what the local stack cannot be brought to, or not for long; the other
// situations are made there (scripts/pushpool/situations_test.go).
func TestWhatIsRareIsExplained(t *testing.T) {
	for name, test := range map[string]struct {
		facts                 Facts
		cause, next, do, odds string // parts of the text; odds: of Disagree
		at                    time.Time
	}{
		"due in a minute": {
			facts: situation("SCHEDULED", "Scheduled", "", dueAt(now.Add(time.Minute))),
			cause: "in 1m0s", next: "Its timer launches it then", at: now.Add(time.Minute),
		},
		"due and not seen yet": {
			facts: situation("SCHEDULED", "Late", ""), cause: "nothing keeps it from starting", next: "The sweep has it dispatched within a minute",
		},
		"due for long": {
			facts: situation("SCHEDULED", "Late", "", dueAt(now.Add(-time.Hour))), cause: "nothing keeps it from starting", next: "dispatched",
			do: "the dispatcher or the reconciler does not run",
		},
		"others first": {
			facts: situation("SCHEDULED", "Late", "", func(f *Facts) { two := 2; f.Pool.ConcurrencyLimit, f.PoolBusy, f.Ahead = &two, 1, 1 }),
			cause: "1 flow run goes before it in its work pool, which has a limit of 2", next: "in its turn",
		},
		"retried by the flow itself": {
			facts: situation("SCHEDULED", "AwaitingRetry", "", ours(true), executes(listens, nil), dueAt(now.Add(20*time.Second)), func(f *Facts) {
				f.FlowRun.EmpiricalPolicy = map[string]any{"retry_type": "in_process"}
			}),
			cause: "tries again itself, in its container", next: "container goes on", at: now.Add(20 * time.Second),
		},
		"to be run again while the old container lives": {
			facts: situation("SCHEDULED", "AwaitingRetry", "", ours(true), executes(listens, nil), func(f *Facts) { f.FlowRun.StateName = "Scheduled" }),
			cause: "its earlier execution is still alive", next: "stopped first",
		},
		"claimed, launch interrupted": {
			facts: situation("PENDING", "Pending", "", ours(false)), cause: "its job is not there", next: "the sweep resumes it within a minute. If the flow has not begun by 2026-01-02 12:14:00", at: now.Add(14 * time.Minute),
		},
		"runs": {
			facts: situation("RUNNING", "Running", "", ours(true), executes(listens, nil)), cause: "It runs.", next: "reports its end",
		},
		"exited with 0 and said nothing": {
			facts: situation("RUNNING", "Running", "", ours(true), executes(listens, &flowrun.Outcome{Kind: flowrun.Succeeded})),
			cause: "exited with code 0", next: "30s after its end", at: now.Add(25 * time.Second), odds: "the execution has ended",
		},
		"cancelled, the flow ends itself": {
			facts: situation("CANCELLING", "Cancelling", "", ours(true), executes(listens, nil)),
			cause: "grace to end itself", next: "If it has not by 2026-01-02 12:00:00", at: now,
		},
		"cancelled, nothing there": {
			facts: situation("CANCELLING", "Cancelling", "", ours(false)), cause: "nothing of it is being executed", next: "reported CANCELLED",
		},
		"suspended": {
			facts: situation("PAUSED", "Suspended", "", ours(true), func(f *Facts) { f.FlowRun.State.Details.PauseReschedule = true }),
			cause: "suspended", next: "launched again",
		},
		"cancelled and still executed": {
			facts: situation("CANCELLED", "Cancelled", "", ours(true), executes(listens, nil)), cause: "It ended CANCELLED", next: "the sweep stops it within a minute after 2026-01-02 12:00:00", at: now,
			odds: "its execution is alive",
		},
		"completed and still executed": {
			facts: situation("COMPLETED", "Completed", "", ours(true), executes(listens, nil)), cause: "Its container has not ended", next: "ends by itself", do: "cancel the execution",
			odds: "its execution is alive",
		},
		"completed a moment ago": {
			facts: situation("COMPLETED", "Completed", "", ours(true), executes(listens, nil), func(f *Facts) { f.FlowRun.State.Timestamp = now.Add(-time.Second) }),
			cause: "Its container has not ended", next: "ends by itself",
		},
		"unknown": {
			facts: situation("RUNNING", "Running", "", func(f *Facts) { f.FlowRun = nil }), cause: "Prefect has no such flow run", next: "nothing", do: "PREFECT_API_URL",
		},
		"another work pool": {
			facts: situation("SCHEDULED", "Scheduled", "", func(f *Facts) { f.FlowRun.WorkPoolName = "other" }),
			cause: `work pool "other", which this installation does not serve`, next: "nothing", do: "Deploy it to one of etl",
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := Explain(test.facts)
			for what, got := range map[string][2]string{
				"cause": {e.Cause, test.cause}, "next": {e.Next, test.next}, "do": {e.Do, test.do}, "disagree": {e.Disagree, test.odds},
			} {
				if !strings.Contains(got[0], got[1]) || got[1] == "" && got[0] != "" {
					t.Errorf("%s is %q, want %q in it", what, got[0], got[1])
				}
			}
			var at time.Time
			if e.NextAt != nil {
				at = *e.NextAt
			}
			if !at.Equal(test.at) {
				t.Errorf("next at %v, want %v", at, test.at)
			}
		})
	}
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
