package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/telemetry"
)

func TestLines(t *testing.T) {
	const traceID = "0af7651916cd43dd8448eb211c80319c"
	about := map[string]any{
		"flow_run_id":                      "f",
		"logging.googleapis.com/operation": map[string]any{"id": "f", "producer": "pushpool"},
		"logging.googleapis.com/labels":    map[string]any{"pushpool-flow-run": "f"},
	}
	with := func(more map[string]any) map[string]any {
		m := map[string]any{"severity": "INFO", "message": "m"}
		for k, v := range about {
			m[k] = v
		}
		for k, v := range more {
			m[k] = v
		}
		return m
	}
	traced := func(header, value string) context.Context {
		return telemetry.WithTrace(t.Context(), http.Header{http.CanonicalHeaderKey(header): {value}})
	}
	line := telemetry.WithLine(t.Context())
	telemetry.Add(line, slog.String("flow_run_id", "f"), slog.String("work_pool", "p"))
	for name, test := range map[string]struct {
		log  func(*slog.Logger)
		want map[string]any
	}{
		"severity is Cloud Logging's": {func(l *slog.Logger) { l.Warn("m") }, map[string]any{"severity": "WARNING", "message": "m"}},
		"a level above ERROR is CRITICAL": {
			func(l *slog.Logger) { l.Log(t.Context(), slog.LevelError+4, "m") },
			map[string]any{"severity": "CRITICAL", "message": "m"},
		},
		"durations and errors are text": {
			func(l *slog.Logger) { l.Error("m", "d", 1500*time.Millisecond, "error", errors.New("a\nb")) },
			map[string]any{"severity": "ERROR", "message": "m", "d": "1.5s", "error": "a\nb"},
		},
		"what is too long is cut": {
			func(l *slog.Logger) {
				l.Error("m", "a", strings.Repeat("é", 1<<20), "error", errors.New(strings.Repeat("x", 1<<20)))
			},
			map[string]any{"severity": "ERROR", "message": "m", "a": strings.Repeat("é", 8<<10) + "…", "error": strings.Repeat("x", 16<<10) + "…"},
		},
		"a flow run in the record": {func(l *slog.Logger) { l.Info("m", "flow_run_id", "f") }, with(nil)},
		"a flow run of the logger": {func(l *slog.Logger) { l.With("flow_run_id", "f").Info("m") }, with(nil)},
		"a flow run of the line":   {func(l *slog.Logger) { l.InfoContext(line, "m") }, with(nil)},
		"the record goes before the line": {
			func(l *slog.Logger) { l.InfoContext(line, "m", "flow_run_id", "f") }, with(nil),
		},
		"an empty flow run is none": {
			func(l *slog.Logger) { l.Info("m", "flow_run_id", "") },
			map[string]any{"severity": "INFO", "message": "m", "flow_run_id": ""},
		},
		"special fields stay outside groups": {
			func(l *slog.Logger) { l.With("flow_run_id", "f").WithGroup("g").Info("m", "a", 1) },
			with(map[string]any{"g": map[string]any{"a": 1.0}}),
		},
		"a flow run within a group is somebody else's": {
			func(l *slog.Logger) { l.WithGroup("g").Info("m", "flow_run_id", "f") },
			map[string]any{"severity": "INFO", "message": "m", "g": map[string]any{"flow_run_id": "f"}},
		},
		"traceparent": {
			func(l *slog.Logger) { l.InfoContext(traced("traceparent", "00-"+traceID+"-b7ad6b7169203331-01"), "m") },
			map[string]any{"severity": "INFO", "message": "m", "logging.googleapis.com/trace": "projects/proj/traces/" + traceID, "logging.googleapis.com/spanId": "b7ad6b7169203331", "logging.googleapis.com/trace_sampled": true},
		},
		"X-Cloud-Trace-Context": {
			func(l *slog.Logger) { l.InfoContext(traced("X-Cloud-Trace-Context", traceID+"/26;o=0"), "m") },
			map[string]any{"severity": "INFO", "message": "m", "logging.googleapis.com/trace": "projects/proj/traces/" + traceID, "logging.googleapis.com/spanId": "000000000000001a", "logging.googleapis.com/trace_sampled": false},
		},
		"a header that is no trace is ignored": {
			func(l *slog.Logger) { l.InfoContext(traced("X-Cloud-Trace-Context", "nonsense"), "m") },
			map[string]any{"severity": "INFO", "message": "m"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			test.log(telemetry.NewLogger(&out, "proj", slog.LevelInfo))
			got := lines(t, &out)
			if len(got) != 1 {
				t.Fatalf("%d lines", len(got))
			}
			if _, err := time.Parse(time.RFC3339Nano, got[0]["time"].(string)); err != nil {
				t.Error(err)
			}
			delete(got[0], "time")
			if diff := cmp.Diff(test.want, got[0]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLevelIsObeyed(t *testing.T) {
	var out bytes.Buffer
	telemetry.NewLogger(&out, "proj", slog.LevelWarn).Info("m")
	if out.Len() > 0 {
		t.Error(out.String())
	}
}

func TestOneLinePerRecordAlsoWhenManyWrite(t *testing.T) {
	var out lockedBuffer
	l := telemetry.NewLogger(&out, "proj", slog.LevelInfo)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { l.With("flow_run_id", "f").Info("two\nlines\r\n\u2028", "k\n", "v\n") })
	}
	wg.Wait()
	if got := len(lines(t, bytes.NewBufferString(out.String()))); got != 20 {
		t.Errorf("%d lines", got)
	}
}

func TestHandlerKeepsTheRulesOfSlog(t *testing.T) {
	var out bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		out.Reset()
		return telemetry.NewLogger(&out, "proj", slog.LevelInfo).Handler()
	}, func(t *testing.T) map[string]any {
		got := lines(t, &out)[0]
		// slogtest looks for slog's own names.
		for ours, theirs := range map[string]string{"severity": slog.LevelKey, "message": slog.MessageKey} {
			if v, ok := got[ours]; ok {
				got[theirs] = v
			}
		}
		return got
	})
}

func TestLineKeepsOneAttributePerKey(t *testing.T) {
	ctx := telemetry.WithLine(t.Context())
	telemetry.Add(ctx, slog.String("a", "1"), slog.String("b", "1"))
	telemetry.Add(ctx, slog.String("a", "2"))
	telemetry.Add(t.Context(), slog.String("a", "no line, no harm"))
	var got []string
	for _, a := range telemetry.Attrs(ctx) {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"a=2", "b=1"}, got); diff != "" {
		t.Error(diff)
	}
	if got := telemetry.Attrs(t.Context()); got != nil {
		t.Error(got)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func lines(t *testing.T, out *bytes.Buffer) []map[string]any {
	t.Helper()
	var all []map[string]any
	for l := range strings.Lines(out.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		all = append(all, m)
	}
	return all
}

func TestANoteIsOnTheLineOfItsFlowRun(t *testing.T) {
	var out bytes.Buffer
	log := telemetry.NewLogger(&out, "p", slog.LevelInfo)
	ctx := telemetry.WithLine(t.Context())
	telemetry.Add(ctx, slog.String(telemetry.FlowRunID, "a"))
	telemetry.Note(ctx, log, "a", "launched", slog.String("execution", "x"))
	if out.Len() > 0 {
		t.Errorf("a line of its own: %s", &out)
	}
	if diff := cmp.Diff([]string{"flow_run_id=a", "did=launched", "execution=x"}, texts(telemetry.Attrs(ctx))); diff != "" {
		t.Errorf("the line (-want +got):\n%s", diff)
	}
	telemetry.Note(ctx, log, "b", "launched")
	if !strings.Contains(out.String(), `"message":"launched"`) || !strings.Contains(out.String(), `"flow_run_id":"b"`) {
		t.Errorf("another flow run's line: %s", &out)
	}
}

func texts(attrs []slog.Attr) []string {
	all := make([]string, len(attrs))
	for i, a := range attrs {
		all[i] = a.String()
	}
	return all
}

func TestTheTraceIsPassedOnAsAHeader(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for name, test := range map[string]struct {
		header, value string
		attributes    map[string]string
		want          string
	}{
		"none":                                    {},
		"the request's":                           {"traceparent", "00-" + id + "-" + span + "-01", nil, "00-" + id + "-" + span + "-01"},
		"of a later version, as ours":             {"traceparent", "01-" + id + "-" + span + "-00-more", nil, "00-" + id + "-" + span + "-00"},
		"Google's older header":                   {"X-Cloud-Trace-Context", id + "/26;o=1", nil, "00-" + id + "-000000000000001a-01"},
		"a trace without a span cannot be told":   {"X-Cloud-Trace-Context", id, nil, ""},
		"the message's goes before the request's": {"traceparent", "00-" + id + "-" + span + "-01", map[string]string{"traceparent": "00-" + id + "-000000000000001a-00"}, "00-" + id + "-000000000000001a-00"},
		"a CloudEvent's":                          {"", "", map[string]string{"ce-traceparent": "00-" + id + "-" + span + "-01"}, "00-" + id + "-" + span + "-01"},
		"that of Google's Pub/Sub clients":        {"", "", map[string]string{"googclient_traceparent": "00-" + id + "-" + span + "-01"}, "00-" + id + "-" + span + "-01"},
		"a message's that is none is ignored":     {"traceparent", "00-" + id + "-" + span + "-01", map[string]string{"traceparent": "x"}, "00-" + id + "-" + span + "-01"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := telemetry.WithTrace(t.Context(), http.Header{http.CanonicalHeaderKey(test.header): {test.value}})
			if got := telemetry.Traceparent(telemetry.WithMessageTrace(ctx, test.attributes)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
