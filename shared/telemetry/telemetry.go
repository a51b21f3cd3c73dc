// Package telemetry writes log lines as Cloud Logging reads them.
package telemetry

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
)

// Keys that Cloud Logging takes out of a JSON line and understands
// (https://cloud.google.com/logging/docs/structured-logging#special-payload-fields).
const (
	keyTrace     = "logging.googleapis.com/trace"
	keySpan      = "logging.googleapis.com/spanId"
	keySampled   = "logging.googleapis.com/trace_sampled"
	keyOperation = "logging.googleapis.com/operation"
	keyLabels    = "logging.googleapis.com/labels"
)

// FlowRunID is the key of the attribute that names the flow run a line is about.
const FlowRunID = "flow_run_id"

const (
	producer     = "pushpool"
	labelFlowRun = "pushpool-flow-run"
)

// NewLogger returns a logger that writes each record to w as exactly one line of JSON.
// Records logged with a context of WithTrace carry its trace in the given project. Records
// with a top-level attribute flow_run_id, or logged with a line (WithLine) that has one, get
// the operation {id: flow run id, producer: "pushpool"} and the label pushpool-flow-run, so
// that everything about a flow run is found by either. Records below level are dropped.
func NewLogger(w io.Writer, project string, level slog.Leveler) *slog.Logger {
	base := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: replace})
	return slog.New(&handler{base: base, project: project})
}

// maxValue bounds a text, in bytes: a line of more than 256 KiB is no line to Cloud Logging.
const maxValue = 16 << 10

// replace renames slog's own keys, prints durations as "1.5s" instead of nanoseconds, and cuts
// texts, whose length may be somebody else's choice.
func replace(groups []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.StringValue(err.Error())
	}
	if a.Value.Kind() == slog.KindString && len(a.Value.String()) > maxValue {
		a.Value = slog.StringValue(strings.ToValidUTF8(a.Value.String()[:maxValue], "") + "…")
	}
	if len(groups) > 0 {
		return a
	}
	switch a.Key {
	case slog.LevelKey:
		if l, ok := a.Value.Any().(slog.Level); ok {
			return slog.String("severity", severity(l))
		}
	case slog.MessageKey:
		a.Key = "message"
	}
	return a
}

func severity(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "DEBUG"
	case l < slog.LevelWarn:
		return "INFO"
	case l < slog.LevelError:
		return "WARNING"
	case l < slog.LevelError+4:
		return "ERROR"
	default:
		return "CRITICAL"
	}
}

// handler adds the special fields. They belong at the top of the line, also where the logger
// has groups, so With and WithGroup are kept as steps and taken after the fields are known.
type handler struct {
	base      slog.Handler
	project   string
	flowRunID string // from With, outside any group
	grouped   bool
	steps     []func(slog.Handler) slog.Handler
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.base.Enabled(ctx, l) }

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := h.with(func(next slog.Handler) slog.Handler { return next.WithAttrs(attrs) })
	if !h.grouped {
		for _, a := range attrs {
			if a.Key == FlowRunID {
				c.flowRunID = a.Value.Resolve().String()
			}
		}
	}
	return c
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := h.with(func(next slog.Handler) slog.Handler { return next.WithGroup(name) })
	c.grouped = true
	return c
}

func (h *handler) with(step func(slog.Handler) slog.Handler) *handler {
	c := *h
	c.steps = append(slices.Clip(h.steps), step)
	return &c
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	var special []slog.Attr
	if t, ok := ctx.Value(traceKey{}).(trace); ok {
		special = append(special, slog.String(keyTrace, "projects/"+h.project+"/traces/"+t.id))
		if t.span != "" {
			special = append(special, slog.String(keySpan, t.span))
		}
		special = append(special, slog.Bool(keySampled, t.sampled))
	}
	id := h.flowRunID
	if !h.grouped {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == FlowRunID {
				id = a.Value.Resolve().String()
			}
			return true
		})
	}
	if id == "" {
		if id = lineValue(ctx, FlowRunID); id != "" && !has(r, FlowRunID) {
			special = append(special, slog.String(FlowRunID, id))
		}
	}
	if id != "" {
		special = append(special,
			slog.Group(keyOperation, slog.String("id", id), slog.String("producer", producer)),
			slog.Group(keyLabels, slog.String(labelFlowRun, id)))
	}
	out := h.base
	if len(special) > 0 {
		out = out.WithAttrs(special)
	}
	for _, step := range h.steps {
		out = step(out)
	}
	return out.Handle(ctx, r)
}

func has(r slog.Record, key string) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == key
		return !found
	})
	return found
}
