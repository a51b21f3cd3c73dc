package cloudrun

import (
	"path"
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
	code      codes.Code // of the audit entry or of a task's last attempt; OK where there is none
	reason    string     // of the Completed condition: NonZeroExitCode or NON_ZERO_EXIT_CODE
	message   string     // of the Completed condition
	cancelled int        // cancelled tasks
}

// Wordings that were seen: "exit code: 7", "exit code 7", "exit 7", "exit(7)"; "terminated on
// signal 9", and "A signal terminated the container." without its number.
var (
	exitCodeWording = regexp.MustCompile(`(?i)\bexit(?:ed with)?(?: code| status)?:?[ (](\d+)`)
	signalWording   = regexp.MustCompile(`(?i)\bsignal:? (\d+)`)
	signalled       = regexp.MustCompile(`(?i)\bsignal:? \d+|terminated (?:on|by) (?:a )?signal|signal terminated`)
	taskWording     = regexp.MustCompile(`^Task (\S+-task\d+) `)
	// What a message is about, by names that hold what a flow run is called, such as image-resize.
	subject = regexp.MustCompile(`^Task \S+-task\d+|^Execution \S+-\S+|\b` + JobPrefix + `[a-z0-9-]+`)
)

// wording is a message in lower case, without the names of jobs, executions and tasks.
func wording(message string) string { return strings.ToLower(subject.ReplaceAllString(message, "")) }

// outcome reads an execution's end. Codes and reasons come before wordings, which drift; a
// wording that is not known is kept for people.
func (e ended) outcome() flowrun.Outcome {
	o := flowrun.Outcome{Text: e.message}
	text := wording(e.message)
	reason := plain(e.reason)
	exitCode := number(exitCodeWording, text)
	switch {
	case e.succeeded:
		o.Kind = flowrun.Succeeded
	case reason == "deleted":
		o.Kind = flowrun.Deleted
	case e.cancelled > 0, reason == "cancelled", reason == "cancelling", e.code == codes.Canceled, strings.Contains(text, "cancelled by user"):
		o.Kind = flowrun.Cancelled
	case e.code == codes.DeadlineExceeded, strings.Contains(text, "configured timeout"):
		o.Kind = flowrun.TimedOut
	case strings.Contains(text, "memory limit"), strings.Contains(text, "out of memory"):
		o.Kind = flowrun.OutOfMemory
	case refusal(text) == flowrun.Secret, refusal(text) == flowrun.Image:
		o.Kind = refusal(text)
	case signalled.MatchString(text):
		o.Kind, o.Signal = flowrun.Signal, number(signalWording, text)
	case exitCode != 0, reason == "nonzeroexitcode":
		o.Kind, o.ExitCode = flowrun.ExitCode, exitCode
	case e.code == codes.PermissionDenied:
		o.Kind = flowrun.Permission
	default:
		o.Kind = refusal(text)
	}
	return o
}

// refusal tells by its lower-case wording why something was not let start. Whoever may not
// read a secret or an image lacks a permission, too: those come first.
func refusal(text string) flowrun.OutcomeKind {
	switch {
	case strings.Contains(text, "secret"):
		return flowrun.Secret
	case strings.Contains(text, "image"):
		return flowrun.Image
	case strings.Contains(text, "permission"), strings.Contains(text, "service account"):
		return flowrun.Permission
	}
	return flowrun.Platform
}

// plain makes the two APIs' spellings of a reason one: NON_ZERO_EXIT_CODE, NonZeroExitCode.
func plain(reason string) string { return strings.ReplaceAll(strings.ToLower(reason), "_", "") }

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

// withAttempt refines an outcome by how the task's last attempt ended. A container out of memory or of
// time is killed: its signal, or the exit code that stands for it, tells less than the status.
func withAttempt(o flowrun.Outcome, a *runpb.TaskAttemptResult) flowrun.Outcome {
	st := a.GetStatus()
	told := ended{code: codes.Code(st.GetCode()), message: st.GetMessage()}.outcome().Kind
	switch {
	case told == flowrun.OutOfMemory, told == flowrun.TimedOut:
		o.Kind, o.Signal, o.ExitCode = told, 0, 0
	case a.GetTermSignal() != 0:
		o.Kind, o.Signal, o.ExitCode = flowrun.Signal, int(a.GetTermSignal()), 0
	case a.GetExitCode() != 0:
		o.Kind, o.ExitCode = flowrun.ExitCode, int(a.GetExitCode())
	case o.Kind == flowrun.Platform && st.GetCode() != 0:
		o.Kind = told
	}
	if !strings.Contains(o.Text, st.GetMessage()) {
		o.Text = strings.TrimSpace(o.Text + " " + st.GetMessage())
	}
	return o
}

// neverStarts reads the Ready condition of a job that cannot start its execution.
func neverStarts(reason, message string) flowrun.Outcome {
	o := flowrun.Outcome{Kind: refusal(wording(message)), Text: message}
	switch r := plain(reason); {
	case strings.HasPrefix(r, "secret"):
		o.Kind = flowrun.Secret
	case strings.HasPrefix(r, "container"):
		o.Kind = flowrun.Image
	case strings.HasPrefix(r, "encryptionkey"):
		o.Kind = flowrun.Permission
	}
	return o
}

func job(j *runpb.Job) Job {
	p := strings.Split(j.GetName(), "/")
	out := Job{Labels: j.GetLabels(), Etag: j.GetEtag(), CreateTime: at(j.GetCreateTime()), Reconciling: j.GetReconciling()}
	if len(p) == 6 {
		out.Name = JobName{p[1], p[3], p[5]}
	}
	out.Keep = j.GetAnnotations()[annotationKeep] == "true"
	if x := j.GetLatestCreatedExecution(); x != nil {
		out.Latest.Execution, out.Latest.Completed = path.Base(x.GetName()), at(x.GetCompletionTime())
	}
	if out.Reconciling {
		out.Waiting = j.GetTerminalCondition().GetMessage()
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
		Resources: resources(x.GetTemplate()),
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

// Vague reports whether the last attempt of the execution's task tells more than the outcome does.
func Vague(o flowrun.Outcome) bool {
	return o.Kind == flowrun.Platform || o.Kind == flowrun.ExitCode && o.ExitCode == 0 || o.Kind == flowrun.Signal && o.Signal == 0
}

func at(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
