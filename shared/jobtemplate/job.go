package jobtemplate

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"cloud.google.com/go/run/apiv2/runpb"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Job returns the body as a message of Cloud Run's API. A field that Cloud Run does not
// have, or a value that a field cannot take, is a Permanent error that names the field.
func (r Rendered) Job() (*runpb.Job, error) {
	job := &runpb.Job{}
	err := unmarshal(r.Body, job)
	if err == nil {
		return job, nil
	}
	path, what := offender(r.Body, job.ProtoReflect().Descriptor(), "job_body")
	return nil, &flowrun.Error{
		Fault: flowrun.Permanent, Act: "use " + path, Err: errors.New(what),
		Hint: "correct it in the work pool's base job template, or the job variable it comes from",
	}
}

func unmarshal(v any, m proto.Message) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return protojson.Unmarshal(b, m)
}

// offender returns the path of the first thing in a body that keeps it from being a
// message, and what is wrong there. protojson's own error names no path, and can show the
// value, which can be a secret.
func offender(body map[string]any, m protoreflect.MessageDescriptor, path string) (where, what string) {
	for _, key := range names(body) {
		if unmarshal(map[string]any{key: body[key]}, dynamicpb.NewMessage(m)) == nil {
			continue
		}
		where = path + "." + key
		field := m.Fields().ByJSONName(key)
		if field == nil {
			field = m.Fields().ByTextName(key)
		}
		if field == nil {
			return where, "Cloud Run's v2 API has no such field"
		}
		what = "Cloud Run's v2 API expects " + expected(field)
		if field.IsMap() || field.Kind() != protoreflect.MessageKind {
			return where, what
		}
		items, isList := body[key].([]any)
		if isList != field.IsList() {
			return where, what
		}
		if !isList {
			items = []any{body[key]}
		}
		for i, item := range items {
			o, ok := item.(map[string]any)
			if ok && unmarshal(o, dynamicpb.NewMessage(field.Message())) == nil {
				continue
			}
			if isList {
				where = fmt.Sprintf("%s.%s[%d]", path, key, i)
			}
			if !ok {
				return where, what
			}
			return offender(o, field.Message(), where)
		}
		return where, what
	}
	return path, "two of its keys exclude each other"
}

// expected says what JSON a field takes.
func expected(f protoreflect.FieldDescriptor) string {
	if f.IsMap() {
		return "an object of names and " + plural(f.MapValue())
	}
	if f.IsList() {
		return "an array of " + plural(f)
	}
	switch f.Kind() {
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.StringKind, protoreflect.BytesKind:
		return "a string"
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		list := make([]string, values.Len())
		for i := range list {
			list[i] = string(values.Get(i).Name())
		}
		return "one of " + strings.Join(list, ", ")
	case protoreflect.MessageKind:
		if f.Message().FullName() == "google.protobuf.Duration" {
			return `a duration such as "600s"`
		}
		return "an object"
	}
	return "a whole number"
}

func plural(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.StringKind:
		return "strings"
	case protoreflect.MessageKind:
		return "objects"
	}
	return "other values"
}
