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

func TestEachSituationIsExplained(t *testing.T) {
	one := 1
	outOfMemory := &flowrun.Outcome{Kind: flowrun.OutOfMemory}
	for name, test := range map[string]struct {
		facts                 Facts
		cause, next, do, odds string // parts of the text; odds: of Disagree
		at                    time.Time
	}{
		"due tomorrow": {
			facts: situation("SCHEDULED", "Scheduled", "", dueAt(now.Add(24*time.Hour))),
			cause: "due at 2026-01-03 12:00:00, in 24 hours", next: "timer is set 2m30s before", at: now.Add(24 * time.Hour),
		},
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
		"work pool paused": {
			facts: situation("SCHEDULED", "Late", "", func(f *Facts) { f.Pool.IsPaused = true }),
			cause: `work pool "etl" is paused`, next: "after somebody resumes", do: "prefect work-pool resume etl",
		},
		"work queue paused": {
			facts: situation("SCHEDULED", "Late", "", func(f *Facts) { f.Queue.IsPaused = true }),
			cause: `work queue "default" is paused`, next: "after somebody resumes", do: "prefect work-queue resume default --pool etl",
		},
		"work pool at its limit": {
			facts: situation("SCHEDULED", "Late", "", func(f *Facts) { f.Pool.ConcurrencyLimit, f.PoolBusy, f.Ahead = &one, 1, 3 }),
			cause: "at its limit of 1; 3 flow runs are due before it", next: "when a slot comes free", do: "Raise the work pool's",
		},
		"work queue at its limit": {
			facts: situation("SCHEDULED", "Late", "", func(f *Facts) { f.Queue.ConcurrencyLimit, f.QueueBusy = &one, 1 }),
			cause: `work queue "default" is at its limit of 1`, next: "when a slot comes free", do: "Raise the work queue's",
		},
		"others first": {
			facts: situation("SCHEDULED", "Late", "", func(f *Facts) { two := 2; f.Pool.ConcurrencyLimit, f.PoolBusy, f.Ahead = &two, 1, 1 }),
			cause: "1 flow run is due before it in its work pool, which has a limit of 2", next: "in its turn",
		},
		"deployment at its limit": {
			facts: situation("SCHEDULED", "AwaitingConcurrencySlot", "", dueAt(now.Add(30*time.Second)), func(f *Facts) { f.Deployment.ConcurrencyLimit, f.DeploymentBusy = &one, 1 }),
			cause: "Its deployment is at its limit of 1: 1 flow run", next: "when one of them ends, or tried again at", at: now.Add(30 * time.Second),
			do: "Raise the deployment's",
		},
		"no capacity": {
			facts: situation("SCHEDULED", "AwaitingCapacity", "quota of job creations in r", dueAt(now.Add(40*time.Second))),
			cause: "waits for capacity at Cloud Run: quota of job creations in r", next: "tried again at its time", do: "ask for more quota", at: now.Add(40 * time.Second),
		},
		"retried by us": {
			facts: situation("SCHEDULED", "AwaitingRetry", "out of memory, retry 1 of 1 with 2Gi", dueAt(now.Add(20*time.Second))),
			cause: "out of memory, retry 1 of 1 with 2Gi", next: "launched anew at", at: now.Add(20 * time.Second),
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
		"image is missing": {
			facts: situation("PENDING", "Pending", "", ours(false), func(f *Facts) {
				f.Job = &cloudrun.Job{Failure: &flowrun.Outcome{Kind: flowrun.Image, Text: "Image 'x' not found."}}
			}),
			cause: "its job cannot start: The container image could not be used.", next: "reports that", do: "Mend what the message names",
			odds: "the execution has ended, Prefect does not say so",
		},
		"being started": {
			facts: situation("PENDING", "Pending", "", ours(false), executes(listens, nil), func(f *Facts) { f.Execution.StartTime = time.Time{} }),
			cause: "pulls the image", next: "If the flow has not begun by 2026-01-02 12:14:00, the sweep stops its launch", at: now.Add(14 * time.Minute),
		},
		"a worker's": {
			facts: situation("PENDING", "Pending", ""), cause: "Somebody else claimed it", next: "nothing by this installation",
		},
		"runs": {
			facts: situation("RUNNING", "Running", "", ours(true), executes(listens, nil)), cause: "It runs.", next: "reports its end",
		},
		"runs, ledger lost": {
			facts: situation("RUNNING", "Running", "", ours(true), executes(listens, nil), func(f *Facts) { f.Record = flowrun.Record{FlowRunID: f.ID} }),
			cause: "It runs.", next: "reports its end", odds: "the ledger was lost",
		},
		"out of memory, not told yet": {
			facts: situation("RUNNING", "Running", "", ours(true), executes(listens, outOfMemory)),
			cause: "The container reached its memory limit.", next: "the sweep within two minutes", odds: "the execution has ended",
		},
		"verdict not told": {
			facts: situation("RUNNING", "Running", "", ours(true), executes(listens, outOfMemory), func(f *Facts) {
				f.Record.Status, f.Record.Outcome = flowrun.StatusFinished, flowrun.OutOfMemory
				f.Record.Report = &flowrun.Report{Type: flowrun.StateCrashed, Message: "The container reached its memory limit."}
			}),
			cause: "Prefect has not been told yet: The container reached", next: "The sweep proposes CRASHED", do: "doctor", odds: "the execution has ended",
		},
		"exited with 0 and said nothing": {
			facts: situation("RUNNING", "Running", "", ours(true), executes(listens, &flowrun.Outcome{Kind: flowrun.Succeeded})),
			cause: "exited with code 0", next: "30s after its end", at: now.Add(25 * time.Second), odds: "the execution has ended",
		},
		"execution gone": {
			facts: situation("RUNNING", "Running", "", ours(true)), cause: "not to be found", next: "looks within a minute, and again 30s later",
		},
		"cancelled, the flow ends itself": {
			facts: situation("CANCELLING", "Cancelling", "", ours(true), executes(listens, nil)),
			cause: "grace to end itself", next: "If it has not by 2026-01-02 12:00:00", at: now,
		},
		"cancelled, nobody listens": {
			facts: situation("CANCELLING", "Cancelling", "", ours(true), executes("python -m prefect.engine", nil)),
			cause: "its execution is being stopped", next: "reported CANCELLED",
		},
		"cancelled, nothing there": {
			facts: situation("CANCELLING", "Cancelling", "", ours(false)), cause: "nothing of it is being executed", next: "reported CANCELLED",
		},
		"suspended": {
			facts: situation("PAUSED", "Suspended", "", ours(true), func(f *Facts) { f.FlowRun.State.Details.PauseReschedule = true }),
			cause: "suspended", next: "launched again",
		},
		"crashed": {
			facts: situation("CRASHED", "Crashed", "The container exited with code 3.", ours(true), executes(listens, &flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 3})),
			cause: "CRASHED: The container exited with code 3.", next: "recorded by the finalizer",
		},
		"completed": {
			facts: situation("COMPLETED", "Completed", ""), cause: "It ended COMPLETED", next: "nothing",
		},
		"cancelled and still executed": {
			facts: situation("CANCELLED", "Cancelled", "", ours(true), executes(listens, nil)), cause: "It ended CANCELLED", next: "the sweep stops it within a minute after 2026-01-02 12:00:00", at: now,
			odds: "its execution is alive",
		},
		"deleted in Prefect while it runs": {
			facts: situation("RUNNING", "Running", "", ours(true), executes(listens, nil), func(f *Facts) { f.FlowRun = nil }),
			cause: "deleted in Prefect while it was executed", next: "stops its execution", odds: "Cloud Run executes it",
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
