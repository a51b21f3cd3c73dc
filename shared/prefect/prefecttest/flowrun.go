package prefecttest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// flowRun is a flow run as answers show it.
type flowRun struct {
	ID                     string            `json:"id"`
	Created                time.Time         `json:"created"`
	Updated                time.Time         `json:"updated"`
	Name                   string            `json:"name"`
	FlowID                 string            `json:"flow_id"`
	StateID                text              `json:"state_id"`
	DeploymentID           text              `json:"deployment_id"`
	DeploymentVersion      text              `json:"deployment_version"`
	WorkQueueID            text              `json:"work_queue_id"`
	WorkQueueName          text              `json:"work_queue_name"`
	FlowVersion            text              `json:"flow_version"`
	Parameters             map[string]any    `json:"parameters"`
	IdempotencyKey         text              `json:"idempotency_key"`
	Context                map[string]any    `json:"context"`
	Policy                 policy            `json:"empirical_policy"`
	Tags                   []string          `json:"tags"`
	Labels                 map[string]any    `json:"labels,omitempty"`
	ParentTaskRunID        text              `json:"parent_task_run_id"`
	StateType              flowrun.StateType `json:"state_type"`
	StateName              text              `json:"state_name"`
	RunCount               int               `json:"run_count"`
	ExpectedStartTime      *time.Time        `json:"expected_start_time"`
	NextScheduledStartTime *time.Time        `json:"next_scheduled_start_time"`
	StartTime              *time.Time        `json:"start_time"`
	EndTime                *time.Time        `json:"end_time"`
	TotalRunTime           float64           `json:"total_run_time"`
	EstimatedRunTime       float64           `json:"estimated_run_time"`
	EstimatedStartDelta    float64           `json:"estimated_start_time_delta"`
	AutoScheduled          bool              `json:"auto_scheduled"`
	InfrastructureDocument text              `json:"infrastructure_document_id"`
	InfrastructurePID      text              `json:"infrastructure_pid"`
	CreatedBy              map[string]any    `json:"created_by"`
	WorkPoolID             text              `json:"work_pool_id"`
	WorkPoolName           text              `json:"work_pool_name"`
	State                  *state            `json:"state"`
	JobVariables           map[string]any    `json:"job_variables"`

	states []*state
	// slotUntil is when the flow run's slot of its deployment's limit is taken back; nil: it has none.
	slotUntil *time.Time
}

// policy is a flow run's empirical_policy.
type policy struct {
	MaxRetries        int      `json:"max_retries"`
	RetryDelaySeconds float64  `json:"retry_delay_seconds"`
	Retries           *int     `json:"retries"`
	RetryDelay        *float64 `json:"retry_delay"`
	PauseKeys         []string `json:"pause_keys"`
	Resuming          bool     `json:"resuming"`
	RetryType         text     `json:"retry_type"`
}

// UnmarshalJSON implements json.Unmarshaler: a policy is replaced as a whole, and unknown fields are ignored.
func (p *policy) UnmarshalJSON(data []byte) error {
	type plain policy
	n := plain{PauseKeys: []string{}}
	if err := json.Unmarshal(data, &n); err != nil {
		return err
	}
	if t := n.RetryType; t != "" && t != "in_process" && t != "reschedule" {
		return fmt.Errorf("retry_type: Input should be 'in_process' or 'reschedule'")
	}
	*p = policy(n)
	return nil
}

func (s *Server) flowRun(id string) (*flowRun, error) {
	if uuid.Validate(id) != nil {
		return nil, missing("Not Found")
	}
	if run, ok := s.flowRuns[id]; ok {
		return run, nil
	}
	return nil, missing("Flow run not found")
}

// setState writes a state, and what follows from it in the flow run.
func (s *Server) setState(run *flowRun, st *state, status string) {
	now, old := s.now(), run.State
	st.ID, st.Timestamp = stateID(now), now
	st.Details.FlowRunID = text(run.ID)
	if len(st.Data) == 0 {
		st.Data = json.RawMessage("null")
	}
	if old != nil && old.Type == flowrun.StateRunning {
		run.TotalRunTime += now.Sub(old.Timestamp).Seconds()
	}
	if old != nil && old.Type.Terminal() && !st.Type.Terminal() {
		run.EndTime = nil
	}
	run.NextScheduledStartTime = nil
	switch {
	case st.Type == flowrun.StateScheduled:
		run.NextScheduledStartTime = st.Details.ScheduledTime
	case st.Type == flowrun.StateRunning:
		if run.StartTime == nil {
			run.StartTime = &now
		}
		if !run.Policy.Resuming {
			run.RunCount++
		}
		run.Policy.Resuming = false
	case st.Type.Terminal() && run.EndTime == nil:
		if run.StartTime == nil {
			run.StartTime = &now
		}
		run.EndTime, run.Policy.Resuming = &now, false
	}
	if run.ExpectedStartTime == nil {
		run.ExpectedStartTime = &now
		if st.Type == flowrun.StateScheduled {
			run.ExpectedStartTime = st.Details.ScheduledTime
		}
	}
	s.moveSlot(run, st, status)
	run.State, run.StateID, run.StateType, run.StateName, run.Updated = st, text(st.ID), st.Type, text(st.Name), now
	run.states = append(run.states, st)
	if s.opts.OnState != nil {
		c := Change{FlowRunID: run.ID, StateID: st.ID, Name: st.Name, TransitionID: string(st.Details.TransitionID), To: st.Type}
		if old != nil {
			c.From = old.Type
		}
		s.opts.OnState(c)
	}
}

func (s *Server) flowRunRoutes() {
	s.handle("GET /flow_runs/{id}", func(c *call) (int, any, error) {
		run, err := s.flowRun(c.PathValue("id"))
		return http.StatusOK, run, err
	})
	s.handle("PATCH /flow_runs/{id}", s.updateFlowRun)
	s.handle("DELETE /flow_runs/{id}", func(c *call) (int, any, error) {
		run, err := s.flowRun(c.PathValue("id"))
		if err == nil {
			delete(s.flowRuns, run.ID)
		}
		return http.StatusNoContent, nil, err
	})
	s.handle("PATCH /flow_runs/{id}/labels", func(c *call) (int, any, error) {
		run, err := s.flowRun(c.PathValue("id"))
		if err != nil || s.v2() {
			return 0, nil, missing("Not Found")
		}
		labels := map[string]any{}
		if err := c.decode(&labels); err != nil {
			return 0, nil, err
		}
		maps.Copy(run.Labels, labels)
		return http.StatusNoContent, nil, nil
	})
	s.handle("POST /flow_runs/{id}/set_state", s.setFlowRunState)
	s.handle("POST /flow_runs/{id}/resume", s.resumeFlowRun)
	s.handle("POST /flow_runs/filter", func(c *call) (int, any, error) {
		runs, page, err := s.filterFlowRuns(c)
		return http.StatusOK, cutPage(runs, page), err
	})
	s.handle("POST /flow_runs/count", func(c *call) (int, any, error) {
		runs, _, err := s.filterFlowRuns(c)
		return http.StatusOK, len(runs), err
	})
	s.handle("GET /flow_run_states/{$}", func(c *call) (int, any, error) {
		if run, ok := s.flowRuns[c.URL.Query().Get("flow_run_id")]; ok {
			return http.StatusOK, run.states, nil
		}
		return http.StatusOK, []*state{}, nil
	})
	s.handle("GET /flow_run_states/{id}", func(c *call) (int, any, error) {
		for _, run := range s.flowRuns {
			for _, st := range run.states {
				if st.ID == c.PathValue("id") {
					return http.StatusOK, st, nil
				}
			}
		}
		return 0, nil, missing("Flow run state not found")
	})
}

func (s *Server) updateFlowRun(c *call) (int, any, error) {
	fields, err := c.fields()
	if err == nil {
		err = c.only("name", "flow_version", "parameters", "empirical_policy", "tags", "infrastructure_pid", "job_variables")
	}
	if err != nil {
		return 0, nil, err
	}
	run, err := s.flowRun(c.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	if _, ok := fields["job_variables"]; ok {
		if run.StateType != flowrun.StateScheduled {
			return 0, nil, refuse(http.StatusBadRequest, fmt.Sprintf("Job variables for a flow run in state %s cannot be updated", run.StateType))
		}
		var given struct {
			JobVariables map[string]any `json:"job_variables"`
		}
		_ = json.Unmarshal(c.body, &given)
		if err := s.checkJobVariables(string(run.WorkPoolName), given.JobVariables); err != nil {
			return 0, nil, err
		}
		run.JobVariables = nil // replaced, not merged
	}
	if _, ok := fields["parameters"]; ok {
		run.Parameters = nil
	}
	run.Updated = s.now()
	return http.StatusNoContent, nil, c.decode(run)
}

func (s *Server) setFlowRunState(c *call) (int, any, error) {
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	var (
		p     proposal
		force bool
	)
	if err := strict(fields["state"], &p); err != nil {
		return 0, nil, err
	}
	if f, ok := fields["force"]; ok {
		if err := strict(f, &force); err != nil {
			return 0, nil, err
		}
	}
	st, err := s.proposed(p)
	if err != nil {
		return 0, nil, err
	}
	id := c.PathValue("id")
	run, err := s.flowRun(id)
	if err != nil {
		return 0, nil, &refusal{status: http.StatusNotFound, body: map[string]any{"exception_message": "Flow run with id " + id + " not found"}}
	}
	return orchestrated(s.propose(run, st, force))
}

// orchestrated is the answer to a proposal: 201 if a state was written.
func orchestrated(t *transition) (int, any, error) {
	details := map[string]any{"type": map[string]string{
		accept: "accept_details", reject: "reject_details", wait: "wait_details", abort: "abort_details",
	}[t.status]}
	if t.status != accept {
		details["reason"] = t.reason
	}
	if t.status == wait {
		details["delay_seconds"] = t.delay
	}
	status := http.StatusOK
	if t.proposed != nil {
		status = http.StatusCreated
	}
	return status, map[string]any{"status": t.status, "state": t.run.State, "details": details}, nil
}

func (s *Server) resumeFlowRun(c *call) (int, any, error) {
	run, err := s.flowRun(c.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	if run.StateType != flowrun.StatePaused {
		return http.StatusOK, map[string]any{"state": nil, "status": abort, "details": map[string]any{
			"type": "abort_details", "reason": "Cannot resume a flow run that is not paused.",
		}}, nil
	}
	st := &state{Type: flowrun.StateRunning, Name: "Running"}
	if run.State.Details.PauseReschedule {
		now := s.now()
		st = &state{Type: flowrun.StateScheduled, Name: "Resuming", Details: stateDetails{ScheduledTime: &now}}
	}
	return orchestrated(s.propose(run, st, false))
}

// newFlowRun stores a flow run and gives it its first state.
func (s *Server) newFlowRun(run *flowRun, st *state) {
	if run.ID == "" {
		run.ID = uuid.NewString()
	}
	if run.Name == "" {
		run.Name = slug()
	}
	run.Created = s.now()
	run.Policy.PauseKeys = slices.Clip(append([]string{}, run.Policy.PauseKeys...))
	if run.Tags == nil {
		run.Tags = []string{}
	}
	if run.Parameters == nil {
		run.Parameters = map[string]any{}
	}
	if run.Context == nil {
		run.Context = map[string]any{}
	}
	if !s.v2() {
		own := run.Labels
		run.Labels = map[string]any{"prefect.flow.id": run.FlowID}
		if run.DeploymentID != "" {
			run.Labels["prefect.deployment.id"] = run.DeploymentID
		}
		maps.Copy(run.Labels, own)
	}
	s.flowRuns[run.ID] = run
	if run.AutoScheduled { // inserted without orchestration, so without an event
		s.setState(run, st, accept)
		return
	}
	s.propose(run, st, true)
}

// stateID is a UUID of version 7, of the server's clock: uuid.NewV7 goes by the latest time that
// the process ever saw.
func stateID(now time.Time) string {
	id := uuid.New()
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16|uint64(binary.BigEndian.Uint16(id[6:8])))
	id[6] = id[6]&0x0f | 0x70
	return id.String()
}

// Name returns a flow run's name. It may be called by Options.OnState.
func (s *Server) Name(flowRunID string) string {
	if run, ok := s.flowRuns[flowRunID]; ok {
		return run.Name
	}
	return ""
}
