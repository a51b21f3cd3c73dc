package flowrun

import (
	"fmt"
	"time"
)

// View is a flow run as Prefect shows it, as far as a verdict depends on it.
type View struct {
	StateType StateType
	StateName string
	StateAt   time.Time
	// Suspended: PAUSED with pause_reschedule; the container left on purpose.
	Suspended bool
	// RetryInProcess: empirical_policy.retry_type is in_process; the container was to try again itself.
	RetryInProcess bool
	// Current: Prefect's newest PENDING names the launch the verdict is about.
	Current bool
}

// Next is what follows from an execution's end, besides the report.
type Next string

// What can follow.
const (
	NextNothing  Next = ""
	NextLook     Next = "look"     // look again after a grace: the flow run may still tell its end itself
	NextDispatch Next = "dispatch" // the flow run waits for a launch
)

// Verdict decides what Prefect is to be told of a launch whose execution ended. It never
// proposes anything over a state that the flow or a person reported, and nothing at all
// about a flow run that another launch holds. where is appended to each message: links
// for the flow's author.
//
// reportGrace is how long after endedAt a flow run may stay PENDING or RUNNING although its
// container succeeded, before that counts as ended without a report.
func Verdict(v View, l Launch, o Outcome, where string, endedAt, now time.Time, reportGrace time.Duration) (*Report, Next) {
	if !v.Current {
		return nil, NextNothing
	}
	switch v.StateType {
	case StateCancelling:
		return cancelled(l, o, where), NextNothing
	case StateCrashed:
		// The dying engine forces CRASHED on the signal that we sent in order to cancel.
		if !l.CancelRequestedAt.IsZero() && v.StateAt.After(l.CancelRequestedAt) {
			return cancelled(l, o, where), NextNothing
		}
		return nil, NextNothing
	case StateScheduled:
		if v.RetryInProcess {
			return nil, NextDispatch // whoever was to try again in process is gone
		}
		return nil, NextNothing
	case StatePaused:
		if v.Suspended {
			return nil, NextNothing
		}
	case StatePending, StateRunning:
		if o.Kind == Succeeded && now.Before(endedAt.Add(reportGrace)) {
			return nil, NextLook
		}
	default:
		return nil, NextNothing
	}
	return &Report{Type: StateCrashed, Name: "Crashed", Message: o.Message() + where}, NextNothing
}

// cancelled is the report on a flow run that was cancelled in Prefect. Who stopped the
// execution is told as far as it is known: pushpool records that it did.
func cancelled(l Launch, o Outcome, where string) *Report {
	how := o.cause()
	if o.Kind == Cancelled {
		how = "Nothing of it was being executed any more."
		switch {
		case l.Status == StatusAbandoned:
			how = "Its execution was stopped by pushpool."
		case l.ExecutionName != "":
			how = "Its execution was cancelled in Cloud Run."
		}
	}
	return &Report{Type: StateCancelled, Name: "Cancelled", Message: "The flow run was cancelled in Prefect. " + how + where}
}

// Message says to the flow's author what happened and what to do.
func (o Outcome) Message() string {
	cause, todo := o.explain()
	text := cause + " " + todo
	if o.Text != "" {
		text += " Cloud Run says: " + o.Text
	}
	return text
}

// cause says what happened, also where it was meant to happen.
func (o Outcome) cause() string {
	cause, _ := o.explain()
	return cause
}

const readLogs = "Its last log lines, in this flow run's logs and in Cloud Logging, tell why."

func (o Outcome) explain() (cause, todo string) {
	switch o.Kind {
	case Succeeded:
		return "The container exited with code 0 without reporting a final state to Prefect.",
			"Check that its command is `prefect flow-run execute` and that it can reach the Prefect API."
	case ExitCode:
		return o.explainExit()
	case Signal:
		return o.explainSignal()
	case OutOfMemory:
		return "The container reached its memory limit.", "Raise the job variable `memory`, or let the flow use less."
	case TimedOut:
		return "The execution reached its timeout.", "Raise the job variable `timeout` (seconds), or let the flow do less."
	case Image:
		return "The container image could not be used.",
			"Check that the deployment's image exists in the registry and that Cloud Run's service agent and the dispatcher may read it."
	case Secret:
		return "A secret that the job refers to could not be read.",
			"Check that the secret and its version exist and that the flow's service account has roles/secretmanager.secretAccessor on it."
	case Permission:
		return "Cloud Run refused the job for lack of a permission.", "Grant what the message names, or change the job variable `service_account_name`."
	case Cancelled:
		who := "Somebody"
		if o.By != "" {
			who = o.By
		}
		return "The execution was cancelled outside Prefect.", who + " cancelled it in Cloud Run; run the flow again if that was not intended."
	case Deleted:
		return "The execution or its job was deleted while the flow run was under way.",
			"The project's audit log says who did: google.cloud.run.v2.Jobs.DeleteJob or Executions.DeleteExecution. Run the flow again if that was not intended."
	case NotStarted:
		return "The flow run did not get to RUNNING in time, and its launch was stopped.",
			"Its last log lines, or Cloud Run's words, tell what it waited for; where starting takes that long, raise the installation's START_DEADLINE."
	case Platform:
	}
	return "The execution failed for a reason that Cloud Run does not name.", "Run the flow again; if it repeats, read the execution's page."
}

// explainExit knows what shells say by an exit code: 126 and 127 of a command, and above 128
// the signal that ended it.
func (o Outcome) explainExit() (cause, todo string) {
	cause = "The container exited with a non-zero code."
	if o.ExitCode != 0 {
		cause = fmt.Sprintf("The container exited with code %d.", o.ExitCode)
	}
	switch {
	case o.ExitCode == 126, o.ExitCode == 127:
		return cause, "Its command is not in the image, or cannot be executed: check the job variables `command` and `image`."
	case o.ExitCode == 128+9:
		return cause, "A process in it was killed, most often for lack of memory: raise the job variable `memory`. " + readLogs
	case o.ExitCode > 128 && o.ExitCode < 128+65:
		return cause, fmt.Sprintf("A process in it was ended by signal %d. ", o.ExitCode-128) + readLogs
	}
	return cause, readLogs
}

func (o Outcome) explainSignal() (cause, todo string) {
	switch o.Signal {
	case 0:
		return "The container was ended by a signal.", "If it was killed for lack of memory, raise the job variable `memory`. " + readLogs
	case 9:
		return "The container was killed (signal 9).",
			"Most often it used more memory than its limit: raise the job variable `memory`, or read its last log lines."
	}
	return fmt.Sprintf("The container was ended by signal %d.", o.Signal), readLogs
}
