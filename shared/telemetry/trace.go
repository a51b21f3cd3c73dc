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
