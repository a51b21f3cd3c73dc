package prefecttest

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// workPool is a work pool as answers show it.
type workPool struct {
	ID              string         `json:"id"`
	Created         time.Time      `json:"created"`
	Updated         time.Time      `json:"updated"`
	Name            string         `json:"name"`
	Description     text           `json:"description"`
	Type            string         `json:"type"`
	BaseJobTemplate map[string]any `json:"base_job_template"`
	IsPaused        bool           `json:"is_paused"`
	Limit           *int           `json:"concurrency_limit"`
	Status          string         `json:"status"`
	DefaultQueueID  string         `json:"default_queue_id"`
	Storage         map[string]any `json:"storage_configuration"`
	ActiveSlots     *int           `json:"active_slots"`

	queues  []*workQueue         // by priority
	workers map[string]time.Time // until when a worker counts as online, by name
}

type workQueue struct {
	ID           string     `json:"id"`
	Created      time.Time  `json:"created"`
	Updated      time.Time  `json:"updated"`
	Name         string     `json:"name"`
	Description  text       `json:"description"`
	IsPaused     bool       `json:"is_paused"`
	Limit        *int       `json:"concurrency_limit"`
	Priority     int        `json:"priority"` // 1 is the highest
	WorkPoolID   string     `json:"work_pool_id"`
	WorkPoolName string     `json:"work_pool_name"`
	LastPolled   *time.Time `json:"last_polled"`
	Status       string     `json:"status"`
	ActiveSlots  *int       `json:"active_slots"`
}

func (s *Server) poolRoutes() {
	s.handle("POST /work_pools/{$}", s.createPool)
	s.handle("GET /work_pools/{pool}", func(c *call) (int, any, error) {
		p, err := s.pool(c.PathValue("pool"))
		return http.StatusOK, s.showPool(p), err
	})
	s.handle("PATCH /work_pools/{pool}", s.updatePool)
	s.handle("DELETE /work_pools/{pool}", func(c *call) (int, any, error) {
		p, err := s.pool(c.PathValue("pool"))
		if err == nil {
			delete(s.pools, p.Name)
		}
		return http.StatusNoContent, nil, err
	})
	s.handle("POST /work_pools/filter", s.filterPools)
	s.handle("POST /work_pools/{pool}/get_scheduled_flow_runs", s.scheduledFlowRuns)
	s.handle("POST /work_pools/{pool}/workers/heartbeat", s.heartbeat)
	s.handle("POST /work_pools/{pool}/queues", s.createQueue)
	s.handle("POST /work_pools/{pool}/queues/filter", func(c *call) (int, any, error) {
		p, err := s.pool(c.PathValue("pool"))
		if err != nil {
			return 0, nil, err
		}
		fields, err := c.fields()
		if err != nil {
			return 0, nil, err
		}
		part, err := readPage(fields)
		for _, q := range p.queues {
			s.showQueue(q)
		}
		return http.StatusOK, cutPage(p.queues, part), err
	})
	s.handle("GET /work_pools/{pool}/queues/{queue}", func(c *call) (int, any, error) {
		q, err := s.queue(c.PathValue("pool"), c.PathValue("queue"), false)
		return http.StatusOK, s.showQueue(q), err
	})
	s.handle("PATCH /work_pools/{pool}/queues/{queue}", s.updateQueue)
}

func (s *Server) pool(name string) (*workPool, error) {
	if p, ok := s.pools[name]; ok {
		return p, nil
	}
	return nil, missing(fmt.Sprintf("Work pool %q not found.", name))
}

// queue finds a queue; no name is the pool's default queue.
func (s *Server) queue(pool, name string, create bool) (*workQueue, error) {
	p, err := s.pool(pool)
	if err != nil {
		return nil, err
	}
	for _, q := range p.queues {
		if q.Name == name || name == "" && q.ID == p.DefaultQueueID {
			return q, nil
		}
	}
	if !create {
		return nil, missing(fmt.Sprintf("Work pool queue '%s/%s' not found.", pool, name))
	}
	return s.addQueue(p, &workQueue{Name: name}), nil
}

// addQueue gives the queue its identity and, where it has none, the lowest priority.
func (s *Server) addQueue(p *workPool, q *workQueue) *workQueue {
	q.ID, q.Created = uuid.NewString(), s.now()
	q.Updated, q.WorkPoolID, q.WorkPoolName = q.Created, p.ID, p.Name
	if q.Priority == 0 {
		q.Priority = 1
		for _, other := range p.queues {
			q.Priority = max(q.Priority, other.Priority+1)
		}
	}
	p.queues = append(p.queues, q)
	p.makeRoom(q)
	return q
}

// makeRoom moves down the queues that stand where q is now: no two have the same priority.
func (p *workPool) makeRoom(q *workQueue) {
	slices.SortStableFunc(p.queues, func(a, b *workQueue) int { return cmp.Compare(a.Priority, b.Priority) })
	taken := q.Priority
	for _, other := range p.queues {
		if other != q && other.Priority >= q.Priority && other.Priority <= taken {
			taken++
			other.Priority = taken
		}
	}
	slices.SortFunc(p.queues, func(a, b *workQueue) int { return cmp.Compare(a.Priority, b.Priority) })
}

// showPool brings up to date what a pool's answer computes.
func (s *Server) showPool(p *workPool) *workPool {
	if p == nil {
		return nil
	}
	now := s.now()
	p.Status, p.ActiveSlots = "NOT_READY", nil
	for _, until := range p.workers {
		if now.Before(until) {
			p.Status = "READY"
		}
	}
	if p.IsPaused {
		p.Status = "PAUSED"
	}
	if p.Limit != nil && !s.v2() {
		n := 0
		for _, q := range p.queues {
			n += s.active(q)
		}
		p.ActiveSlots = &n
	}
	return p
}

func (s *Server) showQueue(q *workQueue) *workQueue {
	if q == nil {
		return nil
	}
	q.Status, q.ActiveSlots = polled(q.LastPolled, s.now()), nil
	if q.IsPaused {
		q.Status = "PAUSED"
	}
	if q.Limit != nil && !s.v2() {
		n := s.active(q)
		q.ActiveSlots = &n
	}
	return q
}

// polled is the status of what was last asked for at a time: it shows as served for a minute.
func polled(last *time.Time, now time.Time) string {
	if last != nil && now.Sub(*last) < time.Minute {
		return "READY"
	}
	return "NOT_READY"
}

// active counts the queue's flow runs that take part of its limit; those CANCELLING do not.
func (s *Server) active(q *workQueue) int {
	n := 0
	for _, r := range s.flowRuns {
		if string(r.WorkQueueID) == q.ID && (r.StateType == flowrun.StatePending || r.StateType == flowrun.StateRunning) {
			n++
		}
	}
	return n
}

func (s *Server) createPool(c *call) (int, any, error) {
	p := &workPool{
		ID: uuid.NewString(), Type: "prefect-agent", BaseJobTemplate: map[string]any{}, Storage: map[string]any{},
		workers: map[string]time.Time{},
	}
	if err := c.only("name", "description", "type", "base_job_template", "is_paused", "concurrency_limit", "storage_configuration"); err != nil {
		return 0, nil, err
	}
	if err := c.decode(p); err != nil {
		return 0, nil, err
	}
	switch {
	case p.Name == "":
		return 0, nil, invalid("name", "Field required")
	case strings.HasPrefix(strings.ToLower(p.Name), "prefect"):
		return 0, nil, refuse(http.StatusForbidden, "Worker pools starting with 'Prefect' are reserved for internal use.")
	case s.pools[p.Name] != nil:
		return 0, nil, refuse(http.StatusConflict, "A worker with this name already exists.")
	}
	if err := p.check(); err != nil {
		return 0, nil, err
	}
	p.Created = s.now()
	p.Updated = p.Created
	p.DefaultQueueID = s.addQueue(p, &workQueue{Name: "default", Description: "The work pool's default queue."}).ID
	s.pools[p.Name] = p
	return http.StatusCreated, s.showPool(p), nil
}

func (p *workPool) check() error {
	if p.Limit != nil && *p.Limit < 0 {
		return invalid("concurrency_limit", "Input should be greater than or equal to 0")
	}
	_, configuration := p.BaseJobTemplate["job_configuration"]
	_, variables := p.BaseJobTemplate["variables"]
	if len(p.BaseJobTemplate) > 0 && (!configuration || !variables) {
		return invalid("base_job_template", "The `base_job_template` must contain both a `job_configuration` key and a `variables` key.")
	}
	return nil
}

func (s *Server) updatePool(c *call) (int, any, error) {
	p, err := s.pool(c.PathValue("pool"))
	if err != nil {
		return 0, nil, err
	}
	if err := c.only("description", "is_paused", "base_job_template", "concurrency_limit", "storage_configuration"); err != nil {
		return 0, nil, err
	}
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	changed := *p
	if _, ok := fields["base_job_template"]; ok {
		changed.BaseJobTemplate = nil // replaced, not merged
	}
	if err := c.decode(&changed); err != nil {
		return 0, nil, err
	}
	if err := changed.check(); err != nil {
		return 0, nil, err
	}
	changed.Updated = s.now()
	*p = changed
	return http.StatusNoContent, nil, nil
}

func (s *Server) filterPools(c *call) (int, any, error) {
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	part, err := readPage(fields)
	if err != nil {
		return 0, nil, err
	}
	var f *named
	if raw, ok := fields["work_pools"]; ok {
		if err := strict(raw, &f); err != nil {
			return 0, nil, err
		}
	}
	found := []*workPool{}
	for _, p := range s.pools {
		if f.match(p.ID, p.Name, p.Type) {
			found = append(found, s.showPool(p))
		}
	}
	slices.SortFunc(found, func(a, b *workPool) int { return cmp.Compare(a.Name, b.Name) })
	return http.StatusOK, cutPage(found, part), nil
}

func (s *Server) createQueue(c *call) (int, any, error) {
	p, err := s.pool(c.PathValue("pool"))
	if err != nil {
		return 0, nil, err
	}
	if err := c.only("name", "description", "is_paused", "concurrency_limit", "priority"); err != nil {
		return 0, nil, err
	}
	q := &workQueue{}
	if err := c.decode(q); err != nil {
		return 0, nil, err
	}
	if q.Name == "" {
		return 0, nil, invalid("name", "Field required")
	}
	for _, other := range p.queues {
		if other.Name == q.Name {
			return 0, nil, refuse(http.StatusConflict, fmt.Sprintf("A work queue with this name already exists in work pool %q.", p.Name))
		}
	}
	return http.StatusCreated, s.showQueue(s.addQueue(p, q)), nil
}

func (s *Server) updateQueue(c *call) (int, any, error) {
	q, err := s.queue(c.PathValue("pool"), c.PathValue("queue"), false)
	if err != nil {
		return 0, nil, err
	}
	if err := c.only("name", "description", "is_paused", "concurrency_limit", "priority", "last_polled"); err != nil {
		return 0, nil, err
	}
	if err := c.decode(q); err != nil {
		return 0, nil, err
	}
	q.Updated = s.now()
	s.pools[q.WorkPoolName].makeRoom(q)
	return http.StatusNoContent, nil, nil
}

// heartbeat counts the worker as online for three times the interval that it names.
func (s *Server) heartbeat(c *call) (int, any, error) {
	p, err := s.pool(c.PathValue("pool"))
	if err != nil {
		return 0, nil, err
	}
	var b struct {
		Name     string         `json:"name"`
		Every    *int           `json:"heartbeat_interval_seconds"`
		ReturnID bool           `json:"return_id"`
		Metadata map[string]any `json:"metadata"`
	}
	if err := c.decode(&b); err != nil {
		return 0, nil, err
	}
	if b.Name == "" {
		return 0, nil, invalid("name", "Field required")
	}
	every := 30
	if b.Every != nil {
		every = *b.Every
	}
	p.workers[b.Name] = s.now().Add(3 * time.Duration(every) * time.Second)
	return http.StatusNoContent, nil, nil
}
