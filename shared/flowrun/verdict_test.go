package flowrun_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// grace is how long a flow run may take to report after its container succeeded.
const grace = time.Minute

func TestVerdict(t *testing.T) {
	killed := flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 3, Text: "boom"}
	succeeded := flowrun.Outcome{Kind: flowrun.Succeeded}
	crashed := func(o flowrun.Outcome) *flowrun.Report {
		return &flowrun.Report{Type: flowrun.StateCrashed, Name: "Crashed", Message: o.Message() + " Logs: here"}
	}
	cancelled := &flowrun.Report{
		Type: flowrun.StateCancelled, Name: "Cancelled",
		Message: "The flow run was cancelled in Prefect. The container exited with code 3. Logs: here",
	}
	stopped := func(how string) *flowrun.Report {
		return &flowrun.Report{Type: flowrun.StateCancelled, Name: "Cancelled", Message: "The flow run was cancelled in Prefect. " + how + " Logs: here"}
	}
	gone := flowrun.Outcome{Kind: flowrun.Cancelled}
	for _, test := range []struct {
		rule    string
		view    flowrun.View // Current unless other is set
		other   bool
		launch  flowrun.Launch
		outcome flowrun.Outcome
		age     time.Duration // since the execution ended
		want    *flowrun.Report
		next    flowrun.Next
	}{
		{rule: "another launch holds the flow run: nothing", view: flowrun.View{StateType: flowrun.StateRunning}, other: true, outcome: killed},
		{rule: "another launch holds a flow run that is CANCELLING: nothing", view: flowrun.View{StateType: flowrun.StateCancelling}, other: true, outcome: killed},
		{rule: "PENDING: CRASHED", view: flowrun.View{StateType: flowrun.StatePending}, outcome: killed, want: crashed(killed)},
		{rule: "RUNNING: CRASHED", view: flowrun.View{StateType: flowrun.StateRunning}, outcome: killed, want: crashed(killed)},
		{rule: "RUNNING, succeeded just now: look again", view: flowrun.View{StateType: flowrun.StateRunning}, outcome: succeeded, age: grace - 1, next: flowrun.NextLook},
		{rule: "PENDING, succeeded just now: look again", view: flowrun.View{StateType: flowrun.StatePending}, outcome: succeeded, next: flowrun.NextLook},
		{rule: "RUNNING, succeeded, still so after the grace: CRASHED", view: flowrun.View{StateType: flowrun.StateRunning}, outcome: succeeded, age: grace, want: crashed(succeeded)},
		{rule: "RUNNING, deleted in Cloud Run: CRASHED", view: flowrun.View{StateType: flowrun.StateRunning}, outcome: flowrun.Outcome{Kind: flowrun.Deleted}, want: crashed(flowrun.Outcome{Kind: flowrun.Deleted})},
		{rule: "CANCELLING: CANCELLED, however it ended", view: flowrun.View{StateType: flowrun.StateCancelling}, outcome: killed, want: cancelled},
		{
			rule: "CANCELLING, and we stopped it: who did is told", view: flowrun.View{StateType: flowrun.StateCancelling},
			launch: flowrun.Launch{Status: flowrun.StatusAbandoned, ExecutionName: "x"}, outcome: gone, want: stopped("Its execution was stopped by pushpool."),
		},
		{
			rule: "CANCELLING, and somebody else stopped it: where is told", view: flowrun.View{StateType: flowrun.StateCancelling},
			launch: flowrun.Launch{Status: flowrun.StatusLaunched, ExecutionName: "x"}, outcome: gone, want: stopped("Its execution was cancelled in Cloud Run."),
		},
		{
			rule: "CANCELLING before anything was made", view: flowrun.View{StateType: flowrun.StateCancelling},
			launch: flowrun.Launch{Status: flowrun.StatusClaimed}, outcome: gone, want: stopped("Nothing of it was being executed any more."),
		},
		{
			rule: "CRASHED by the engine that we signalled: CANCELLED", view: flowrun.View{StateType: flowrun.StateCrashed, StateAt: now},
			launch: flowrun.Launch{CancelRequestedAt: now.Add(-time.Second)}, outcome: killed, want: cancelled,
		},
		{
			rule: "CRASHED before we were asked to cancel: left alone", view: flowrun.View{StateType: flowrun.StateCrashed, StateAt: now.Add(-time.Minute)},
			launch: flowrun.Launch{CancelRequestedAt: now.Add(-time.Second)}, outcome: killed,
		},
		{rule: "CRASHED, nobody cancelled: left alone", view: flowrun.View{StateType: flowrun.StateCrashed, StateAt: now}, outcome: killed},
		{rule: "COMPLETED: left alone", view: flowrun.View{StateType: flowrun.StateCompleted}, outcome: killed},
		{
			rule: "COMPLETED although cancelled: left alone", view: flowrun.View{StateType: flowrun.StateCompleted, StateAt: now},
			launch: flowrun.Launch{CancelRequestedAt: now.Add(-time.Second)}, outcome: killed,
		},
		{rule: "FAILED: left alone", view: flowrun.View{StateType: flowrun.StateFailed}, outcome: killed},
		{rule: "CANCELLED: left alone", view: flowrun.View{StateType: flowrun.StateCancelled}, outcome: killed},
		{rule: "SCHEDULED: left alone", view: flowrun.View{StateType: flowrun.StateScheduled}, outcome: killed},
		{rule: "SCHEDULED for a retry in the container that ended: dispatch", view: flowrun.View{StateType: flowrun.StateScheduled, RetryInProcess: true}, outcome: killed, next: flowrun.NextDispatch},
		{rule: "Suspended: left alone", view: flowrun.View{StateType: flowrun.StatePaused, Suspended: true}, outcome: succeeded},
		{rule: "PAUSED, waiting in the container that ended: CRASHED", view: flowrun.View{StateType: flowrun.StatePaused}, outcome: killed, want: crashed(killed)},
		{rule: "a state type that is not known: left alone", view: flowrun.View{StateType: "NEW"}, outcome: killed},
	} {
		t.Run(test.rule, func(t *testing.T) {
			test.view.Current = !test.other
			got, next := flowrun.Verdict(test.view, test.launch, test.outcome, " Logs: here", now.Add(-test.age), now, grace)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if next != test.next {
				t.Errorf("next is %q, want %q", next, test.next)
			}
		})
	}
}

func TestMessagesSayWhatHappenedAndWhatToDo(t *testing.T) {
	for name, test := range map[string]struct {
		outcome flowrun.Outcome
		want    []string
	}{
		"succeeded":          {flowrun.Outcome{Kind: flowrun.Succeeded}, []string{"code 0 without reporting", "prefect flow-run execute"}},
		"exit code":          {flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 3}, []string{"exited with code 3.", "last log lines"}},
		"exit code, unknown": {flowrun.Outcome{Kind: flowrun.ExitCode}, []string{"a non-zero code"}},
		"signal":             {flowrun.Outcome{Kind: flowrun.Signal, Signal: 15}, []string{"signal 15", "log lines"}},
		"signal, unknown":    {flowrun.Outcome{Kind: flowrun.Signal}, []string{"by a signal."}},
		"killed":             {flowrun.Outcome{Kind: flowrun.Signal, Signal: 9}, []string{"killed (signal 9)", "`memory`"}},
		"out of memory":      {flowrun.Outcome{Kind: flowrun.OutOfMemory}, []string{"memory limit", "`memory`"}},
		"timed out":          {flowrun.Outcome{Kind: flowrun.TimedOut}, []string{"its timeout", "`timeout`"}},
		"image":              {flowrun.Outcome{Kind: flowrun.Image}, []string{"image", "may read it"}},
		"secret":             {flowrun.Outcome{Kind: flowrun.Secret}, []string{"secret", "roles/secretmanager.secretAccessor"}},
		"permission":         {flowrun.Outcome{Kind: flowrun.Permission}, []string{"permission", "`service_account_name`"}},
		"cancelled":          {flowrun.Outcome{Kind: flowrun.Cancelled}, []string{"cancelled outside Prefect", "Somebody cancelled it in Cloud Run", "run the flow again"}},
		"cancelled by":       {flowrun.Outcome{Kind: flowrun.Cancelled, By: "a@b"}, []string{"a@b cancelled it in Cloud Run"}},
		"no such command":    {flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 127}, []string{"code 127", "`command`"}},
		"a killed child":     {flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 137}, []string{"code 137", "`memory`", "log lines"}},
		"a crashed child":    {flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 139}, []string{"code 139", "signal 11", "log lines"}},
		"code of no signal":  {flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 255}, []string{"code 255.", "log lines"}},
		"deleted":            {flowrun.Outcome{Kind: flowrun.Deleted}, []string{"deleted", "Run the flow again"}},
		"platform":           {flowrun.Outcome{Kind: flowrun.Platform}, []string{"does not name", "if it repeats"}},
		"a kind of later":    {flowrun.Outcome{Kind: "new"}, []string{"does not name"}},
		"Cloud Run's words":  {flowrun.Outcome{Kind: flowrun.Platform, Text: "internal error"}, []string{"Cloud Run says: internal error"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := test.outcome.Message()
			for _, want := range test.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q does not say %q", got, want)
				}
			}
			if said := strings.Contains(got, "Cloud Run says"); said != (test.outcome.Text != "") {
				t.Errorf("%q", got)
			}
		})
	}
}
