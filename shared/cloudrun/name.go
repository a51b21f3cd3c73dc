package cloudrun

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// JobName is the full name of a job.
type JobName struct{ Project, Region, Job string }

// String returns projects/P/locations/R/jobs/J.
func (n JobName) String() string {
	return fmt.Sprintf("projects/%s/locations/%s/jobs/%s", n.Project, n.Region, n.Job)
}

// Execution returns the name of the execution that the job starts with a token.
func (n JobName) Execution(token string) ExecutionName {
	return ExecutionName{n.Project, n.Region, n.Job, n.Job + "-" + token}
}

// MaxSlots bounds the jobs of launch mode slots in one region: a launch of which the ledger
// knows nothing is looked for in each of them.
const MaxSlots = 100

var slotJob = regexp.MustCompile(`^` + JobPrefix + `slot-[a-z0-9-]+-[0-9]{3}$`)

// SlotJob returns the id of an installation's job number n of launch mode slots. No job that
// is made for one launch has such an id: those end with 13 characters of the launch's id.
func SlotJob(install string, n int) string {
	return fmt.Sprintf("%sslot-%s-%03d", JobPrefix, install, n)
}

// Slot reports whether the job is one of launch mode slots: it runs the executions of many
// flow runs, and must not be deleted for the sake of one.
func (n JobName) Slot() bool { return slotJob.MatchString(n.Job) }

// Launched returns the name of the execution that the job starts for a launch.
func (n JobName) Launched(id flowrun.LaunchID) ExecutionName {
	if n.Slot() {
		return n.Execution(id.Suffix())
	}
	return n.Execution(Token)
}

// JobOf returns the id of the job that a flow run's infrastructure_pid tells of for a launch:
// the job made for it, or the slot whose execution it names.
func JobOf(infrastructurePID string, id flowrun.LaunchID) string {
	if slot := strings.TrimSuffix(infrastructurePID, "-"+id.Suffix()); (JobName{Job: slot}).Slot() {
		return slot
	}
	return infrastructurePID
}

// ExecutionName is the full name of an execution.
type ExecutionName struct{ Project, Region, Job, Execution string }

// JobName returns the name of the execution's job.
func (n ExecutionName) JobName() JobName { return JobName{n.Project, n.Region, n.Job} }

// String returns projects/P/locations/R/jobs/J/executions/E, and "" for the zero name.
func (n ExecutionName) String() string {
	if n.Execution == "" {
		return ""
	}
	return fmt.Sprintf("%s/executions/%s", n.JobName(), n.Execution)
}

// ConsoleURL returns the execution's page in the Cloud Console.
func (n ExecutionName) ConsoleURL() string {
	return fmt.Sprintf("https://console.cloud.google.com/run/jobs/executions/details/%s/%s/tasks?project=%s", n.Region, n.Execution, n.Project)
}

// LogsURL returns the Cloud Console's log query for the execution; it outlives the job. Its time range counts back
// from when it is opened, and is as long as Cloud Logging keeps logs by default.
func (n ExecutionName) LogsURL() string {
	query := fmt.Sprintf("resource.type=\"cloud_run_job\"\nresource.labels.job_name=%q\nlabels.\"run.googleapis.com/execution_name\"=%q", n.Job, n.Execution)
	return "https://console.cloud.google.com/logs/query;query=" + url.QueryEscape(query) + ";timeRange=P30D?project=" + n.Project
}

// Links are the two, as they end a message to the flow's author.
func (n ExecutionName) Links() string {
	return fmt.Sprintf("Logs: %s Execution: %s", n.LogsURL(), n.ConsoleURL())
}

// ParseExecutionName reads what String returns.
func ParseExecutionName(s string) (ExecutionName, error) {
	p := strings.Split(s, "/")
	if len(p) != 8 || p[0] != "projects" || p[2] != "locations" || p[4] != "jobs" || p[6] != "executions" || slices.Contains(p, "") {
		return ExecutionName{}, fmt.Errorf("execution name %q is not projects/P/locations/R/jobs/J/executions/E", s)
	}
	return ExecutionName{Project: p[1], Region: p[3], Job: p[5], Execution: p[7]}, nil
}
