package prefecttest

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

// page is the part of a list that was asked for.
type page struct {
	limit, offset int
	sort          string
}

const maxLimit = 200

// readPage takes limit, offset and sort out of a body's top level.
func readPage(fields map[string]json.RawMessage) (page, error) {
	p := page{limit: maxLimit}
	for name, into := range map[string]any{"limit": &p.limit, "offset": &p.offset, "sort": &p.sort} {
		if raw, ok := fields[name]; ok && json.Unmarshal(raw, into) != nil {
			return p, invalid(name, "Input should be valid")
		}
	}
	switch {
	case p.limit > maxLimit:
		return p, refuse(http.StatusUnprocessableEntity, "Invalid limit: must be less than or equal to 200.")
	case p.offset < 0:
		return p, invalid("offset", "Input should be greater than or equal to 0")
	}
	return p, nil
}

func cutPage[T any](all []T, p page) []T {
	all = all[min(p.offset, len(all)):]
	return append([]T{}, all[:max(0, min(p.limit, len(all)))]...)
}

// words filters a string.
type words struct {
	Any    []string `json:"any_"`
	NotAny []string `json:"not_any_"`
	Like   *string  `json:"like_"`
	IsNull *bool    `json:"is_null_"`
}

func (f *words) match(s string) bool {
	return f == nil || (f.Any == nil || slices.Contains(f.Any, s)) && !slices.Contains(f.NotAny, s) &&
		(f.Like == nil || strings.Contains(strings.ToLower(s), strings.ToLower(*f.Like))) &&
		(f.IsNull == nil || *f.IsNull == (s == ""))
}

// times filters a time.
type times struct {
	Before *time.Time `json:"before_"`
	After  *time.Time `json:"after_"`
	IsNull *bool      `json:"is_null_"`
}

func (f *times) match(t *time.Time) bool {
	if f == nil {
		return true
	}
	if t == nil {
		return f.Before == nil && f.After == nil && (f.IsNull == nil || *f.IsNull)
	}
	return (f.Before == nil || !t.After(*f.Before)) && (f.After == nil || !t.Before(*f.After)) && (f.IsNull == nil || !*f.IsNull)
}

// named filters what has an id and a name.
type named struct {
	ID   *words `json:"id"`
	Name *words `json:"name"`
	Type *words `json:"type"`
}

func (f *named) match(id, name, kind string) bool {
	return f == nil || f.ID.match(id) && f.Name.match(name) && f.Type.match(kind)
}

type flowRunFilter struct {
	Operator string `json:"operator"`
	ID       *words `json:"id"`
	Name     *words `json:"name"`
	Tags     *struct {
		All []string `json:"all_"`
		Any []string `json:"any_"`
	} `json:"tags"`
	DeploymentID *words `json:"deployment_id"`
	State        *struct {
		Type *words `json:"type"`
		Name *words `json:"name"`
	} `json:"state"`
	WorkQueueName  *words `json:"work_queue_name"`
	IdempotencyKey *words `json:"idempotency_key"`
	StartTime      *times `json:"start_time"`
	EndTime        *times `json:"end_time"`
	ExpectedStart  *times `json:"expected_start_time"`
	NextStart      *times `json:"next_scheduled_start_time"`
}

func (f *flowRunFilter) match(r *flowRun) bool {
	if f.Tags != nil {
		for _, t := range f.Tags.All {
			if !slices.Contains(r.Tags, t) {
				return false
			}
		}
		if f.Tags.Any != nil && !slices.ContainsFunc(f.Tags.Any, func(t string) bool { return slices.Contains(r.Tags, t) }) {
			return false
		}
	}
	if f.State != nil && (!f.State.Type.match(string(r.StateType)) || !f.State.Name.match(string(r.StateName))) {
		return false
	}
	return f.ID.match(r.ID) && f.Name.match(r.Name) && f.DeploymentID.match(string(r.DeploymentID)) &&
		f.WorkQueueName.match(string(r.WorkQueueName)) && f.IdempotencyKey.match(string(r.IdempotencyKey)) &&
		f.StartTime.match(r.StartTime) && f.EndTime.match(r.EndTime) &&
		f.ExpectedStart.match(r.ExpectedStartTime) && f.NextStart.match(r.NextScheduledStartTime)
}

// filterFlowRuns returns the flow runs that match, in order, and the page asked for.
func (s *Server) filterFlowRuns(c *call) ([]*flowRun, page, error) {
	fields, err := c.fields()
	if err != nil {
		return nil, page{}, err
	}
	p, err := readPage(fields)
	if err != nil {
		return nil, p, err
	}
	var (
		runs                             flowRunFilter
		flows, deployments, pools, queue *named
	)
	for name, into := range map[string]any{
		"flow_runs": &runs, "flows": &flows, "deployments": &deployments, "work_pools": &pools, "work_pool_queues": &queue,
	} {
		if raw, ok := fields[name]; ok {
			if err := strict(raw, into); err != nil {
				return nil, p, err
			}
		}
	}
	found := []*flowRun{}
	for _, r := range s.flowRuns {
		f, d := s.flows[r.FlowID], s.deployments[string(r.DeploymentID)]
		if d == nil {
			d = &deployment{}
		}
		if runs.match(r) && flows.match(f.ID, f.Name, "") && deployments.match(d.ID, d.Name, "") &&
			pools.match(string(r.WorkPoolID), string(r.WorkPoolName), s.poolType(r)) && queue.match(string(r.WorkQueueID), string(r.WorkQueueName), "") {
			found = append(found, r)
		}
	}
	order, ok := orders[cmp.Or(p.sort, "ID_DESC")]
	if !ok {
		return nil, p, invalid("sort", "Input should be a sort")
	}
	slices.SortFunc(found, func(a, b *flowRun) int { return cmp.Or(order(a, b), cmp.Compare(a.ID, b.ID)) })
	return found, p, nil
}

func (s *Server) poolType(r *flowRun) string {
	if p := s.pools[string(r.WorkPoolName)]; p != nil {
		return p.Type
	}
	return ""
}

var orders = map[string]func(a, b *flowRun) int{
	"ID_DESC":         func(a, b *flowRun) int { return cmp.Compare(b.ID, a.ID) },
	"NAME_ASC":        func(a, b *flowRun) int { return cmp.Compare(a.Name, b.Name) },
	"NAME_DESC":       func(a, b *flowRun) int { return cmp.Compare(b.Name, a.Name) },
	"START_TIME_ASC":  func(a, b *flowRun) int { return earlier(start(a), start(b)) },
	"START_TIME_DESC": func(a, b *flowRun) int { return earlier(start(b), start(a)) },
	"END_TIME_DESC":   func(a, b *flowRun) int { return earlier(b.EndTime, a.EndTime) },
	"EXPECTED_START_TIME_ASC": func(a, b *flowRun) int {
		return earlier(a.ExpectedStartTime, b.ExpectedStartTime)
	},
	"EXPECTED_START_TIME_DESC": func(a, b *flowRun) int {
		return earlier(b.ExpectedStartTime, a.ExpectedStartTime)
	},
	"NEXT_SCHEDULED_START_TIME_ASC": func(a, b *flowRun) int {
		return earlier(a.NextScheduledStartTime, b.NextScheduledStartTime)
	},
}

func start(r *flowRun) *time.Time { return cmp.Or(r.StartTime, r.ExpectedStartTime) }

// earlier orders times; those that are not set come first, as in SQLite.
func earlier(a, b *time.Time) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return a.Compare(*b)
}
