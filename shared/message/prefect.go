package message

import (
	"errors"
	"strings"
	"time"
)

const eventHint = "let the automation match prefect.resource.id prefect.flow-run.* only"

// decodePrefect reads the three bodies that an automation may send: {"event": {…}}, the whole
// event, and the portable template's flat object. Other fields are the template's business.
func decodePrefect(object map[string]any) (any, error) {
	switch event := object["event"].(type) {
	case map[string]any:
		return decodeEvent(event, "event.")
	case string:
		if _, ok := object["resource"]; ok {
			return decodeEvent(object, "")
		}
		return decodePortable(object)
	default:
		return nil, wrong("event", describe(event), `write {"event": {{ event | tojson }}} in the automation's payload`)
	}
}

func decodePortable(object map[string]any) (any, error) {
	id, err := flowRunID(object["flow_run"], "flow_run", `write "{{ event.resource.id }}" in the automation's payload`)
	occurred, timeErr := occurredAt(object, "occurred")
	if err = errors.Join(err, timeErr); err != nil {
		return nil, err
	}
	return PrefectEvent{
		ID: text(object, "id"), FlowRunID: id, Occurred: occurred,
		StateType: text(object, "state_type"), StateName: text(object, "state_name"),
		WorkPool: text(object, "work_pool"), DeploymentID: text(object, "deployment_id"),
	}, nil
}

func decodeEvent(event map[string]any, path string) (any, error) {
	resource, ok := event["resource"].(map[string]any)
	if !ok {
		return nil, wrong(path+"resource", describe(event["resource"]), "send the whole event, as {{ event | tojson }} gives it")
	}
	id, err := flowRunID(resource["prefect.resource.id"], path+"resource.prefect.resource.id", eventHint)
	occurred, timeErr := occurredAt(event, path+"occurred")
	if err = errors.Join(err, timeErr); err != nil {
		return nil, err
	}
	e := PrefectEvent{
		ID: text(event, "id"), FlowRunID: id, Occurred: occurred,
		StateType: text(resource, "prefect.state-type"), StateName: text(resource, "prefect.state-name"),
	}
	related, _ := event["related"].([]any)
	for _, r := range related {
		r, _ := r.(map[string]any)
		switch text(r, "prefect.resource.role") {
		case "work-pool":
			e.WorkPool = text(r, "prefect.resource.name")
		case "deployment":
			e.DeploymentID = strings.TrimPrefix(text(r, "prefect.resource.id"), "prefect.deployment.")
		}
	}
	return e, nil
}

func flowRunID(value any, field, hint string) (string, error) {
	s, _ := value.(string)
	// The prefix may be missing: a template can use the filter flow_run_id.
	id, ok := parseUUID(strings.TrimPrefix(s, "prefect.flow-run."))
	if !ok {
		return "", wrong(field, strings.Replace(describe(value), "is not one", "is not a flow run with a UUID", 1), hint)
	}
	return id, nil
}

func occurredAt(object map[string]any, field string) (time.Time, error) {
	s := text(object, "occurred")
	if s == "" {
		return time.Time{}, nil
	}
	t, err := parseTime(s)
	if err != nil {
		return t, wrong(field, describe(s), `write a time like "2026-01-01T06:00:00Z"`)
	}
	return t, nil
}

// parseTime reads RFC 3339, also with t and z in lower case as the RFC allows.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, strings.ToUpper(s))
	return t.UTC(), err
}

func text(object map[string]any, key string) string {
	s, _ := object[key].(string)
	return s
}
