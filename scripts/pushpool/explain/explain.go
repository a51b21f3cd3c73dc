package explain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Explanation is what is said of a flow run.
type Explanation struct {
	FlowRunID  string `json:"flow_run_id"`
	Name       string `json:"name"`
	WorkPool   string `json:"work_pool"`
	Deployment string `json:"deployment"`

	// Cause says where the flow run stands and why; Next what happens by itself, and NextAt
	// when, if that is known; Do what a person can do, empty if nothing is to be done.
	Cause  string     `json:"cause"`
	Next   string     `json:"next"`
	NextAt *time.Time `json:"next_at,omitempty"`
	Do     string     `json:"do,omitempty"`

	Records Standing `json:"records"`
	// Disagree says in which way the three records differ; empty where they agree.
	Disagree string `json:"disagree,omitempty"`

	Timeline []Moment `json:"timeline"`
	Links    Links    `json:"links"`
}

// Standing is the three records, a line each.
type Standing struct {
	Prefect  string `json:"prefect"`
	Ledger   string `json:"ledger"`
	CloudRun string `json:"cloud_run"`
}

// Moment is a step on the timeline.
type Moment struct {
	At     time.Time `json:"at"`
	Source string    `json:"source"` // prefect, ledger or cloud_run
	What   string    `json:"what"`
}

// Links lead to the flow run's pages. Those of Google Cloud are empty before the launch.
type Links struct {
	Prefect   string `json:"prefect"`
	Execution string `json:"execution,omitempty"`
	Logs      string `json:"logs,omitempty"`
	// LogQuery shows in Cloud Logging everything of the flow run: the functions and the container.
	LogQuery string `json:"log_query"`
}

// Explain says of the facts what they mean. It is pure.
func Explain(f Facts) Explanation {
	e := Explanation{FlowRunID: f.ID, WorkPool: f.Record.WorkPool, Records: f.records(), Timeline: f.timeline(), Links: f.links()}
	if f.FlowRun != nil {
		e.Name, e.WorkPool = f.FlowRun.Name, f.FlowRun.WorkPoolName
	}
	if f.Deployment != nil {
		e.Deployment = f.Deployment.Name
	}
	a := f.answer()
	e.Cause, e.Next, e.Do = a.cause, a.next, a.do
	if !a.at.IsZero() {
		e.NextAt = &a.at
	}
	e.Disagree = f.disagree()
	return e
}

func (f Facts) records() Standing {
	r := Standing{Prefect: "has no such flow run", Ledger: "has no record", CloudRun: "has neither job nor execution"}
	if fr := f.FlowRun; fr != nil {
		r.Prefect = string(fr.StateType)
		if !strings.EqualFold(fr.StateName, string(fr.StateType)) {
			r.Prefect += " " + fr.StateName
		}
		if fr.State != nil {
			r.Prefect += " since " + clock(fr.State.Timestamp)
			if fr.State.Message != "" {
				r.Prefect += ": " + fr.State.Message
			}
		}
	}
	if f.Record.Status != flowrun.StatusNone {
		r.Ledger = fmt.Sprintf("%s, launch %s", f.Record.Status, f.Record.LaunchID)
		if f.Record.Outcome != "" {
			r.Ledger += ", outcome " + string(f.Record.Outcome)
		}
		if f.Record.Unreported() {
			r.Ledger += ", not yet told to Prefect"
		}
		if f.Record.Leased("", f.Now) {
			r.Ledger += ", held by " + f.Record.LeaseHolder + " until " + clock(f.Record.LeaseUntil)
		}
	}
	if f.LedgerError != "" {
		r.Ledger = "cannot be read: " + f.LedgerError
	}
	switch {
	case f.CloudRunError != "":
		r.CloudRun = "cannot be read: " + f.CloudRunError
	case f.Execution != nil && f.Execution.Outcome != nil:
		r.CloudRun = fmt.Sprintf("execution %s ended %s: %s", f.Execution.Name.Execution, clock(f.Execution.CompletionTime), f.Execution.Outcome.Kind)
	case f.Execution != nil && f.Execution.StartTime.IsZero():
		r.CloudRun = fmt.Sprintf("execution %s is being started since %s", f.Execution.Name.Execution, clock(f.Execution.CreateTime))
	case f.Execution != nil:
		r.CloudRun = fmt.Sprintf("execution %s is alive since %s", f.Execution.Name.Execution, clock(f.Execution.StartTime))
	case f.Job != nil && f.Job.Failure != nil:
		r.CloudRun = fmt.Sprintf("job %s cannot start its execution: %s", f.Job.Name.Job, f.Job.Failure.Text)
	case f.Job != nil && f.Job.Reconciling:
		r.CloudRun = fmt.Sprintf("job %s is being made ready since %s", f.Job.Name.Job, clock(f.Job.CreateTime))
	case f.Job != nil:
		r.CloudRun = fmt.Sprintf("job %s is ready and has no execution", f.Job.Name.Job)
	}
	return r
}

// disagree says in which way Prefect, ledger and Cloud Run differ.
func (f Facts) disagree() string {
	if f.FlowRun == nil {
		if f.alive() {
			return "Prefect has no such flow run, Cloud Run executes it"
		}
		return ""
	}
	state := f.FlowRun.StateType
	underWay := state == flowrun.StatePending || state == flowrun.StateRunning || state == flowrun.StateCancelling
	switch {
	case f.Claim.Ours && f.LedgerError == "" && f.Record.Status == flowrun.StatusNone && underWay:
		return "Prefect says that this installation claimed it, the ledger does not know it: the ledger was lost, or its record"
	case f.Claim.Ours && f.Record.Status != flowrun.StatusNone && f.Record.LaunchID != f.Claim.LaunchID && underWay:
		return "the ledger knows another launch than Prefect does"
	case f.Claim.Ours && underWay && f.ended():
		return "the execution has ended, Prefect does not say so"
	case f.Claim.Ours && state == flowrun.StateRunning && f.Execution == nil && f.CloudRunError == "":
		return "Prefect says that it runs, Cloud Run does not have its execution"
	case state.Terminal() && f.alive() && (f.toBeStopped() || f.outlived()):
		return "Prefect says that it ended, its execution is alive"
	case f.Record.Unreported():
		return "the ledger has a verdict that Prefect has not been told"
	}
	return ""
}

// alive reports whether an execution of the flow run is under way.
func (f Facts) alive() bool { return f.Execution != nil && f.Execution.Outcome == nil }

// toBeStopped reports whether the flow run ended in a way that its execution may not outlive.
func (f Facts) toBeStopped() bool {
	return f.FlowRun.StateType == flowrun.StateCrashed || f.FlowRun.StateType == flowrun.StateCancelled
}

// outlived reports whether an execution is alive although the flow run has been as it is for
// longer than the grace.
func (f Facts) outlived() bool {
	s := f.FlowRun.State
	return f.alive() && s != nil && !f.Now.Before(s.Timestamp.Add(f.Setting.CancelGrace))
}

// ended reports whether the flow run's execution ended, or will never be.
func (f Facts) ended() bool {
	return f.Execution != nil && f.Execution.Outcome != nil || f.Job != nil && f.Job.Failure != nil
}

func (f Facts) links() Links {
	l := Links{
		Prefect:  f.Setting.UI + "/runs/flow-run/" + f.ID,
		LogQuery: fmt.Sprintf(`labels."%s"="%s"`, cloudrun.LabelFlowRun, f.ID),
	}
	names := f.executions()
	if f.Execution != nil {
		names = []cloudrun.ExecutionName{f.Execution.Name}
	}
	if notLaunched := f.Record.Status != flowrun.StatusNone && f.Record.LaunchedAt.IsZero(); f.Execution == nil && notLaunched {
		return l
	}
	if len(names) == 1 {
		l.Execution, l.Logs = names[0].ConsoleURL(), names[0].LogsURL()
	}
	return l
}

func (f Facts) timeline() []Moment {
	moments := []Moment{}
	add := func(at time.Time, source, format string, args ...any) {
		if !at.IsZero() {
			moments = append(moments, Moment{at.UTC(), source, fmt.Sprintf(format, args...)})
		}
	}
	for _, s := range f.States {
		add(s.Timestamp, "prefect", "%s", describe(s))
	}
	for _, l := range append([]flowrun.Launch{f.Record.Launch}, f.Record.Previous...) {
		if l.Status == flowrun.StatusNone {
			continue
		}
		id := string(l.LaunchID)[:min(8, len(l.LaunchID))]
		add(l.ClaimedAt, "ledger", "launch %s claimed", id)
		add(l.LaunchedAt, "ledger", "launch %s: job %s created in %s", id, l.JobName, l.Region)
		add(l.CancelRequestedAt, "ledger", "launch %s: cancellation seen", id)
		add(l.MissingSince, "ledger", "launch %s: execution not found", id)
		if l.Status.Over() {
			verdict := string(l.Outcome)
			if l.Outcome == "" {
				verdict = strings.ToLower(string(l.Status)) + ", " + l.Reason
			}
			add(l.FinishedAt, "ledger", "launch %s over: %s", id, verdict)
		}
		if l.Report != nil {
			add(l.ReportedAt, "ledger", "launch %s: Prefect told %s", id, l.Report.Type)
		}
	}
	if x := f.Execution; x != nil {
		add(x.CreateTime, "cloud_run", "execution %s created", x.Name.Execution)
		add(x.StartTime, "cloud_run", "execution %s started", x.Name.Execution)
		if x.Outcome != nil {
			add(x.CompletionTime, "cloud_run", "execution %s ended: %s", x.Name.Execution, x.Outcome.Kind)
		}
	}
	if f.Job != nil {
		add(f.Job.CreateTime, "cloud_run", "job %s created", f.Job.Name.Job)
	}
	slices.SortStableFunc(moments, func(a, b Moment) int { return a.At.Compare(b.At) })
	return moments
}

func describe(s prefect.State) string {
	text := string(s.Type)
	if !strings.EqualFold(s.Name, string(s.Type)) {
		text += " " + s.Name
	}
	if s.Type == flowrun.StateScheduled && s.Details.ScheduledTime != nil && s.Details.ScheduledTime.Sub(s.Timestamp) > time.Second {
		text += " for " + clock(*s.Details.ScheduledTime)
	}
	if s.Message != "" {
		text += ": " + s.Message
	}
	return text
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }
