package prefecttest

import (
	"strings"
	"time"
)

// event is a flow run's change of state; its fields are in the order in which templates show them.
type event struct {
	Event    string              `json:"event"`
	Follows  text                `json:"follows"`
	ID       string              `json:"id"`
	Occurred time.Time           `json:"occurred"`
	Payload  map[string]any      `json:"payload"`
	Received time.Time           `json:"received"`
	Related  []map[string]string `json:"related"`
	Resource map[string]string   `json:"resource"`
}

const (
	// tight is how young the state before has to be for an event to wait for that state's own event.
	tight = 5 * time.Minute
	// maxHeld is how long it waits.
	maxHeld = 15 * time.Minute
)

// heldEvent waits for the event that it follows.
type heldEvent struct {
	event *event
	until time.Time
}

// emit makes the event of a change of state, and hands it to the automations: at once, unless it
// follows an event that there has not been. Flow runs of schedules start without one, which is why
// their first event can be late by a quarter of an hour.
func (s *Server) emit(run *flowRun, initial, st *state) {
	if s.opts.NoEvents {
		return
	}
	e := &event{
		ID: st.ID, Event: "prefect.flow-run." + st.Name, Occurred: st.Timestamp, Received: s.now(), Related: s.related(run),
		Resource: map[string]string{
			"prefect.resource.id": "prefect.flow-run." + run.ID, "prefect.resource.name": run.Name,
			"prefect.state-message": string(st.Message), "prefect.state-name": st.Name, "prefect.state-type": string(st.Type),
			"prefect.state-timestamp": isoformat(st.Timestamp),
		},
		Payload: map[string]any{
			"intended":      map[string]any{"from": nil, "to": st.Type},
			"initial_state": nil, "validated_state": brief(st),
		},
	}
	if initial != nil {
		e.Payload["intended"] = map[string]any{"from": initial.Type, "to": st.Type}
		e.Payload["initial_state"] = brief(initial)
		if st.Timestamp.Sub(initial.Timestamp) < tight {
			e.Follows = text(initial.ID)
		}
	}
	if e.Follows != "" && !s.seen[string(e.Follows)] {
		s.held = append(s.held, heldEvent{event: e, until: s.now().Add(maxHeld)})
		return
	}
	s.receive(e)
}

// receive hands an event to the automations, and then those that waited for it.
func (s *Server) receive(e *event) {
	s.seen[e.ID] = true
	s.trigger(e)
	s.release(func(h heldEvent) bool { return string(h.event.Follows) == e.ID })
}

func (s *Server) release(ready func(heldEvent) bool) {
	var now, later []heldEvent
	for _, h := range s.held {
		if ready(h) {
			now = append(now, h)
		} else {
			later = append(later, h)
		}
	}
	s.held = later
	for _, h := range now {
		s.receive(h.event)
	}
}

func brief(st *state) map[string]any {
	b := map[string]any{"type": st.Type, "name": st.Name}
	if st.Message != "" {
		b["message"] = st.Message
	}
	return b
}

func (s *Server) related(run *flowRun) []map[string]string {
	resource := func(kind, id, name string) map[string]string {
		return map[string]string{"prefect.resource.id": "prefect." + kind + "." + id, "prefect.resource.role": kind, "prefect.resource.name": name}
	}
	list := []map[string]string{resource("flow", run.FlowID, s.flows[run.FlowID].Name)}
	if d := s.deployments[string(run.DeploymentID)]; d != nil {
		list = append(list, resource("deployment", d.ID, d.Name))
	}
	if p := s.pools[string(run.WorkPoolName)]; p != nil {
		list = append(list, resource("work-queue", string(run.WorkQueueID), string(run.WorkQueueName)))
		pool := resource("work-pool", p.ID, p.Name)
		pool["prefect.work-pool.type"] = p.Type
		list = append(list, pool)
	}
	for _, t := range run.Tags {
		list = append(list, map[string]string{"prefect.resource.id": "prefect.tag." + t, "prefect.resource.role": "tag"})
	}
	return list
}

// isoformat is Python's: with microseconds, and the offset in figures.
func isoformat(t time.Time) string {
	return strings.TrimSuffix(t.UTC().Format("2006-01-02T15:04:05.000000Z"), "Z") + "+00:00"
}
