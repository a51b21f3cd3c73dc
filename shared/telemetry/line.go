package telemetry

import (
	"context"
	"log/slog"
	"sync"
)

// line collects the attributes of the one line that is written about a message.
type line struct {
	mu    sync.Mutex
	attrs []slog.Attr
}

type lineKey struct{}

// WithLine returns a context to which Add adds attributes for the line that is written when
// the work is done.
func WithLine(ctx context.Context) context.Context {
	return context.WithValue(ctx, lineKey{}, &line{})
}

// Add adds attributes to the line that ctx carries; one of a key that is there already
// replaces it. Without a line it does nothing. It may be called by several goroutines.
func Add(ctx context.Context, attrs ...slog.Attr) {
	l, ok := ctx.Value(lineKey{}).(*line)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for _, a := range attrs {
		for i := range l.attrs {
			if l.attrs[i].Key == a.Key {
				l.attrs[i] = a
				continue next
			}
		}
		l.attrs = append(l.attrs, a)
	}
}

// Note says what was done about a flow run: on the line that ctx carries if that is about the
// same one, so that a message has one line; else on a line of its own.
func Note(ctx context.Context, log *slog.Logger, flowRunID, did string, attrs ...slog.Attr) {
	if lineValue(ctx, FlowRunID) == flowRunID {
		Add(ctx, append([]slog.Attr{slog.String("did", did)}, attrs...)...)
		return
	}
	log.LogAttrs(ctx, slog.LevelInfo, did, append([]slog.Attr{slog.String(FlowRunID, flowRunID)}, attrs...)...)
}

// Attrs returns a copy of what was added to the line that ctx carries, in the order in which
// the keys were first added.
func Attrs(ctx context.Context) []slog.Attr {
	l, ok := ctx.Value(lineKey{}).(*line)
	if !ok {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]slog.Attr(nil), l.attrs...)
}

func lineValue(ctx context.Context, key string) string {
	for _, a := range Attrs(ctx) {
		if a.Key == key {
			return a.Value.Resolve().String()
		}
	}
	return ""
}
