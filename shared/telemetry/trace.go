package telemetry

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
)

type trace struct {
	id, span string
	sampled  bool
}

type traceKey struct{}

var (
	// https://www.w3.org/TR/trace-context/#traceparent-header-field-values
	traceparent = regexp.MustCompile(`^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-|$)`)
	// https://cloud.google.com/trace/docs/trace-context#legacy-http-header
	cloudTrace = regexp.MustCompile(`^([0-9a-fA-F]{32})(?:/([0-9]+))?(?:;o=([0-9]+))?$`)
)

// Attributes of a message that carry its publisher's trace, the first that is set counts:
// W3C's own name, as a CloudEvent in binary mode has it
// (https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/distributed-tracing.md),
// and that of Google's Pub/Sub clients.
var traceAttributes = []string{"traceparent", "ce-traceparent", "googclient_traceparent"}

// WithMessageTrace returns a context with the trace that a message's attributes carry; ctx
// itself where they carry none.
func WithMessageTrace(ctx context.Context, attributes map[string]string) context.Context {
	for _, name := range traceAttributes {
		if value := attributes[name]; value != "" {
			return WithTrace(ctx, http.Header{"Traceparent": {value}})
		}
	}
	return ctx
}

// Traceparent returns the trace that ctx carries as the value of a traceparent header; empty
// where there is none, or no span of it is known.
func Traceparent(ctx context.Context) string {
	t, ok := ctx.Value(traceKey{}).(trace)
	if !ok || t.span == "" {
		return ""
	}
	flags := "00"
	if t.sampled {
		flags = "01"
	}
	return "00-" + t.id + "-" + t.span + "-" + flags
}

// WithTrace returns a context whose log lines name the trace of a request's traceparent or,
// without a valid one, X-Cloud-Trace-Context header; ctx itself where there is neither.
func WithTrace(ctx context.Context, h http.Header) context.Context {
	if m := traceparent.FindStringSubmatch(h.Get("traceparent")); m != nil {
		flags, _ := strconv.ParseUint(m[3], 16, 8)
		return context.WithValue(ctx, traceKey{}, trace{id: m[1], span: m[2], sampled: flags&1 == 1})
	}
	if m := cloudTrace.FindStringSubmatch(h.Get("X-Cloud-Trace-Context")); m != nil {
		t := trace{id: m[1], sampled: m[3] == "1"}
		if n, err := strconv.ParseUint(m[2], 10, 64); err == nil && n != 0 {
			t.span = fmt.Sprintf("%016x", n)
		}
		return context.WithValue(ctx, traceKey{}, t)
	}
	return ctx
}
