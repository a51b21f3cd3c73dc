package prefecttest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/robfig/cron/v3"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// schedule is a deployment's schedule as answers show it.
type schedule struct {
	ID           string         `json:"id"`
	Created      time.Time      `json:"created"`
	Updated      time.Time      `json:"updated"`
	DeploymentID string         `json:"deployment_id"`
	Schedule     timetable      `json:"schedule"`
	Active       bool           `json:"active"`
	MaxRuns      *int           `json:"max_scheduled_runs"`
	Parameters   map[string]any `json:"parameters"`
	Slug         text           `json:"slug"`
	Replaces     text           `json:"replaces,omitempty"`
}

// UnmarshalJSON implements json.Unmarshaler: a schedule is active unless it says otherwise.
func (s *schedule) UnmarshalJSON(data []byte) error {
	type plain schedule
	n := plain{Active: true, Parameters: map[string]any{}}
	if s.ID != "" {
		n = plain(*s)
	}
	if err := json.Unmarshal(data, &n); err != nil {
		return err
	}
	if n.ID != s.ID || n.DeploymentID != s.DeploymentID {
		return fmt.Errorf("schedules: Extra inputs are not permitted")
	}
	*s = schedule(n)
	return nil
}

// timetable is an interval or a cron line.
type timetable struct {
	Interval float64    `json:"interval,omitempty"` // seconds
	Anchor   *time.Time `json:"anchor_date,omitempty"`
	Cron     string     `json:"cron,omitempty"`
	DayOr    *bool      `json:"day_or,omitempty"`
	Timezone string     `json:"timezone"`

	cron cron.Schedule
}

// parse checks the timetable and fills in what it leaves out.
func (t *timetable) parse(now time.Time) error {
	if t.Timezone == "" {
		t.Timezone = "UTC"
	}
	if _, err := time.LoadLocation(t.Timezone); err != nil {
		return invalid("schedule.timezone", "Invalid timezone")
	}
	switch {
	case t.Cron != "" && t.Interval == 0:
		parsed, err := cron.ParseStandard("CRON_TZ=" + t.Timezone + " " + t.Cron)
		if err != nil {
			return invalid("schedule.cron", fmt.Sprintf("Invalid cron string: %q", t.Cron))
		}
		if t.DayOr != nil && !*t.DayOr {
			return invalid("schedule.day_or", "prefecttest has day_or true only")
		}
		t.cron = parsed
	case t.Interval > 0 && t.Cron == "":
		if t.Anchor == nil {
			t.Anchor = &now
		}
	default:
		return invalid("schedule", "prefecttest has schedules with an interval or a cron line")
	}
	return nil
}

// next returns the first time of the timetable after another.
func (t *timetable) next(after time.Time) time.Time {
	if t.cron != nil {
		return t.cron.Next(after).UTC()
	}
	every := time.Duration(t.Interval * float64(time.Second))
	steps := after.Sub(*t.Anchor) / every
	if at := t.Anchor.Add(steps * every); at.After(after) { // the anchor is in the future
		return at.UTC()
	}
	return t.Anchor.Add((steps + 1) * every).UTC()
}

func (s *Server) scheduleRoutes() {
	s.handle("GET /deployments/{id}/schedules", func(c *call) (int, any, error) {
		d, err := s.deployment(c)
		if err != nil {
			return 0, nil, err
		}
		return http.StatusOK, d.Schedules, nil
	})
	s.handle("PATCH /deployments/{id}/schedules/{schedule}", func(c *call) (int, any, error) {
		d, err := s.deployment(c)
		if err != nil {
			return 0, nil, err
		}
		i := slices.IndexFunc(d.Schedules, func(sch *schedule) bool { return sch.ID == c.PathValue("schedule") })
		if i < 0 {
			return 0, nil, missing("Schedule not found.")
		}
		if err := c.only("active", "schedule", "max_scheduled_runs", "parameters", "slug"); err != nil {
			return 0, nil, err
		}
		changed := *d.Schedules[i]
		if err := c.decode(&changed); err != nil {
			return 0, nil, err
		}
		if err := changed.Schedule.parse(s.now()); err != nil {
			return 0, nil, err
		}
		d.Schedules[i] = &changed
		s.deleteScheduled(d, true)
		return http.StatusNoContent, nil, nil
	})
}

// setSchedules replaces the deployment's schedules.
func (s *Server) setSchedules(d *deployment, schedules []*schedule) error {
	now := s.now()
	d.Schedules = []*schedule{}
	for _, sch := range schedules {
		if err := sch.Schedule.parse(now); err != nil {
			return err
		}
		sch.ID, sch.Created, sch.Updated, sch.DeploymentID = uuid.NewString(), now, now, d.ID
		d.Schedules = append(d.Schedules, sch)
	}
	return nil
}

// What the background services go by.
const (
	minScheduled, maxScheduled = 3, 100 // flow runs of a schedule in the future
	minAhead                   = time.Hour
	maxAhead                   = 100 * 24 * time.Hour
	lateAfter                  = 15 * time.Second
	maxCancelling              = 5 * time.Minute
)

// Tick runs each background service once: schedules, marking flow runs late, pauses and
// cancellations that took too long, and events that waited for another.
func (s *Server) Tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := map[text]bool{}
	for _, r := range s.flowRuns {
		keys[r.IdempotencyKey] = true
	}
	for _, id := range slices.Sorted(maps.Keys(s.deployments)) {
		d := s.deployments[id]
		for _, sch := range d.Schedules {
			if sch.Active && !d.Paused {
				s.scheduleAhead(d, sch, keys)
			}
		}
	}
	now := s.now()
	for _, id := range slices.Sorted(maps.Keys(s.flowRuns)) {
		r := s.flowRuns[id]
		switch at := r.NextScheduledStartTime; {
		case r.StateType == flowrun.StateScheduled && r.StateName == "Scheduled" && at != nil && !at.Add(lateAfter).After(now):
			s.propose(r, &state{Type: flowrun.StateScheduled, Name: "Late", Details: stateDetails{ScheduledTime: at}}, false)
		case r.StateType == flowrun.StatePaused && r.State.Details.PauseTimeout != nil && r.State.Details.PauseTimeout.Before(now):
			s.propose(r, &state{Type: flowrun.StateFailed, Name: "Failed", Message: "The flow was paused and never resumed."}, true)
		case r.StateType == flowrun.StateCancelling && now.Sub(r.State.Timestamp) > maxCancelling && !s.v2():
			s.propose(r, &state{
				Type: flowrun.StateCancelled, Name: "Cancelled",
				Message: "Flow run cancellation timed out; marked this flow run as Cancelled.",
			}, true)
		}
	}
	s.release(func(h heldEvent) bool { return !h.until.After(now) })
}

// scheduleAhead creates the flow runs that the schedule still lacks: three at least, and an hour of them.
func (s *Server) scheduleAhead(d *deployment, sch *schedule, keys map[text]bool) {
	now := s.now()
	most := maxScheduled
	if sch.MaxRuns != nil {
		most = min(most, *sch.MaxRuns)
	}
	at := now
	for n := range most {
		at = sch.Schedule.next(at)
		if at.IsZero() || at.Sub(now) > maxAhead || n >= minScheduled && at.Sub(now) > minAhead {
			return
		}
		key := text(fmt.Sprintf("scheduled %s %s %s", d.ID, sch.ID, at.Format(time.RFC3339Nano)))
		if keys[key] {
			continue
		}
		run, start := s.newOf(d), at
		run.IdempotencyKey, run.AutoScheduled, run.JobVariables = key, true, map[string]any{}
		run.Parameters = maps.Clone(d.Parameters)
		maps.Copy(run.Parameters, sch.Parameters)
		run.Tags = append([]string{"auto-scheduled"}, d.Tags...)
		s.newFlowRun(run, &state{
			Type: flowrun.StateScheduled, Name: "Scheduled", Message: "Flow run scheduled", Details: stateDetails{ScheduledTime: &start},
		})
	}
}
