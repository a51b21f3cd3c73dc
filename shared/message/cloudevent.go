package message

import (
	"strings"

	"github.com/cloudevents/sdk-go/v2/event"
)

// prefix of the attributes that hold the context of a CloudEvent in binary mode, as in
// https://github.com/google/knative-gcp/blob/main/docs/spec/pubsub-protocol-binding.md.
const prefix = "ce-"

const cloudEventHint = "send a CloudEvent 1.0 with specversion, id, source and type, or the bare JSON object"

// unwrapBinary returns data itself; where attributes say that it is the data of a CloudEvent,
// only if that is a valid one.
func unwrapBinary(data []byte, attributes map[string]string) ([]byte, error) {
	context := map[string]string{}
	for key, value := range attributes {
		if key = strings.ToLower(key); strings.HasPrefix(key, prefix) {
			context[strings.TrimPrefix(key, prefix)] = value
		}
	}
	version, ok := context["specversion"]
	if !ok {
		return data, nil
	}
	if version != event.CloudEventsVersionV1 && version != event.CloudEventsVersionV03 {
		return nil, wrong("ce-specversion", describe(version), `write "1.0"`)
	}
	e := event.New(version)
	for key, value := range context {
		switch key {
		case "specversion":
		case "id":
			e.SetID(value)
		case "source":
			e.SetSource(value)
		case "type":
			e.SetType(value)
		}
	}
	if err := e.Validate(); err != nil {
		return nil, wrong("CloudEvent", oneLine(err), cloudEventHint)
	}
	return data, nil
}

// unwrapStructured returns the data of a CloudEvent that is a JSON object.
func unwrapStructured(data []byte) ([]byte, error) {
	if value, err := parse(data); err == nil {
		if text, ok := value.(string); ok {
			data = []byte(text)
		}
	}
	var e event.Event
	err := e.UnmarshalJSON(data)
	if err == nil {
		err = e.Validate()
	}
	if err != nil {
		return nil, wrong("CloudEvent", oneLine(err), cloudEventHint)
	}
	return e.Data(), nil
}

func oneLine(err error) string { return cut(strings.Join(strings.Fields(err.Error()), " ")) }
