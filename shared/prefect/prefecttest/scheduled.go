package prefecttest

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// scheduledFlowRuns returns what may start, as the query of a real server does:
// https://github.com/PrefectHQ/prefect/blob/main/src/prefect/server/database/sql/sqlite/get-runs-from-worker-queues.sql.jinja
func (s *Server) scheduledFlowRuns(c *call) (int, any, error) {
	p, err := s.pool(c.PathValue("pool"))
	if err != nil {
		return 0, nil, err
	}
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	part, err := readPage(fields)
	if err != nil {
		return 0, nil, err
	}
	var (
		names         []string
		before, after *time.Time
	)
	for name, into := range map[string]any{"work_queue_names": &names, "scheduled_before": &before, "scheduled_after": &after} {
		if raw, ok := fields[name]; ok && json.Unmarshal(raw, into) != nil {
			return 0, nil, invalid(name, "Input should be valid")
		}
	}
	queues := p.queues
	if len(names) > 0 {
		queues = nil
		for _, n := range names {
			q, err := s.queue(p.Name, n, false)
			if err != nil {
				return 0, nil, err
			}
			queues = append(queues, q)
		}
		slices.SortFunc(queues, func(a, b *workQueue) int { return cmp.Compare(a.Priority, b.Priority) })
	}
	due := s.startable(p, queues, func(r *flowRun) bool {
		return (before == nil || !r.NextScheduledStartTime.After(*before)) && (after == nil || !r.NextScheduledStartTime.Before(*after))
	})
	s.markPolled(queues)
	rows := []map[string]any{}
	for _, r := range due[:min(len(due), part.limit)] {
		shown := *r
		shown.State, shown.WorkPoolName = nil, "" // not loaded by the query
		rows = append(rows, map[string]any{"work_pool_id": p.ID, "work_queue_id": r.WorkQueueID, "flow_run": &shown})
	}
	return http.StatusOK, rows, nil
}

// startable applies pauses and limits, the most urgent flow run first.
func (s *Server) startable(p *workPool, queues []*workQueue, wanted func(*flowRun) bool) []*flowRun {
	if p.IsPaused {
		return nil
	}
	var due []*flowRun
	for _, q := range queues { // by priority
		if q.IsPaused {
			continue
		}
		var waiting []*flowRun
		for _, r := range s.flowRuns {
			if string(r.WorkQueueID) == q.ID && r.StateType == flowrun.StateScheduled && r.Policy.RetryType != "in_process" &&
				r.NextScheduledStartTime != nil && wanted(r) {
				waiting = append(waiting, r)
			}
		}
		slices.SortFunc(waiting, func(a, b *flowRun) int {
			return cmp.Or(a.NextScheduledStartTime.Compare(*b.NextScheduledStartTime), cmp.Compare(a.ID, b.ID))
		})
		if q.Limit != nil {
			waiting = waiting[:max(0, min(len(waiting), *q.Limit-s.active(q)))]
		}
		due = append(due, waiting...)
	}
	if p.Limit != nil {
		free := *p.Limit
		for _, q := range p.queues {
			free -= s.active(q)
		}
		due = due[:max(0, min(len(due), free))]
	}
	return due
}

// markPolled shows the queues, and the deployments that use them, as served.
func (s *Server) markPolled(queues []*workQueue) {
	now := s.now()
	for _, q := range queues {
		q.LastPolled = &now
		for _, d := range s.deployments {
			if string(d.WorkQueueID) == q.ID {
				d.LastPolled = &now
			}
		}
	}
}
