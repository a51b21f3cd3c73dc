package explain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// answer is the explanation's heart.
type answer struct {
	cause, next, do string
	at              time.Time
}

const (
	// sweep is the reconciler's interval.
	sweep = "within a minute"
	// ended is when a sweep takes up the end of an execution, which leaves its event some time.
	ended = "The finalizer, or the sweep within two minutes, reports that."
	never = "nothing"
)

func (f Facts) answer() answer {
	fr := f.FlowRun
	switch {
	case fr == nil && f.alive():
		return answer{cause: "The flow run was deleted in Prefect while it was executed.", next: "The sweep stops its execution " + sweep + "."}
	case fr == nil:
		return answer{cause: "Prefect has no such flow run: it was deleted, or the id is of another workspace or server.", next: never, do: "Check the id, and PREFECT_API_URL."}
	case fr.WorkPoolName == "":
		return answer{cause: "The flow run belongs to no work pool: whoever started it runs it.", next: never}
	case !slices.Contains(f.Setting.WorkPools, fr.WorkPoolName):
		return answer{
			cause: fmt.Sprintf("The flow run is in work pool %q, which this installation does not serve.", fr.WorkPoolName), next: never,
			do: fmt.Sprintf("Deploy it to one of %s, or add the work pool to the installation (work_pools).", strings.Join(f.Setting.WorkPools, ", ")),
		}
	}
	if f.Record.Unreported() && f.Record.Report != nil {
		return answer{
			cause: fmt.Sprintf("Its launch is over (%s), and Prefect has not been told yet: %s", f.Record.Status, f.Record.Report.Message),
			next:  fmt.Sprintf("The sweep proposes %s %s.", f.Record.Report.Type, sweep),
			do:    "If this stays so for minutes, see whether Prefect answers: `pushpool doctor`.",
		}
	}
	switch fr.StateType {
	case flowrun.StateScheduled:
		return f.scheduled()
	case flowrun.StatePending:
		return f.pending()
	case flowrun.StateRunning:
		return f.running()
	case flowrun.StateCancelling:
		return f.cancelling()
	case flowrun.StatePaused:
		return f.paused()
	}
	return f.final()
}

// message is the text of the flow run's state.
func (f Facts) message() string {
	if f.FlowRun.State == nil {
		return ""
	}
	return f.FlowRun.State.Message
}

func (f Facts) scheduled() answer {
	fr := f.FlowRun
	at := fr.Due()
	switch {
	case fr.StateName == flowrun.AwaitingCapacity:
		return answer{cause: "It waits for capacity at Cloud Run: " + f.message(), next: "It is tried again at its time, " + clock(at) + ".", at: at, do: "If many wait, ask for more quota or add a region: docs/limits.md."}
	case fr.StateName == "AwaitingRetry" && fr.RetryType() == "in_process" && f.alive():
		return answer{cause: "The flow failed and tries again itself, in its container, which waits until then.", next: "The container goes on at " + clock(at) + ".", at: at}
	case fr.StateName == "AwaitingRetry":
		return answer{cause: "It is to be tried again: " + f.message(), next: "It is launched anew at " + clock(at) + ".", at: at}
	case f.alive():
		return answer{cause: "It is to be launched anew, and its earlier execution is still alive.", next: "The earlier execution is stopped first, then the flow run is launched."}
	case fr.StateName == "AwaitingConcurrencySlot":
		return f.slot(at)
	case at.After(f.Now.Add(f.Setting.LookAhead)):
		return answer{cause: fmt.Sprintf("It is due at %s, in %s.", clock(at), rounded(at.Sub(f.Now))), next: fmt.Sprintf("A timer is set %s before.", rounded(f.Setting.LookAhead)), at: at}
	case at.After(f.Now):
		return answer{cause: fmt.Sprintf("It is due at %s, in %s.", clock(at), rounded(at.Sub(f.Now))), next: "Its timer launches it then.", at: at}
	}
	if a, waits := f.limited(); waits {
		return a
	}
	a := answer{
		cause: fmt.Sprintf("It is due since %s, and nothing keeps it from starting.", clock(at)),
		next:  "The sweep has it dispatched " + sweep + ".",
	}
	if f.Now.Sub(at) > 2*time.Minute {
		a.do = "That is long: the dispatcher or the reconciler does not run, or fails. Read their logs, and `pushpool doctor`."
	}
	return a
}

// slot explains AwaitingConcurrencySlot.
func (f Facts) slot(at time.Time) answer {
	limit := "its limit"
	if d := f.Deployment; d != nil {
		switch {
		case d.GlobalConcurrencyLimit != nil:
			limit = fmt.Sprintf("its limit of %d", d.GlobalConcurrencyLimit.Limit)
		case d.ConcurrencyLimit != nil:
			limit = fmt.Sprintf("its limit of %d", *d.ConcurrencyLimit)
		}
	}
	return answer{
		cause: fmt.Sprintf("Its deployment is at %s: %s pending or running.", limit, plural(f.DeploymentBusy, "flow run of it is", "flow runs of it are")),
		next:  "It is launched when one of them ends, or tried again at " + clock(at) + ".", at: at,
		do: "Raise the deployment's concurrency limit, if more may run at once.",
	}
}

// limited explains what of pool and queue keeps the flow run from starting.
func (f Facts) limited() (answer, bool) {
	full := func(limit *int, busy int) bool { return limit != nil && busy >= *limit }
	switch {
	case f.Pool != nil && f.Pool.IsPaused:
		return answer{
			cause: fmt.Sprintf("Its work pool %q is paused.", f.Pool.Name), next: "It is launched within a minute after somebody resumes the work pool.",
			do: "`prefect work-pool resume " + f.Pool.Name + "`, or `pushpool drain --resume` if it was drained.",
		}, true
	case f.Queue != nil && f.Queue.IsPaused:
		return answer{
			cause: fmt.Sprintf("Its work queue %q is paused.", f.Queue.Name), next: "It is launched within a minute after somebody resumes the work queue.",
			do: fmt.Sprintf("`prefect work-queue resume %s --pool %s`", f.Queue.Name, f.FlowRun.WorkPoolName),
		}, true
	case f.Pool != nil && full(f.Pool.ConcurrencyLimit, f.PoolBusy):
		return answer{
			cause: fmt.Sprintf("Its work pool %q is at its limit of %d; %s before it.", f.Pool.Name, *f.Pool.ConcurrencyLimit, plural(f.Ahead, "flow run goes", "flow runs go")),
			next:  "It is launched when a slot comes free, in the order of priority and due time.",
			do:    "Raise the work pool's concurrency limit, if more may run at once.",
		}, true
	case f.Queue != nil && full(f.Queue.ConcurrencyLimit, f.QueueBusy):
		return answer{
			cause: fmt.Sprintf("Its work queue %q is at its limit of %d; %s before it.", f.Queue.Name, *f.Queue.ConcurrencyLimit, plural(f.QueueAhead, "flow run goes", "flow runs go")),
			next:  "It is launched when a slot comes free, in the order of priority and due time.",
			do:    "Raise the work queue's concurrency limit, if more may run at once.",
		}, true
	case f.Pool != nil && f.Pool.ConcurrencyLimit != nil && f.Ahead > 0:
		return answer{
			cause: fmt.Sprintf("%s before it in its work pool, which has a limit of %d.", plural(f.Ahead, "flow run goes", "flow runs go"), *f.Pool.ConcurrencyLimit),
			next:  "It is launched in its turn, in the order of priority and due time.",
		}, true
	}
	return answer{}, false
}

// foreign explains a flow run under way that somebody else claimed.
func (f Facts) foreign() answer {
	return answer{
		cause: "Somebody else claimed it, a worker or another installation: this one writes nothing to it.",
		next:  never + " by this installation",
	}
}

func (f Facts) pending() answer {
	a := f.starting()
	if !f.Claim.Ours || f.FlowRun.State == nil || a.next == ended {
		return a
	}
	a.at = f.FlowRun.State.Timestamp.Add(f.Setting.StartDeadline)
	a.next += fmt.Sprintf(" If the flow has not begun by %s, the sweep stops its launch, which ends as a retry or as CRASHED.", clock(a.at))
	return a
}

func (f Facts) starting() answer {
	switch {
	case !f.Claim.Ours:
		return f.foreign()
	case f.Job != nil && f.Job.Failure != nil:
		return answer{
			cause: "It was launched, and its job cannot start: " + f.Job.Failure.Message(), next: ended,
			do: "Mend what the message names, then run the flow again.",
		}
	case f.Execution != nil && f.Execution.Outcome != nil:
		return answer{cause: "Its container ended before the flow began: " + f.Execution.Outcome.Message(), next: ended}
	case f.Execution != nil && f.Execution.StartTime.IsZero():
		return answer{cause: "It was launched; Cloud Run pulls the image and starts the container.", next: "The flow reports RUNNING when it begins."}
	case f.Execution != nil:
		return answer{cause: "Its container has started; Python and the flow are being loaded.", next: "The flow reports RUNNING when it begins."}
	case f.Job != nil:
		return answer{cause: "Its job was created and is being made ready.", next: "Cloud Run starts the execution by itself."}
	case f.CloudRunError != "":
		return answer{cause: "It was claimed; whether it was launched cannot be seen: " + f.CloudRunError, next: "The sweep looks " + sweep + "."}
	}
	return answer{
		cause: "It was claimed, and its job is not there: the launch is under way or was interrupted.",
		next:  "Whoever holds the lease finishes it, or the sweep resumes it " + sweep + ".",
	}
}

func (f Facts) running() answer {
	switch {
	case !f.Claim.Ours:
		return f.foreign()
	case f.alive():
		return answer{cause: "It runs.", next: "The flow reports its end, and the finalizer records it."}
	case f.Execution != nil && f.Execution.Outcome.Kind == flowrun.Succeeded:
		return answer{
			cause: "Its container exited with code 0 and has not reported a final state.",
			next:  fmt.Sprintf("If it still has not %s after its end, the flow run is reported CRASHED.", rounded(f.Setting.ReportGrace)),
			at:    f.Execution.CompletionTime.Add(f.Setting.ReportGrace),
		}
	case f.Execution != nil:
		return answer{cause: "Its container has ended: " + f.Execution.Outcome.Message(), next: ended}
	case f.CloudRunError != "":
		return answer{cause: "Prefect shows it as running; its execution cannot be read: " + f.CloudRunError, next: "The sweep looks " + sweep + "."}
	}
	return answer{
		cause: "Prefect shows it as running, and its execution is not to be found.",
		next:  fmt.Sprintf("The sweep looks %s, and again %s later at the least; if it is gone both times, the flow run is reported CRASHED.", sweep, rounded(f.Setting.GoneAfter)),
	}
}

func (f Facts) cancelling() answer {
	switch {
	case !f.Claim.Ours:
		return f.foreign()
	case f.alive() && f.Claim.Started && f.Execution.ListensForCancellation():
		a := answer{cause: "It is being cancelled: its flow has a grace to end itself."}
		at := f.Record.CancelRequestedAt
		if at.IsZero() && f.FlowRun.State != nil {
			at = f.FlowRun.State.Timestamp
		}
		a.at = at.Add(f.Setting.CancelGrace)
		a.next = fmt.Sprintf("If it has not by %s, its execution is cancelled.", clock(a.at))
		return a
	case f.alive():
		return answer{cause: "It is being cancelled: its execution is being stopped (SIGTERM, 10 s later SIGKILL).", next: "Once it is gone, the flow run is reported CANCELLED."}
	}
	return answer{cause: "It is being cancelled, and nothing of it is being executed any more.", next: "It is reported CANCELLED, by the sweep at the latest, " + sweep + "."}
}

func (f Facts) paused() answer {
	if f.FlowRun.State != nil && f.FlowRun.State.Details.PauseReschedule {
		return answer{cause: "It is suspended: its container has left on purpose.", next: "When somebody resumes it, it is launched again."}
	}
	return answer{cause: "It is paused: its container waits.", next: "When somebody resumes it, its container goes on."}
}

func (f Facts) final() answer {
	fr := f.FlowRun
	cause := string(fr.StateType) + "."
	if m := f.message(); m != "" {
		cause = string(fr.StateType) + ": " + m
	}
	a := answer{cause: "It ended " + cause, next: never}
	switch {
	case f.alive() && f.toBeStopped():
		a.next = "Its execution is still alive; the sweep stops it " + sweep + "."
		if fr.State != nil {
			a.at = fr.State.Timestamp.Add(f.Setting.CancelGrace)
			a.next = fmt.Sprintf("Its execution is still alive; the sweep stops it within a minute after %s.", clock(a.at))
		}
	case f.alive():
		a.cause += " Its container has not ended: it may store results or clean up."
		a.next = "Its execution ends by itself; the sweep counts it each minute, and never stops it."
		if f.outlived() {
			x := f.Execution.Name
			a.do = fmt.Sprintf("If it hangs: `gcloud run jobs executions cancel %s --region=%s --project=%s`; nothing is written over the flow run's state.", x.Execution, x.Region, x.Project)
		}
	case f.Record.Status == flowrun.StatusLaunched:
		a.next = "The execution's end is recorded by the finalizer, or by the sweep within two minutes."
	case fr.StateType == flowrun.StateCrashed:
		a.do = "Mend what the message names, then `prefect flow-run retry " + f.ID + "`, or ask for a new one."
	}
	return a
}

// rounded prints a duration as people say it.
func rounded(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return d.Round(time.Second).String()
}
