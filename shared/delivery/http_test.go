package delivery_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/telemetry"
)

type published struct {
	Data       string
	Attributes map[string]string
}

type publisher struct {
	err error
	got []published
}

func (p *publisher) Publish(ctx context.Context, data []byte, attributes map[string]string) (string, error) {
	if err := errors.Join(ctx.Err(), p.err); err != nil {
		return "", err
	}
	p.got = append(p.got, published{string(data), attributes})
	return "d1", nil
}

const when = "2026-01-01T06:00:00.5Z"

// push is a body as Pub/Sub writes it.
func push(data string, attempt int, attributes map[string]string) string {
	message := map[string]any{
		"data": base64.StdEncoding.EncodeToString([]byte(data)), "attributes": attributes,
		"messageId": "m1", "message_id": "m1", "publishTime": when, "publish_time": when,
	}
	body, err := json.Marshal(map[string]any{"message": message, "subscription": "projects/p/subscriptions/s", "deliveryAttempt": attempt})
	if err != nil {
		panic(err)
	}
	return string(body)
}

func post(t *testing.T, h http.Handler, body string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body)))
	return w
}

// line returns the one line that was logged, without what changes, and whether it has a stack.
func line(t *testing.T, out *bytes.Buffer) (map[string]any, string) {
	t.Helper()
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Fatalf("%d lines: %s", n, out)
	}
	var m map[string]any
	if err := json.Unmarshal(out.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	if _, ok := m["took"].(float64); !ok {
		t.Errorf("took is %v", m["took"])
	}
	stack, _ := m["stack_trace"].(string)
	for _, key := range []string{"took", "time", "stack_trace"} {
		delete(m, key)
	}
	return m, stack
}

func TestVerdicts(t *testing.T) {
	boom := errors.New("boom")
	deadLetter := func(reason string) []published {
		return []published{{"{}", map[string]string{
			"a": "b", "reason": reason, "function": "f", "first_message_id": "m1", "first_publish_time": when,
		}}}
	}
	for name, test := range map[string]struct {
		handler    delivery.Handler
		attempt    int
		publishErr error
		noTopic    bool
		status     int
		want       map[string]any
		published  []published
		stack      bool
	}{
		"nil acknowledges": {
			handler: func(context.Context, delivery.Delivery) error { return nil }, attempt: 1,
			status: 204, want: map[string]any{"severity": "INFO", "verdict": "acknowledged", "message": "done"},
		},
		"an error redelivers": {
			handler: func(context.Context, delivery.Delivery) error { return boom }, attempt: 9,
			status: 503, want: map[string]any{"severity": "WARNING", "verdict": "redelivered", "error": "boom", "message": "failed; the message will be delivered again"},
		},
		"an error on the last attempt is published with its reason, under the message's first id": {
			handler: func(context.Context, delivery.Delivery) error { return boom }, attempt: 10,
			status: 204, published: deadLetter("boom"),
			want: map[string]any{"severity": "ERROR", "verdict": "dead-lettered", "error": "boom", "message": "failed on delivery attempt 10 of 10; the message was moved to the dead-letter topic"},
		},
		"an error on the last attempt is left to Pub/Sub where the dead letter cannot be published": {
			handler: func(context.Context, delivery.Delivery) error { return boom }, attempt: 10, publishErr: errors.New("quota"),
			status: 503, want: map[string]any{"severity": "ERROR", "verdict": "dead-lettered", "error": "boom\npublish message m1 to the dead-letter topic: quota", "message": "failed on delivery attempt 10 of 10; Pub/Sub moves the message to the dead-letter topic"},
		},
		"unprocessable is published with its reason and acknowledged": {
			handler: func(context.Context, delivery.Delivery) error {
				return fmt.Errorf("decode: %w", delivery.Unprocessable(boom))
			}, attempt: 1,
			status: 204, published: deadLetter("decode: boom"),
			want: map[string]any{"severity": "ERROR", "verdict": "dead-lettered", "error": "decode: boom", "message": "this message can never be processed; it was moved to the dead-letter topic"},
		},
		"unprocessable is redelivered where the dead letter cannot be published": {
			handler: func(context.Context, delivery.Delivery) error { return delivery.Unprocessable(boom) }, attempt: 1,
			publishErr: errors.New("quota"), status: 503,
			want: map[string]any{"severity": "WARNING", "verdict": "redelivered", "error": "boom\npublish message m1 to the dead-letter topic: quota", "message": "failed; the message will be delivered again"},
		},
		"unprocessable is redelivered where there is no dead-letter topic": {
			handler: func(context.Context, delivery.Delivery) error { return delivery.Unprocessable(boom) }, attempt: 1,
			noTopic: true, status: 503,
			want: map[string]any{"severity": "WARNING", "verdict": "redelivered", "error": "boom\nno dead-letter topic is configured", "message": "failed; the message will be delivered again"},
		},
		"a panic is logged with its stack and redelivered": {
			handler: func(context.Context, delivery.Delivery) error { panic("oops") }, attempt: 1,
			status: 500, stack: true,
			want: map[string]any{"severity": "ERROR", "verdict": "redelivered", "error": "panic: oops", "message": "panicked; the message will be delivered again"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			topic := &publisher{err: test.publishErr}
			o := delivery.Options{
				DeadLetter: topic, MaxAttempts: 10, Function: "f",
				Logger: telemetry.NewLogger(&out, "p", slog.LevelInfo),
			}
			if test.noTopic {
				o.DeadLetter = nil
			}
			w := post(t, delivery.HTTP(test.handler, o), push("{}", test.attempt, map[string]string{"a": "b", "googclient_x": "y"}))
			if w.Code != test.status {
				t.Errorf("status %d, want %d", w.Code, test.status)
			}
			if diff := cmp.Diff(test.published, topic.got); diff != "" {
				t.Error(diff)
			}
			for key, value := range map[string]any{
				"function": "f", "message_id": "m1", "attempt": float64(test.attempt),
				"flow_run_id": "", "deployment_id": "", "work_pool": "", "execution": "",
			} {
				test.want[key] = value
			}
			got, stack := line(t, &out)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(stack, "http_test.go") != test.stack {
				t.Errorf("stack %q", stack)
			}
		})
	}
}

func TestHandlersAddToTheLineButDoNotReplaceItsKeys(t *testing.T) {
	var out bytes.Buffer
	h := delivery.HTTP(func(ctx context.Context, _ delivery.Delivery) error {
		telemetry.Add(ctx, slog.String("flow_run_id", "x"), slog.String("extra", "e"), slog.String("verdict", "mine"))
		telemetry.Add(ctx, slog.String("work_pool", "p"), slog.String("flow_run_id", "r"))
		return nil
	}, delivery.Options{Function: "f", Logger: telemetry.NewLogger(&out, "p", slog.LevelInfo)})
	post(t, h, push("{}", 0, nil))
	got, _ := line(t, &out)
	want := map[string]any{
		"severity": "INFO", "message": "done", "function": "f", "message_id": "m1", "attempt": 0.0, "verdict": "acknowledged",
		"flow_run_id": "r", "deployment_id": "", "work_pool": "p", "execution": "", "extra": "e",
		"logging.googleapis.com/operation": map[string]any{"id": "r", "producer": "pushpool"},
		"logging.googleapis.com/labels":    map[string]any{"pushpool-flow-run": "r"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := strings.Count(out.String(), `"verdict"`); n != 1 {
		t.Errorf("the key verdict is there %d times", n)
	}
}

func TestDeliveryIsReadInEitherSpelling(t *testing.T) {
	at, err := time.Parse(time.RFC3339Nano, when)
	if err != nil {
		t.Fatal(err)
	}
	want := delivery.Delivery{
		MessageID: "m1", PublishTime: at, Attributes: map[string]string{"a": "b"},
		Data: []byte("hello"), Attempt: 3, Subscription: "projects/p/subscriptions/s",
	}
	for name, body := range map[string]string{
		"both":  push("hello", 3, map[string]string{"a": "b"}),
		"camel": `{"message":{"data":"aGVsbG8=","attributes":{"a":"b"},"messageId":"m1","publishTime":"` + when + `"},"subscription":"projects/p/subscriptions/s","deliveryAttempt":3}`,
		"snake": `{"message":{"data":"aGVsbG8=","attributes":{"a":"b"},"message_id":"m1","publish_time":"` + when + `"},"subscription":"projects/p/subscriptions/s","delivery_attempt":3}`,
	} {
		t.Run(name, func(t *testing.T) {
			var got delivery.Delivery
			h := delivery.HTTP(func(_ context.Context, d delivery.Delivery) error { got = d; return nil }, delivery.Options{})
			if w := post(t, h, body); w.Code != http.StatusNoContent {
				t.Errorf("status %d", w.Code)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhatIsNoPushIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		method, body string
		status       int
	}{
		"not JSON":         {"POST", "hello", 400},
		"no message":       {"POST", `{"subscription":"s"}`, 400},
		"data not base64":  {"POST", `{"message":{"data":"?"}}`, 400},
		"empty":            {"POST", "", 400},
		"larger than 15 M": {"POST", `{"message":{"data":"` + strings.Repeat("A", 15<<20) + `"}}`, 413},
		"GET":              {"GET", "", 405},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			h := delivery.HTTP(func(context.Context, delivery.Delivery) error {
				t.Error("the handler was called")
				return nil
			}, delivery.Options{Logger: telemetry.NewLogger(&out, "p", slog.LevelInfo)})
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), test.method, "/", strings.NewReader(test.body)))
			if w.Code != test.status {
				t.Errorf("status %d, want %d", w.Code, test.status)
			}
			if got, _ := line(t, &out); got["severity"] != "ERROR" {
				t.Errorf("line %v", got)
			}
		})
	}
}

func TestTheLargestMessageIsRead(t *testing.T) {
	var size int
	h := delivery.HTTP(func(_ context.Context, d delivery.Delivery) error { size = len(d.Data); return nil }, delivery.Options{})
	if w := post(t, h, push(strings.Repeat("x", 10<<20), 1, nil)); w.Code != 204 || size != 10<<20 {
		t.Errorf("status %d, %d bytes", w.Code, size)
	}
}

func TestTheTimeoutEndsTheHandlerNotTheDeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic := &publisher{}
		h := delivery.HTTP(func(ctx context.Context, _ delivery.Delivery) error {
			<-ctx.Done()
			return delivery.Unprocessable(ctx.Err())
		}, delivery.Options{DeadLetter: topic, Timeout: time.Minute})
		start := time.Now()
		w := post(t, h, push("{}", 1, nil))
		if got := time.Since(start); got != time.Minute {
			t.Errorf("took %s", got)
		}
		if w.Code != 204 || len(topic.got) != 1 {
			t.Errorf("status %d, %d dead letters", w.Code, len(topic.got))
		}
	})
}

func TestADeadLetterThatIsPublishedAgainKeepsItsFirstID(t *testing.T) {
	topic := &publisher{}
	var first string
	var at time.Time
	h := delivery.HTTP(func(_ context.Context, d delivery.Delivery) error {
		first, at = d.FirstMessageID(), d.FirstPublishTime()
		return delivery.Unprocessable(errors.New(strings.Repeat("é", 1000)))
	}, delivery.Options{DeadLetter: topic, Function: "f"})
	post(t, h, push("{}", 1, map[string]string{"first_message_id": "m0", "first_publish_time": "2025-01-01T00:00:00Z", "reason": "old"}))
	got := topic.got[0].Attributes
	if first != "m0" || at.Year() != 2025 || got["first_message_id"] != "m0" || got["first_publish_time"] != "2025-01-01T00:00:00Z" {
		t.Errorf("first id %q, time %s, attributes %v", first, at, got)
	}
	if n := len(got["reason"]); n > 1024 || !strings.HasSuffix(got["reason"], "é…") {
		t.Errorf("reason of %d bytes: %q", n, got["reason"])
	}
}

func TestUnprocessableKeepsTheError(t *testing.T) {
	boom := errors.New("boom")
	if err := delivery.Unprocessable(boom); !errors.Is(err, boom) || !delivery.IsUnprocessable(fmt.Errorf("x: %w", err)) {
		t.Error(err)
	}
	if delivery.Unprocessable(nil) != nil || delivery.IsUnprocessable(boom) || delivery.IsUnprocessable(nil) {
		t.Error("marked without being so")
	}
}

// A publisher's trace goes before that of the push, which Pub/Sub begins anew.
func TestTheMessagesTraceIsTheHandlers(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	var got string
	h := delivery.HTTP(func(ctx context.Context, _ delivery.Delivery) error {
		got = telemetry.Traceparent(ctx)
		return nil
	}, delivery.Options{})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(push("{}", 1, map[string]string{"traceparent": parent})))
	r.Header.Set("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if got != parent {
		t.Errorf("got %q, want the message's %q", got, parent)
	}
}
