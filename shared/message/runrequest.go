package message

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

//go:embed run-request.schema.json
var schemaJSON []byte

// Schema returns the JSON Schema (draft 2020-12) of a run request.
func Schema() []byte { return bytes.Clone(schemaJSON) }

// requestFields are the fields that only a run request has, besides deployment.
var requestFields = slices.DeleteFunc(slices.Sorted(maps.Keys(whatToWrite)), func(f string) bool { return f == "deployment" })

// whatToWrite completes an error about a field of a run request.
var whatToWrite = map[string]string{
	"deployment":      `write "flow name/deployment name" or the deployment's id`,
	"parameters":      "write an object, parameter names to values",
	"job_variables":   "write an object, names of job variables to values",
	"tags":            "write an array of strings that are not empty",
	"name":            "write a string that is not empty, or leave it out",
	"idempotency_key": "write a string that is not empty, or leave it out",
	"work_queue":      "write the name of a work queue, or leave it out",
	"scheduled_time":  `write a time like "2026-01-01T06:00:00Z"`,
	"delay":           `write a duration like "90s", "5m" or "2h"`,
	"expires_at":      `write a time like "2026-01-01T06:00:00Z"`,
}

var compiled = sync.OnceValue(func() *jsonschema.Schema {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemaJSON))
	if err != nil {
		panic(fmt.Sprintf("run-request.schema.json: %v", err))
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("run-request.schema.json", doc); err != nil {
		panic(fmt.Sprintf("run-request.schema.json: %v", err))
	}
	return c.MustCompile("run-request.schema.json")
})

func decodeRunRequest(object map[string]any) (any, error) {
	if err := compiled().Validate(object); err != nil {
		var invalid *jsonschema.ValidationError
		if !errors.As(err, &invalid) {
			return nil, wrong("message", err.Error(), accepted)
		}
		return nil, errors.Join(explain(invalid)...)
	}
	r := RunRequest{
		Deployment: text(object, "deployment"), Name: text(object, "name"),
		IdempotencyKey: text(object, "idempotency_key"), WorkQueue: text(object, "work_queue"),
	}
	if id, ok := parseUUID(r.Deployment); ok {
		r.Deployment = id
	}
	r.Parameters, _ = object["parameters"].(map[string]any)
	r.JobVariables, _ = object["job_variables"].(map[string]any)
	if tags, ok := object["tags"].([]any); ok {
		for _, tag := range tags {
			r.Tags = append(r.Tags, fmt.Sprint(tag))
		}
	}
	var errs []error
	r.ScheduledTime, errs = timeField(object, "scheduled_time", errs)
	r.ExpiresAt, errs = timeField(object, "expires_at", errs)
	if s := text(object, "delay"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil { // too long for a duration
			errs = append(errs, wrong("delay", fmt.Sprintf("%q is out of range", cut(s)), whatToWrite["delay"]))
		}
		r.Delay = d
	}
	if r.ScheduledTime != nil && r.ExpiresAt != nil && r.ExpiresAt.Before(*r.ScheduledTime) {
		errs = append(errs, wrong("expires_at", "lies before scheduled_time", "write a later time"))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, nil
}

func timeField(object map[string]any, field string, errs []error) (*time.Time, []error) {
	s := text(object, field)
	if s == "" {
		return nil, errs
	}
	t, err := parseTime(s)
	if err != nil { // the schema knows leap seconds, Go does not
		return nil, append(errs, wrong(field, describe(s), whatToWrite[field]))
	}
	return &t, errs
}

// explain turns each innermost cause into an error that names its field.
func explain(v *jsonschema.ValidationError) []error {
	if len(v.Causes) > 0 {
		var errs []error
		for _, c := range v.Causes {
			errs = append(errs, explain(c)...)
		}
		return errs
	}
	var errs []error
	switch k := v.ErrorKind.(type) {
	case *kind.Required:
		for _, f := range k.Missing {
			errs = append(errs, wrong(f, "missing", whatToWrite[f]))
		}
		return errs
	case *kind.AdditionalProperties:
		for _, f := range slices.Sorted(slices.Values(k.Properties)) {
			errs = append(errs, wrong(cut(f), "unknown field",
				"a run request has only "+strings.Join(slices.Sorted(maps.Keys(whatToWrite)), ", ")))
		}
		return errs
	case *kind.FalseSchema:
		return []error{wrong(field(v), "given together with delay", "write one of the two")}
	case *kind.Type:
		return []error{wrong(field(v), fmt.Sprintf("is of type %s, not %s", k.Got, strings.Join(k.Want, " or ")), hint(v))}
	case *kind.MinLength:
		return []error{wrong(field(v), "empty", hint(v))}
	case *kind.Pattern:
		return []error{wrong(field(v), describe(k.Got), hint(v))}
	case *kind.Format:
		return []error{wrong(field(v), describe(k.Got), hint(v))}
	default:
		return []error{wrong(field(v), "not valid", hint(v))}
	}
}

func field(v *jsonschema.ValidationError) string {
	if len(v.InstanceLocation) == 0 {
		return "message"
	}
	return cut(strings.Join(v.InstanceLocation, "."))
}

func hint(v *jsonschema.ValidationError) string {
	if len(v.InstanceLocation) > 0 {
		if h, ok := whatToWrite[v.InstanceLocation[0]]; ok {
			return h
		}
	}
	return accepted
}
