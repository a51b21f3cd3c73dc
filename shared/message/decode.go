package message

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// MaxBytes bounds a message's data. A Prefect event has 1.5 MB at most, and up to twice that
// where it travels as a JSON string.
const MaxBytes = 4 << 20

const accepted = `write {"deployment": "flow name/deployment name"} to ask for a flow run, {"flow_run_id": "…"} to dispatch one, ` +
	`{"work_pool": "…"} or {"deployment_id": "…"} to wake what waits, or send a Prefect automation's body: ` +
	`{"event": {{ event | tojson }}}, the event itself, or the portable template`

// fieldError is what is wrong with one field, and what to write instead.
type fieldError struct{ field, problem, write string }

func (e *fieldError) Error() string {
	return fmt.Sprintf("%s: %s; %s", e.field, e.problem, e.write)
}

func wrong(field, problem, write string) error { return &fieldError{field, problem, write} }

// Decode returns the RunRequest, Dispatch, Wake or PrefectEvent that a message's data holds.
// The data is a JSON object, a JSON string that holds one (Prefect before 3.4.2 encodes the
// automation's body twice), or a CloudEvent with either as its data: structured, or binary
// with its context in attributes named ce-*. Every error is for good: it names each field
// that is wrong and says what to write.
func Decode(data []byte, attributes map[string]string) (any, error) {
	if len(data) > MaxBytes {
		return nil, wrong("message", fmt.Sprintf("%d bytes", len(data)),
			fmt.Sprintf("send at most %d, and large data by reference", MaxBytes))
	}
	data, err := unwrapBinary(data, attributes)
	if err != nil {
		return nil, err
	}
	object, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	if _, ok := object["specversion"]; ok {
		inner, err := unwrapStructured(data)
		if err != nil {
			return nil, err
		}
		if object, err = parseObject(inner); err != nil {
			return nil, fmt.Errorf("CloudEvent's data: %w", err)
		}
	}
	return decodeObject(object)
}

func decodeObject(object map[string]any) (any, error) {
	has := func(key string) bool { _, ok := object[key]; return ok }
	switch {
	case has("event"):
		return decodePrefect(object)
	case has("flow_run_id"):
		return decodeDispatch(object)
	case has("deployment"), slices.ContainsFunc(requestFields, has):
		return decodeRunRequest(object)
	case has("work_pool"), has("deployment_id"):
		return decodeWake(object)
	}
	if len(object) == 0 {
		return nil, wrong("message", "an empty object", accepted)
	}
	return nil, wrong("message", "unknown fields "+cut(strings.Join(slices.Sorted(maps.Keys(object)), ", ")), accepted)
}

func decodeDispatch(object map[string]any) (any, error) {
	id, err := uuidField(object, "flow_run_id", "flow run")
	if err = errors.Join(err, others(object, "flow_run_id")); err != nil {
		return nil, err
	}
	return Dispatch{FlowRunID: id}, nil
}

func decodeWake(object map[string]any) (any, error) {
	var w Wake
	var errs []error
	if v, ok := object["work_pool"]; ok {
		if w.WorkPool, ok = v.(string); !ok || w.WorkPool == "" {
			errs = append(errs, wrong("work_pool", describe(v), "write the work pool's name"))
		}
	}
	if _, ok := object["deployment_id"]; ok {
		id, err := uuidField(object, "deployment_id", "deployment")
		w.DeploymentID, errs = id, append(errs, err)
	}
	if v, ok := object["ready"]; ok {
		if w.Ready, ok = v.(bool); !ok {
			errs = append(errs, wrong("ready", describe(v), "write true or false"))
		}
	}
	if err := errors.Join(append(errs, others(object, "work_pool", "deployment_id", "ready"))...); err != nil {
		return nil, err
	}
	return w, nil
}

// others refuses every field but the given ones: a message that mixes two meanings has none.
func others(object map[string]any, allowed ...string) error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if !slices.Contains(allowed, key) {
			errs = append(errs, wrong(cut(key), "does not belong beside "+allowed[0], "leave it out"))
		}
	}
	return errors.Join(errs...)
}

func uuidField(object map[string]any, field, kind string) (string, error) {
	s, _ := object[field].(string)
	id, ok := parseUUID(s)
	if !ok {
		return "", wrong(field, describe(object[field]), "write the "+kind+"'s id, a UUID")
	}
	return id, nil
}

// parseUUID takes only the form Prefect prints, in either case, and returns it in lower case.
func parseUUID(s string) (string, bool) {
	if len(s) != 36 {
		return "", false
	}
	id, err := uuid.Parse(s)
	return id.String(), err == nil
}

// parseObject decodes a JSON object, or a JSON string that holds one.
func parseObject(data []byte) (map[string]any, error) {
	value, err := parse(data)
	if err != nil {
		return nil, err
	}
	if text, ok := value.(string); ok {
		if strings.HasPrefix(text, "Failed to render template") {
			return nil, wrong("message", "Prefect could not render the automation's payload: "+cut(text),
				"use the portable template in the automation")
		}
		if value, err = parse([]byte(text)); err != nil {
			return nil, fmt.Errorf("JSON string: %w", err)
		}
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, wrong("message", describe(value), accepted)
	}
	return object, nil
}

// parse decodes one JSON value. Numbers keep their text.
func parse(data []byte) (any, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, wrong("message", "empty", accepted)
	}
	if !utf8.Valid(data) {
		return nil, wrong("message", "not UTF-8", accepted)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return nil, wrong("message", "not JSON: "+err.Error(), accepted)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, wrong("message", "more than one JSON value", accepted)
	}
	return value, nil
}

// describe says what was found in place of what was expected.
func describe(value any) string {
	switch v := value.(type) {
	case nil:
		return "missing or null"
	case string:
		if v == "" {
			return "empty"
		}
		return fmt.Sprintf("%q is not one", cut(v))
	case bool:
		return "a boolean"
	case json.Number:
		return "the number " + cut(v.String())
	case []any:
		return "an array"
	default:
		return "an object"
	}
}

// cut shortens what a message holds for use in an error.
func cut(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
