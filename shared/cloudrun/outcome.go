package cloudrun

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// ended is the end of an execution, as one of Cloud Run's two APIs and its audit log tell it.
type ended struct {
	succeeded bool
	code      codes.Code // of the audit entry; OK where there is none
	reason    string     // of the Completed condition: NonZeroExitCode or NON_ZERO_EXIT_CODE
	message   string     // of the Completed condition
	cancelled int        // cancelled tasks
}

var (
	exitCodeWording = regexp.MustCompile(`exit code: (\d+)`)
	signalWording   = regexp.MustCompile(`(?i)(?:terminated on |term(?:ination)? )signal:? (\d+)`)
)

// outcome reads an execution's end. Codes and reasons come before wordings, which drift.
func (e ended) outcome() flowrun.Outcome {
	o := flowrun.Outcome{Text: e.message}
	text := strings.ToLower(e.message)
	reason := strings.ReplaceAll(strings.ToLower(e.reason), "_", "")
	exitCode := number(exitCodeWording, e.message)
	switch {
	case e.succeeded:
		o.Kind = flowrun.Succeeded
	case e.cancelled > 0, reason == "cancelled", reason == "cancelling", strings.Contains(text, "cancelled by user"):
		o.Kind = flowrun.Cancelled
	case reason == "deleted":
		o.Kind = flowrun.Deleted
	case e.code == codes.DeadlineExceeded, strings.Contains(text, "configured timeout"):
		o.Kind = flowrun.TimedOut
	case strings.Contains(text, "memory limit"):
		o.Kind = flowrun.OutOfMemory
	case strings.Contains(text, "secret"):
		o.Kind = flowrun.Secret
	case strings.Contains(text, "image"):
		o.Kind = flowrun.Image
	case signalWording.MatchString(e.message):
		o.Kind = flowrun.Signal
		o.Signal = number(signalWording, e.message)
	case exitCode != 0, reason == "nonzeroexitcode":
		o.Kind, o.ExitCode = flowrun.ExitCode, exitCode
	case strings.Contains(text, "permission"):
		o.Kind = flowrun.Permission
	default:
		o.Kind = flowrun.Platform
	}
	return o
}

// number returns what the wording's first group matches in s, and 0 where it is no exit
// code or signal.
func number(wording *regexp.Regexp, s string) int {
	if m := wording.FindStringSubmatch(s); m != nil {
		if n, err := strconv.ParseUint(m[1], 10, 8); err == nil {
			return int(n)
		}
	}
	return 0
}

// withAttempt refines an outcome by how the task's last attempt ended.
func withAttempt(o flowrun.Outcome, a *runpb.TaskAttemptResult) flowrun.Outcome {
	switch {
	case a.GetTermSignal() != 0:
		o.Kind, o.Signal, o.ExitCode = flowrun.Signal, int(a.GetTermSignal()), 0
	case a.GetExitCode() != 0:
		o.Kind, o.ExitCode = flowrun.ExitCode, int(a.GetExitCode())
	}
	return o
}

// neverStarts reads the Ready condition of a job that cannot start its execution.
func neverStarts(reason, message string) flowrun.Outcome {
	o := flowrun.Outcome{Kind: flowrun.Platform, Text: message}
	r, text := strings.ReplaceAll(strings.ToLower(reason), "_", ""), strings.ToLower(message)
	switch {
	case strings.Contains(r, "secret"), strings.Contains(text, "secret"):
		o.Kind = flowrun.Secret
	case strings.HasPrefix(r, "container"), strings.Contains(text, "image"):
		o.Kind = flowrun.Image
	case strings.Contains(text, "permission"):
		o.Kind = flowrun.Permission
	}
	return o
}

func job(j *runpb.Job) Job {
	p := strings.Split(j.GetName(), "/")
	out := Job{Labels: j.GetLabels(), CreateTime: at(j.GetCreateTime()), Reconciling: j.GetReconciling()}
	if len(p) == 6 {
		out.Name = JobName{p[1], p[3], p[5]}
	}
	if t := j.GetTerminalCondition(); t.GetState() == runpb.Condition_CONDITION_FAILED {
		reason := t.GetReason().String()
		if t.GetReason() == runpb.Condition_COMMON_REASON_UNDEFINED {
			reason = ""
		}
		o := neverStarts(reason, t.GetMessage())
		out.Failure = &o
	}
	return out
}

func execution(x *runpb.Execution) Execution {
	name, _ := ParseExecutionName(x.GetName())
	out := Execution{
		Name: name, Labels: x.GetLabels(),
		CreateTime: at(x.GetCreateTime()), StartTime: at(x.GetStartTime()), CompletionTime: at(x.GetCompletionTime()),
	}
	if cs := x.GetTemplate().GetContainers(); len(cs) > 0 {
		out.Command = append(append([]string{}, cs[0].GetCommand()...), cs[0].GetArgs()...)
	}
	if x.GetCompletionTime() == nil {
		return out
	}
	e := ended{cancelled: int(x.GetCancelledCount())}
	for _, c := range x.GetConditions() {
		if c.GetType() == "Completed" {
			e.succeeded = c.GetState() == runpb.Condition_CONDITION_SUCCEEDED
			e.message = c.GetMessage()
			if r := c.GetExecutionReason(); r != runpb.Condition_EXECUTION_REASON_UNDEFINED {
				e.reason = r.String()
			}
		}
	}
	o := e.outcome()
	out.Outcome = &o
	return out
}

func at(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
