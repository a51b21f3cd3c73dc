package cloudrun

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Entry is what the audit log tells of an execution's end.
type Entry struct {
	Execution ExecutionName
	// FlowRunID and LaunchID come from our labels; empty where the entry does not hold them.
	FlowRunID string
	LaunchID  flowrun.LaunchID
	Outcome   flowrun.Outcome
	// Complete is false where the entry was split or lacks the execution: read that from Cloud Run.
	// Outcome is then as much as the entry's status tells, its Kind empty where that is nothing.
	Complete bool
	// Started and Completed are the execution's; zero where the entry does not tell.
	Started, Completed time.Time
	// Resources of the execution's task; zero where the entry does not tell.
	Resources flowrun.Resources
	// Retries are the launch's, by our label; nil where the entry does not hold it.
	Retries  *flowrun.Retries
	InsertID string
}

// ErrNotCompletion: a LogEntry that does not tell the end of an execution.
var ErrNotCompletion = errors.New("not the completion entry of a Cloud Run execution")

// logEntry is the part of a LogEntry that is read. The response is the v1 API's Execution.
type logEntry struct {
	InsertID     string            `json:"insertId"`
	Labels       map[string]string `json:"labels"`
	LogName      string            `json:"logName"`
	Severity     string            `json:"severity"`
	Split        json.RawMessage   `json:"split"`
	ProtoPayload struct {
		MethodName   string `json:"methodName"`
		ResourceName string `json:"resourceName"`
		ServiceName  string `json:"serviceName"`
		Status       struct {
			Code    float64 `json:"code"` // as in a protobuf Struct; codes.Code refuses what it does not know
			Message string  `json:"message"`
		} `json:"status"`
		Response *v1Resource `json:"response"`
	} `json:"protoPayload"`
	Resource struct {
		Type   string            `json:"type"`
		Labels map[string]string `json:"labels"`
	} `json:"resource"`
}

// v1Resource is a v1 Execution, or a v1 Job, as far as it is read.
type v1Resource struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name        string            `json:"name"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Env       []struct{ Name, Value string } `json:"env"`
					Resources struct {
						Limits map[string]string `json:"limits"`
					} `json:"resources"`
				} `json:"containers"`
			} `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
	Status struct {
		CompletionTime time.Time `json:"completionTime"`
		StartTime      time.Time `json:"startTime"`
		CancelledCount float64   `json:"cancelledCount"`
		Conditions     []struct{ Type, Status, Reason, Message string }
	} `json:"status"`
}

const (
	methodCompletion = "/Jobs.RunJob"
	methodCreation   = "/Jobs.CreateJob" // at ERROR: the job can never start its execution
	methodUpdate     = "/Jobs.UpdateJob" // the same of a slot
)

// Who created the execution, and who changed it last: where these differ, an execution that was
// cancelled was so by the latter.
const (
	annotationCreator  = "run.googleapis.com/creator"
	annotationModifier = "run.googleapis.com/lastModifier"
)

// ReadEntry reads a LogEntry of Cloud Run's system event audit log. The error wraps
// ErrNotCompletion where the entry is about something else, and says what.
//
// The shape is taken from entries of live projects; it is Cloud Run's v1 Execution, zero
// counters left out, no status code on success.
func ReadEntry(data []byte) (Entry, error) {
	var l logEntry
	if err := json.Unmarshal(data, &l); err != nil {
		return Entry{}, fmt.Errorf("read LogEntry: %w", err)
	}
	p := l.ProtoPayload
	not := func(format string, args ...any) (Entry, error) {
		return Entry{}, fmt.Errorf("%w: %s", ErrNotCompletion, fmt.Sprintf(format, args...))
	}
	if l.LogName != "" && !strings.HasSuffix(l.LogName, "cloudaudit.googleapis.com%2Fsystem_event") {
		return not("logName is %q, not the system event audit log", l.LogName)
	}
	if p.ServiceName != "run.googleapis.com" {
		return not("serviceName is %q, not run.googleapis.com", p.ServiceName)
	}
	neverStarted := (p.MethodName == methodCreation || p.MethodName == methodUpdate) && (l.Severity == "ERROR" || p.Status.Code != 0)
	if p.MethodName != methodCompletion && !neverStarted {
		return not("methodName is %q", p.MethodName)
	}
	e := Entry{InsertID: l.InsertID, Complete: p.Response != nil && len(l.Split) == 0}
	var labels map[string]string
	if p.Response != nil {
		labels = p.Response.Metadata.Labels
	}
	e.Execution = ExecutionName{
		Project: first(l.Resource.Labels["project_id"], segment(p.ResourceName, "namespaces")),
		Region:  first(l.Resource.Labels["location"], labels["cloud.googleapis.com/location"]),
		Job:     first(l.Resource.Labels["job_name"], labels["run.googleapis.com/job"]),
	}
	e.FlowRunID, e.LaunchID = labels[LabelFlowRun], flowrun.LaunchID(labels[LabelLaunch])
	e.Retries = flowrun.ParseRetries(labels[LabelRetries])
	if neverStarted {
		return neverStartedEntry(e, l)
	}
	e.Execution.Execution = first(l.Labels["run.googleapis.com/execution_name"], segment(p.ResourceName, "executions"))
	if e.Execution.Execution == "" && p.Response != nil {
		e.Execution.Execution = p.Response.Metadata.Name
	}
	if e.Execution.Execution == "" || e.Execution.Job == "" || e.Execution.Region == "" {
		return not("it names no execution: labels, resourceName and response lack it")
	}
	end := ended{code: codes.Code(p.Status.Code), message: p.Status.Message}
	if p.Response == nil {
		if end.message != "" {
			end.succeeded = end.code == codes.OK && strings.Contains(end.message, "completed successfully")
			e.Outcome = end.outcome()
		}
		return e, nil
	}
	for _, c := range p.Response.Spec.Template.Spec.Containers {
		e.Resources = plus(e.Resources, c.Resources.Limits)
		for _, v := range c.Env {
			if v.Name == "PREFECT__FLOW_RUN_ID" {
				e.FlowRunID = first(e.FlowRunID, v.Value)
			}
		}
	}
	st := p.Response.Status
	e.Started, e.Completed = st.StartTime, st.CompletionTime
	end.cancelled = int(st.CancelledCount)
	done := false
	for _, c := range st.Conditions {
		if c.Type == "Completed" && (c.Status == "True" || c.Status == "False") {
			done = true
			end.succeeded, end.reason, end.message = c.Status == "True", c.Reason, first(c.Message, end.message)
		}
	}
	if !done || st.CompletionTime.IsZero() {
		if e.Complete {
			return not("execution %s has not completed: no condition Completed that is True or False, or no completionTime", e.Execution.Execution)
		}
		return e, nil
	}
	e.Outcome = end.outcome()
	if a := p.Response.Metadata.Annotations; a[annotationModifier] != a[annotationCreator] {
		e.Outcome.By = a[annotationModifier]
	}
	return e, nil
}

// neverStartedEntry reads the entry of a job that was created and can never start.
func neverStartedEntry(e Entry, l logEntry) (Entry, error) {
	if e.Execution.Job == "" {
		e.Execution.Job = segment(l.ProtoPayload.ResourceName, "jobs")
	}
	if e.Execution.Job == "" || e.Execution.Region == "" {
		return Entry{}, fmt.Errorf("%w: it names no job", ErrNotCompletion)
	}
	e.Execution = e.Execution.JobName().Launched(e.LaunchID)
	reason, message := "", l.ProtoPayload.Status.Message
	if r := l.ProtoPayload.Response; r != nil {
		for _, c := range r.Status.Conditions {
			if c.Type == "Ready" && c.Status == "False" {
				reason, message = c.Reason, c.Message
			}
		}
	}
	e.Outcome = neverStarts(reason, message)
	return e, nil
}

// segment returns what follows the collection in a resource name: segment("a/b/c/d", "c") is "d".
func segment(name, collection string) string {
	if _, rest, found := strings.Cut("/"+name, "/"+collection+"/"); found {
		s, _, _ := strings.Cut(rest, "/")
		return s
	}
	return ""
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
