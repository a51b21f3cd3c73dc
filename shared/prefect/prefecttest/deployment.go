package prefecttest

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

type flow struct {
	ID      string         `json:"id"`
	Created time.Time      `json:"created"`
	Updated time.Time      `json:"updated"`
	Name    string         `json:"name"`
	Tags    []string       `json:"tags"`
	Labels  map[string]any `json:"labels,omitempty"`
}

// deployment is a deployment as answers show it.
type deployment struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	deploymentSpec
	FlowID       string         `json:"flow_id"`
	Schedules    []*schedule    `json:"schedules"`
	GlobalLimit  *globalLimit   `json:"global_concurrency_limit"`
	Limit        *int           `json:"concurrency_limit"`
	Variables    map[string]any `json:"job_variables,omitempty"`
	Overrides    map[string]any `json:"infra_overrides,omitempty"` // what 2.20 calls them
	WorkQueueID  text           `json:"work_queue_id"`
	LastPolled   *time.Time     `json:"last_polled"`
	CreatedBy    any            `json:"created_by"`
	UpdatedBy    any            `json:"updated_by"`
	Status       string         `json:"status"`
	WorkPoolName text           `json:"work_pool_name"`
	WorkQueue    text           `json:"work_queue_name"`
}

// deploymentSpec are the fields that are stored as they are given.
type deploymentSpec struct {
	Name                   string         `json:"name"`
	Version                text           `json:"version"`
	Description            text           `json:"description"`
	Paused                 bool           `json:"paused"`
	ConcurrencyOptions     *options       `json:"concurrency_options"`
	Parameters             map[string]any `json:"parameters"`
	Tags                   []string       `json:"tags"`
	Labels                 map[string]any `json:"labels,omitempty"`
	ParameterSchema        map[string]any `json:"parameter_openapi_schema"`
	Path                   text           `json:"path"`
	PullSteps              []any          `json:"pull_steps"`
	Entrypoint             text           `json:"entrypoint"`
	StorageDocumentID      text           `json:"storage_document_id"`
	InfrastructureDocument text           `json:"infrastructure_document_id"`
	EnforceParameterSchema bool           `json:"enforce_parameter_schema"`
}

type options struct {
	CollisionStrategy  string `json:"collision_strategy"` // ENQUEUE or CANCEL_NEW
	GracePeriodSeconds *int   `json:"grace_period_seconds"`
}

type globalLimit struct {
	ID          string    `json:"id"`
	Created     time.Time `json:"created"`
	Updated     time.Time `json:"updated"`
	Active      bool      `json:"active"`
	Name        string    `json:"name"`
	Limit       int       `json:"limit"`
	ActiveSlots int       `json:"active_slots"`
	SlotDecay   float64   `json:"slot_decay_per_second"`
}

// deploymentBody is what is given to create or change a deployment.
type deploymentBody struct {
	deploymentSpec
	FlowID    string         `json:"flow_id"`
	Schedules []*schedule    `json:"schedules"`
	Limit     *int           `json:"concurrency_limit"`
	Variables map[string]any `json:"job_variables"`
	Overrides map[string]any `json:"infra_overrides"`
	Pool      string         `json:"work_pool_name"`
	Queue     string         `json:"work_queue_name"`
}

func (s *Server) deploymentRoutes() {
	s.handle("POST /flows/{$}", func(c *call) (int, any, error) {
		f := &flow{ID: uuid.NewString(), Tags: []string{}}
		if err := c.only("name", "tags", "labels"); err != nil {
			return 0, nil, err
		}
		if err := c.decode(f); err != nil {
			return 0, nil, err
		}
		for _, old := range s.flows {
			if old.Name == f.Name {
				return http.StatusOK, old, nil
			}
		}
		f.Created = s.now()
		f.Updated = f.Created
		s.flows[f.ID] = f
		return http.StatusCreated, f, nil
	})
	s.handle("GET /flows/{id}", func(c *call) (int, any, error) {
		if f, ok := s.flows[c.PathValue("id")]; ok {
			return http.StatusOK, f, nil
		}
		return 0, nil, missing("Flow not found")
	})
	s.handle("POST /deployments/{$}", s.createDeployment)
	s.handle("GET /deployments/{id}", func(c *call) (int, any, error) {
		d, err := s.deployment(c)
		return http.StatusOK, s.show(d), err
	})
	s.handle("GET /deployments/name/{flow}/{name}", func(c *call) (int, any, error) {
		for _, d := range s.deployments {
			if d.Name == c.PathValue("name") && s.flows[d.FlowID].Name == c.PathValue("flow") {
				return http.StatusOK, s.show(d), nil
			}
		}
		return 0, nil, missing("Deployment not found")
	})
	s.handle("POST /deployments/filter", s.filterDeployments)
	s.handle("PATCH /deployments/{id}", s.updateDeployment)
	s.handle("DELETE /deployments/{id}", func(c *call) (int, any, error) {
		d, err := s.deployment(c)
		if err == nil {
			s.deleteScheduled(d, false)
			delete(s.deployments, d.ID)
		}
		return http.StatusNoContent, nil, err
	})
	for verb, paused := range map[string]bool{"pause_deployment": true, "resume_deployment": false} {
		s.handle("POST /deployments/{id}/"+verb, func(c *call) (int, any, error) {
			d, err := s.deployment(c)
			if err == nil {
				d.Paused = paused
				s.deleteScheduled(d, true)
			}
			return http.StatusOK, nil, err
		})
	}
	s.handle("POST /deployments/{id}/create_flow_run", s.createFlowRun)
}

func (s *Server) deployment(c *call) (*deployment, error) {
	if d, ok := s.deployments[c.PathValue("id")]; ok {
		return d, nil
	}
	return nil, missing("Deployment not found")
}

// show brings up to date what a deployment's answer computes.
func (s *Server) show(d *deployment) *deployment {
	if d == nil {
		return nil
	}
	d.Status = polled(d.LastPolled, s.now())
	if d.GlobalLimit != nil {
		d.GlobalLimit.ActiveSlots = s.slots(d)
	}
	return d
}

func (s *Server) createDeployment(c *call) (int, any, error) {
	b := deploymentBody{deploymentSpec: deploymentSpec{
		Parameters: map[string]any{}, Tags: []string{}, ParameterSchema: map[string]any{}, PullSteps: []any{}, EnforceParameterSchema: true,
	}}
	if err := c.decode(&b); err != nil {
		return 0, nil, err
	}
	switch {
	case b.Name == "":
		return 0, nil, invalid("name", "Field required")
	case s.flows[b.FlowID] == nil:
		return 0, nil, invalid("flow_id", "Field required")
	}
	d, status := &deployment{ID: uuid.NewString(), Created: s.now(), FlowID: b.FlowID}, http.StatusCreated
	for _, old := range s.deployments {
		if old.FlowID == b.FlowID && old.Name == b.Name {
			d, status = old, http.StatusOK
		}
	}
	if err := s.fill(d, b, map[string]bool{"schedules": true, "concurrency_limit": true, "job_variables": true, "work_pool_name": b.Pool != ""}); err != nil {
		return 0, nil, err
	}
	s.deployments[d.ID] = d
	s.deleteScheduled(d, true)
	return status, s.show(d), nil
}

// filterDeployments returns those that match, by name.
func (s *Server) filterDeployments(c *call) (int, any, error) {
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	part, err := readPage(fields)
	if err != nil {
		return 0, nil, err
	}
	var byDeployment, byPool *named
	for name, into := range map[string]**named{"deployments": &byDeployment, "work_pools": &byPool} {
		if raw, ok := fields[name]; ok {
			if err := strict(raw, into); err != nil {
				return 0, nil, err
			}
		}
	}
	found := []*deployment{}
	for _, d := range s.deployments {
		p := s.pools[string(d.WorkPoolName)]
		if byDeployment.match(d.ID, d.Name, "") && (byPool == nil || p != nil && byPool.match(p.ID, p.Name, p.Type)) {
			found = append(found, s.show(d))
		}
	}
	slices.SortFunc(found, func(a, b *deployment) int { return cmp.Compare(a.Name, b.Name) })
	return http.StatusOK, cutPage(found, part), nil
}

func (s *Server) updateDeployment(c *call) (int, any, error) {
	d, err := s.deployment(c)
	if err != nil {
		return 0, nil, err
	}
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	for _, n := range []string{"name", "flow_id"} {
		if _, ok := fields[n]; ok {
			return 0, nil, invalid(n, "Extra inputs are not permitted")
		}
	}
	b := deploymentBody{deploymentSpec: d.deploymentSpec, FlowID: d.FlowID}
	if err := c.decode(&b); err != nil {
		return 0, nil, err
	}
	given := map[string]bool{}
	for n := range fields {
		given[n] = true
	}
	if err := s.fill(d, b, given); err != nil {
		return 0, nil, err
	}
	s.deleteScheduled(d, true)
	return http.StatusNoContent, nil, nil
}

// fill writes the given parts of b to the deployment.
func (s *Server) fill(d *deployment, b deploymentBody, given map[string]bool) error {
	if b.Limit != nil && *b.Limit < 1 {
		return invalid("concurrency_limit", "Input should be greater than 0")
	}
	variables := b.Variables
	if s.v2() && b.Overrides != nil {
		variables = b.Overrides
	}
	if given["work_pool_name"] || given["work_queue_name"] {
		q, err := s.queue(cmp.Or(b.Pool, string(d.WorkPoolName)), b.Queue, true)
		if err != nil {
			return err
		}
		d.WorkPoolName, d.WorkQueueID, d.WorkQueue = text(q.WorkPoolName), text(q.ID), text(q.Name)
	}
	if given["job_variables"] || given["infra_overrides"] {
		if err := s.checkJobVariables(string(d.WorkPoolName), variables); err != nil {
			return err
		}
		if variables == nil {
			variables = map[string]any{}
		}
		d.Variables, d.Overrides = variables, nil
		if s.v2() {
			d.Variables, d.Overrides = nil, variables
		}
	}
	d.deploymentSpec, d.Updated = b.deploymentSpec, s.now()
	if given["concurrency_limit"] && !s.v2() {
		d.GlobalLimit, d.Limit = nil, b.Limit
		if b.Limit != nil {
			d.GlobalLimit = &globalLimit{ID: uuid.NewString(), Created: s.now(), Updated: s.now(), Active: true, Name: "deployment:" + d.ID, Limit: *b.Limit}
		}
	}
	if given["schedules"] {
		if err := s.setSchedules(d, b.Schedules); err != nil {
			return err
		}
	}
	if !s.v2() {
		d.Labels = map[string]any{"prefect.flow.id": d.FlowID}
	}
	return nil
}

// createFlowRun creates a flow run of a deployment, once for a flow and an idempotency key.
func (s *Server) createFlowRun(c *call) (int, any, error) {
	d, err := s.deployment(c)
	if err != nil {
		return 0, nil, err
	}
	if len(c.body) == 0 {
		return 0, nil, invalid("", "Field required")
	}
	var b struct {
		State          *proposal      `json:"state"`
		Name           string         `json:"name"`
		Parameters     map[string]any `json:"parameters"`
		EnforceSchema  *bool          `json:"enforce_parameter_schema"`
		Context        map[string]any `json:"context"`
		Policy         policy         `json:"empirical_policy"`
		Tags           []string       `json:"tags"`
		IdempotencyKey text           `json:"idempotency_key"`
		Labels         map[string]any `json:"labels"`
		Queue          string         `json:"work_queue_name"`
		JobVariables   map[string]any `json:"job_variables"`
		Infrastructure text           `json:"infrastructure_document_id"`
		ParentTaskRun  text           `json:"parent_task_run_id"`
	}
	if err := c.decode(&b); err != nil {
		return 0, nil, err
	}
	if s.v2() && b.Labels != nil {
		return 0, nil, invalid("labels", "extra fields not permitted")
	}
	if b.State == nil {
		b.State = &proposal{Type: flowrun.StateScheduled}
	}
	st, err := s.proposed(*b.State)
	if err != nil {
		return 0, nil, err
	}
	parameters := maps.Clone(d.Parameters)
	maps.Copy(parameters, b.Parameters)
	if enforce := b.EnforceSchema == nil && d.EnforceParameterSchema || b.EnforceSchema != nil && *b.EnforceSchema; enforce {
		if err := validate(d.ParameterSchema, parameters); err != nil {
			return 0, nil, refuse(http.StatusConflict, "Error creating flow run: Validation failed. "+err.Error())
		}
	}
	if err := s.checkJobVariables(string(d.WorkPoolName), b.JobVariables); err != nil {
		return 0, nil, err
	}
	run := s.newOf(d)
	run.Labels = b.Labels
	run.Name, run.Parameters, run.Context, run.Policy = b.Name, parameters, b.Context, b.Policy
	run.IdempotencyKey, run.JobVariables, run.ParentTaskRunID = b.IdempotencyKey, b.JobVariables, b.ParentTaskRun
	run.Tags = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(d.Tags), b.Tags...))))
	if b.Queue != "" {
		q, err := s.queue(string(d.WorkPoolName), b.Queue, true)
		if err != nil {
			return 0, nil, err
		}
		run.WorkQueueID, run.WorkQueueName = text(q.ID), text(q.Name)
	}
	if run.JobVariables == nil {
		run.JobVariables = map[string]any{}
	}
	if old := s.byKey(d.FlowID, b.IdempotencyKey); old != nil {
		return http.StatusOK, old, nil
	}
	s.newFlowRun(run, st)
	return http.StatusCreated, run, nil
}

func (s *Server) newOf(d *deployment) *flowRun {
	run := &flowRun{
		FlowID: d.FlowID, DeploymentID: text(d.ID), DeploymentVersion: d.Version,
		WorkQueueID: d.WorkQueueID, WorkQueueName: d.WorkQueue, WorkPoolName: d.WorkPoolName,
	}
	if p := s.pools[string(d.WorkPoolName)]; p != nil {
		run.WorkPoolID = text(p.ID)
	}
	return run
}

func (s *Server) byKey(flowID string, key text) *flowRun {
	for _, r := range s.flowRuns {
		if key != "" && r.FlowID == flowID && r.IdempotencyKey == key {
			return r
		}
	}
	return nil
}

// deleteScheduled deletes the deployment's flow runs that wait for their first start; 2.20 all that are SCHEDULED.
func (s *Server) deleteScheduled(d *deployment, futureAutoOnly bool) {
	now := s.now()
	maps.DeleteFunc(s.flowRuns, func(_ string, r *flowRun) bool {
		return string(r.DeploymentID) == d.ID && r.StateType == flowrun.StateScheduled &&
			(s.v2() || r.StateName != "AwaitingConcurrencySlot" && r.RunCount == 0) && (!futureAutoOnly || r.AutoScheduled && r.NextScheduledStartTime.After(now))
	})
}
