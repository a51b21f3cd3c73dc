package prefect

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// MaxPage is the most objects that one call returns.
const MaxPage = 200

// FlowRun is a flow run as Prefect gives it. Numbers in its maps are json.Number.
type FlowRun struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	FlowID         string `json:"flow_id"`
	FlowVersion    string `json:"flow_version"`
	DeploymentID   string `json:"deployment_id"` // empty: none
	WorkPoolID     string `json:"work_pool_id"`
	WorkPoolName   string `json:"work_pool_name"`
	WorkQueueID    string `json:"work_queue_id"`
	WorkQueueName  string `json:"work_queue_name"`
	IdempotencyKey string `json:"idempotency_key"`

	StateID   string    `json:"state_id"`
	StateType StateType `json:"state_type"`
	StateName string    `json:"state_name"`
	// State is nil in what ScheduledFlowRuns returns.
	State *State `json:"state"`

	ExpectedStartTime *time.Time `json:"expected_start_time"`
	// NextScheduledStartTime is set while the flow run is SCHEDULED.
	NextScheduledStartTime *time.Time `json:"next_scheduled_start_time"`
	StartTime              *time.Time `json:"start_time"`
	EndTime                *time.Time `json:"end_time"`
	Created                time.Time  `json:"created"`
	Updated                time.Time  `json:"updated"`

	Parameters   map[string]any  `json:"parameters"`
	JobVariables json.RawMessage `json:"job_variables"` // as JSON, like a pool's template
	// EmpiricalPolicy is kept as read, so that UpdateFlowRun can write it back with one field changed.
	EmpiricalPolicy map[string]any `json:"empirical_policy"`
	Tags            []string       `json:"tags"`
	Labels          map[string]any `json:"labels"` // 3.x
	// InfrastructurePID is what a launcher wrote there. Prefect never clears it.
	InfrastructurePID string `json:"infrastructure_pid"`
	ParentTaskRunID   string `json:"parent_task_run_id"`
	AutoScheduled     bool   `json:"auto_scheduled"`
	RunCount          int    `json:"run_count"`
}

// RetryInProcess is the retry type of a flow run that its own container runs again.
const RetryInProcess = "in_process"

// RetryType tells who runs the flow run again: "in_process" the container that ran it,
// "reschedule" a launcher, "" nobody said.
func (f FlowRun) RetryType() string {
	t, _ := f.EmpiricalPolicy["retry_type"].(string)
	return t
}

// Due returns when the flow run is to start, or was; zero where Prefect does not say.
func (f FlowRun) Due() time.Time {
	if f.NextScheduledStartTime != nil {
		return *f.NextScheduledStartTime
	}
	if f.ExpectedStartTime != nil {
		return *f.ExpectedStartTime
	}
	return time.Time{}
}

// FlowRun reads a flow run.
func (c *Client) FlowRun(ctx context.Context, id string) (FlowRun, error) {
	var f FlowRun
	r, err := byID("read flow run "+id, "flow_runs", id)
	if err == nil {
		_, err = c.do(ctx, r, &f)
	}
	return f, err
}

// LabelTraceparent is the label in which Prefect 3 keeps the trace that a flow run is part of, as
// a traceparent header (https://github.com/PrefectHQ/prefect/blob/main/src/prefect/telemetry/run_telemetry.py).
const LabelTraceparent = "__OTEL_TRACEPARENT"

// UpdateFlowRun changes the fields given, named as in the API: infrastructure_pid, name, tags,
// parameters, empirical_policy, and, while it is SCHEDULED, job_variables.
func (c *Client) UpdateFlowRun(ctx context.Context, id string, fields map[string]any) error {
	r, err := byID("update flow run "+id, "flow_runs", id)
	if err != nil {
		return err
	}
	r.method, r.body = http.MethodPatch, fields
	_, err = c.do(ctx, r, nil)
	return err
}

// NewFlowRun is what a flow run is created with. All of it may be left out.
type NewFlowRun struct {
	Name         string
	Parameters   map[string]any // over the deployment's
	JobVariables map[string]any
	Tags         []string // beside the deployment's
	// Labels are left out where the server has none, as of 2.20.
	Labels map[string]any
	// IdempotencyKey: there is one flow run for a flow and a key, for ever.
	IdempotencyKey string
	WorkQueue      string // the deployment's, if empty; created if it does not exist
	// ScheduledTime is when it is to start; nil means now.
	ScheduledTime *time.Time
}

// CreateFlowRun creates a flow run of a deployment. created is false where one with the same
// idempotency key existed; it is returned then. Without a key a call that may have been carried out
// is not made again (Unclear).
func (c *Client) CreateFlowRun(ctx context.Context, deploymentID string, n NewFlowRun) (fr FlowRun, created bool, err error) {
	r, err := byID("create a flow run of deployment "+deploymentID, "deployments", deploymentID)
	if err != nil {
		return fr, false, err
	}
	r.method, r.path, r.once = http.MethodPost, r.path+"/create_flow_run", n.IdempotencyKey == ""
	body := map[string]any{}
	set := func(key string, value any, isSet bool) {
		if isSet {
			body[key] = value
		}
	}
	set("name", n.Name, n.Name != "")
	set("parameters", n.Parameters, n.Parameters != nil)
	set("job_variables", n.JobVariables, n.JobVariables != nil)
	set("tags", n.Tags, n.Tags != nil)
	set("idempotency_key", n.IdempotencyKey, n.IdempotencyKey != "")
	set("work_queue_name", n.WorkQueue, n.WorkQueue != "")
	set("state", Proposal{Type: "SCHEDULED", ScheduledTime: n.ScheduledTime}.wire(), n.ScheduledTime != nil)
	set("labels", n.Labels, n.Labels != nil)
	r.body = body
	status, err := c.do(ctx, r, &fr)
	if n.Labels != nil && err != nil && flowrun.FaultOf(err) == flowrun.Permanent {
		delete(body, "labels")
		status, err = c.do(ctx, r, &fr)
	}
	return fr, status == http.StatusCreated, err
}

// ScheduledFlowRuns returns the flow runs of a work pool that are due before a time and may start
// as far as limits, pauses and priorities of the pool and its queues go, the most urgent first. It
// does not claim them: others may be told the same. limit is MaxPage at most. Prefect leaves out
// those that their own container will run again, and takes the call as a sign that the pool's queues
// are served.
func (c *Client) ScheduledFlowRuns(ctx context.Context, pool string, before time.Time, limit int) ([]FlowRun, error) {
	r := request{
		act: "read the scheduled flow runs of work pool " + pool, method: http.MethodPost,
		path: poolPath(pool) + "/get_scheduled_flow_runs",
		body: map[string]any{"scheduled_before": before.UTC(), "limit": min(limit, MaxPage)},
	}
	var answer []struct {
		FlowRun FlowRun `json:"flow_run"`
	}
	if _, err := c.do(ctx, r, &answer); err != nil {
		return nil, err
	}
	flowRuns := make([]FlowRun, len(answer))
	for i, a := range answer {
		flowRuns[i] = a.FlowRun
		flowRuns[i].WorkPoolName = pool // which the server leaves out here
	}
	return flowRuns, nil
}

// Filter selects flow runs; what is not set does not restrict.
type Filter struct {
	IDs           []string
	WorkPools     []string // names
	DeploymentIDs []string
	// IdempotencyKeys are those that flow runs were created with.
	IdempotencyKeys []string
	StateTypes      []StateType
	// ScheduledBefore and ScheduledFrom are about NextScheduledStartTime, which only SCHEDULED
	// flow runs have. Both times are themselves within.
	ScheduledBefore, ScheduledFrom time.Time
	// Limit is MaxPage at most, and if 0. Offset is of little use while flow runs change:
	// rather ask again from the last time seen.
	Limit, Offset int
	Sort          Sort
}

// Sort is an order of flow runs.
type Sort string

// The orders in use; the first is the default.
const (
	SoonestFirst Sort = "NEXT_SCHEDULED_START_TIME_ASC"
	NewestFirst  Sort = "ID_DESC" // by id, which tells the age on 3.x only
	OldestFirst  Sort = "EXPECTED_START_TIME_ASC"
)

// FlowRuns returns the flow runs that match, MaxPage at most.
func (c *Client) FlowRuns(ctx context.Context, f Filter) ([]FlowRun, error) {
	r := request{act: f.act(), method: http.MethodPost, path: "/flow_runs/filter", body: f.wire()}
	var flowRuns []FlowRun
	_, err := c.do(ctx, r, &flowRuns)
	return flowRuns, err
}

// maxFlowRuns bounds a list, so that a server which ignores the offset is not asked for ever.
const maxFlowRuns = 100_000

// EachFlowRun goes through the flow runs that match, by as many calls of list, which is FlowRuns,
// as it takes. It yields each once: pages overlap when flow runs change between them. The first
// error is the last that it yields; it is Permanent where there are more than 100,000.
func EachFlowRun(ctx context.Context, list func(context.Context, Filter) ([]FlowRun, error), f Filter) iter.Seq2[FlowRun, error] {
	return func(yield func(FlowRun, error) bool) {
		seen := map[string]bool{}
		for f.Offset = 0; f.Offset < maxFlowRuns; f.Offset += MaxPage {
			page, err := list(ctx, f)
			if err != nil {
				yield(FlowRun{}, err)
				return
			}
			for _, fr := range page {
				if seen[fr.ID] {
					continue
				}
				seen[fr.ID] = true
				if !yield(fr, nil) {
					return
				}
			}
			if len(page) < MaxPage {
				return
			}
		}
		yield(FlowRun{}, &flowrun.Error{Fault: flowrun.Permanent, Act: f.act(), Err: fmt.Errorf("there are more than %d", maxFlowRuns)})
	}
}

func (f Filter) act() string { return fmt.Sprintf("list flow runs of work pools %v", f.WorkPools) }

func (f Filter) wire() map[string]any {
	flowRuns := map[string]any{}
	if len(f.IDs) > 0 {
		flowRuns["id"] = anyOf(f.IDs)
	}
	if len(f.DeploymentIDs) > 0 {
		flowRuns["deployment_id"] = anyOf(f.DeploymentIDs)
	}
	if len(f.IdempotencyKeys) > 0 {
		flowRuns["idempotency_key"] = anyOf(f.IdempotencyKeys)
	}
	if len(f.StateTypes) > 0 {
		flowRuns["state"] = map[string]any{"type": anyOf(f.StateTypes)}
	}
	next := map[string]any{}
	if !f.ScheduledBefore.IsZero() {
		next["before_"] = f.ScheduledBefore.UTC()
	}
	if !f.ScheduledFrom.IsZero() {
		next["after_"] = f.ScheduledFrom.UTC()
	}
	if len(next) > 0 {
		flowRuns["next_scheduled_start_time"] = next
	}
	body := map[string]any{"limit": MaxPage, "offset": f.Offset, "sort": SoonestFirst, "flow_runs": flowRuns}
	if f.Limit > 0 && f.Limit < MaxPage {
		body["limit"] = f.Limit
	}
	if f.Sort != "" {
		body["sort"] = f.Sort
	}
	if len(f.WorkPools) > 0 {
		body["work_pools"] = map[string]any{"name": anyOf(f.WorkPools)}
	}
	return body
}

func anyOf[T any](values []T) map[string]any { return map[string]any{"any_": values} }

// LogLine is a line of a flow run's log in Prefect.
type LogLine struct {
	Time time.Time
	// Level is Prefect's: 10 debug, 20 info, 30 warning, 40 error, 50 critical.
	Level int
	// Message is cut to 25,000 bytes, Prefect Cloud's limit.
	Message string
}

// Log appends lines to a flow run's log in Prefect. A call that may have been carried out is not
// made again (Unclear).
func (c *Client) Log(ctx context.Context, flowRunID string, lines ...LogLine) error {
	r, err := byID("write to the log of flow run "+flowRunID, "logs", flowRunID)
	if err != nil || len(lines) == 0 {
		return err
	}
	type logCreate struct {
		Name      string    `json:"name"`
		Level     int       `json:"level"`
		Message   string    `json:"message"`
		Timestamp time.Time `json:"timestamp"`
		FlowRunID string    `json:"flow_run_id"`
	}
	body := make([]logCreate, len(lines))
	for i, l := range lines {
		body[i] = logCreate{Name: "pushpool", Level: l.Level, Message: cut(l.Message, 25_000), Timestamp: l.Time.UTC(), FlowRunID: flowRunID}
	}
	r.method, r.path, r.body, r.once = http.MethodPost, "/logs/", body, true
	_, err = c.do(ctx, r, nil)
	return err
}
