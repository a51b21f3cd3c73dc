package prefect

import (
	"context"
	"net/http"
	"time"
)

// CreateFlow creates the flow of that name, or returns the one that exists.
func (c *Client) CreateFlow(ctx context.Context, name string) (Flow, error) {
	var f Flow
	_, err := c.do(ctx, request{act: "create flow " + name, method: http.MethodPost, path: "/flows/", body: map[string]any{"name": name}}, &f)
	return f, err
}

// NewDeployment is what a deployment is created with; FlowID, Name and WorkPool have to be set.
type NewDeployment struct {
	FlowID, Name string
	WorkPool     string // has to exist
	WorkQueue    string // the pool's default queue, if empty; created if it does not exist
	// Entrypoint is PATH:FUNCTION, and Path the directory in the container that PATH is relative to.
	Entrypoint, Path string
	Parameters       map[string]any
	JobVariables     map[string]any
	Tags             []string
	// ConcurrencyLimit is at least 1; nil means none. Servers of 2.20 have none.
	ConcurrencyLimit *int
	Schedules        []Schedule
	Paused           bool
}

// Schedule is when a deployment's flow runs start: by a cron line or at an interval, one of them.
type Schedule struct {
	Cron     string
	Interval time.Duration
	// Timezone is an IANA name that Cron is read in; empty means UTC.
	Timezone string
	// Inactive schedules create no flow runs.
	Inactive bool
}

func (s Schedule) wire() map[string]any {
	timetable := map[string]any{"timezone": "UTC"}
	if s.Timezone != "" {
		timetable["timezone"] = s.Timezone
	}
	if s.Cron != "" {
		timetable["cron"] = s.Cron
	}
	if s.Interval != 0 {
		timetable["interval"] = s.Interval.Seconds()
	}
	return map[string]any{"schedule": timetable, "active": !s.Inactive}
}

// CreateDeployment creates a deployment, or makes the flow's one of that name so. Either way
// Prefect makes anew the flow runs that its schedules lay ahead.
func (c *Client) CreateDeployment(ctx context.Context, n NewDeployment) (Deployment, error) {
	body := map[string]any{
		"flow_id": n.FlowID, "name": n.Name, "work_pool_name": n.WorkPool, "paused": n.Paused,
		"enforce_parameter_schema": false, // none is sent
	}
	set := func(key string, value any, isSet bool) {
		if isSet {
			body[key] = value
		}
	}
	set("work_queue_name", n.WorkQueue, n.WorkQueue != "")
	set("entrypoint", n.Entrypoint, n.Entrypoint != "")
	set("path", n.Path, n.Path != "")
	set("parameters", n.Parameters, n.Parameters != nil)
	set("job_variables", n.JobVariables, n.JobVariables != nil)
	set("tags", n.Tags, n.Tags != nil)
	set("concurrency_limit", n.ConcurrencyLimit, n.ConcurrencyLimit != nil)
	schedules := []any{}
	for _, s := range n.Schedules {
		schedules = append(schedules, s.wire())
	}
	body["schedules"] = schedules
	return c.deployment(ctx, request{act: "create deployment " + n.Name, method: http.MethodPost, path: "/deployments/", body: body})
}

// SetDeploymentPaused stops or resumes a deployment's schedules. Pausing deletes the flow runs that
// they laid ahead.
func (c *Client) SetDeploymentPaused(ctx context.Context, id string, paused bool) error {
	r, err := byID("pause or resume deployment "+id, "deployments", id)
	if err != nil {
		return err
	}
	r.method, r.body = http.MethodPatch, map[string]any{"paused": paused}
	_, err = c.do(ctx, r, nil)
	return err
}

// Deployments returns the deployments of a work pool. Their flow is named by its id only.
func (c *Client) Deployments(ctx context.Context, pool string) ([]Deployment, error) {
	r := request{act: "list the deployments of work pool " + pool, method: http.MethodPost, path: "/deployments/filter"}
	found, err := pages[deploymentAnswer](ctx, c, r, map[string]any{"work_pools": map[string]any{"name": anyOf([]string{pool})}, "sort": "NAME_ASC"})
	all := make([]Deployment, len(found))
	for i, a := range found {
		all[i] = a.whole()
	}
	return all, err
}

// MoveDeployment has a deployment's flow runs created in another work pool and queue, the default one if empty, from now on. Flow
// runs that exist stay in their queue, but for those that a schedule laid ahead: Prefect deletes the
// future ones (of 2.20 all that wait), and its scheduler lays new ones within a minute.
func (c *Client) MoveDeployment(ctx context.Context, id, pool, queue string) error {
	r, err := byID("move deployment "+id+" to work pool "+pool, "deployments", id)
	if err != nil {
		return err
	}
	body := map[string]any{"work_pool_name": pool}
	if queue != "" {
		body["work_queue_name"] = queue
	}
	r.method, r.body = http.MethodPatch, body
	_, err = c.do(ctx, r, nil)
	return err
}

// CopyWorkPool creates a work pool with the type, the base job template and the limit of another. One of
// that name that exists stays as it is.
func (c *Client) CopyWorkPool(ctx context.Context, of WorkPool, name string) error {
	body := map[string]any{"name": name, "type": of.Type, "base_job_template": of.BaseJobTemplate, "concurrency_limit": of.ConcurrencyLimit}
	status, err := c.do(ctx, request{act: "create work pool " + name, method: http.MethodPost, path: "/work_pools/", body: body}, nil)
	if status == http.StatusConflict {
		return nil
	}
	return err
}

// CreateWorkQueue creates a queue with the name, the limit, the priority and the pause of q. One
// of that name that exists stays as it is.
func (c *Client) CreateWorkQueue(ctx context.Context, pool string, q WorkQueue) error {
	body := map[string]any{"name": q.Name, "is_paused": q.IsPaused, "concurrency_limit": q.ConcurrencyLimit, "priority": q.Priority}
	status, err := c.do(ctx, request{act: "create work queue " + q.Name + " of work pool " + pool, method: http.MethodPost, path: poolPath(pool) + "/queues", body: body}, nil)
	if status == http.StatusConflict {
		return nil
	}
	return err
}
