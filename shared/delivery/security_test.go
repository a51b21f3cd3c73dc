package delivery_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// TestNothingOfAMessageForgesALogLine holds that each delivery is one line with the keys that it
// always has, of a length that Cloud Logging takes, whatever was published.
func TestNothingOfAMessageForgesALogLine(t *testing.T) {
	hostile := "x\n{\"severity\":\"CRITICAL\"}\r\n\x1b[31m\u2028\x00" + strings.Repeat("A", 200<<10)
	attributes := map[string]string{
		"severity": "CRITICAL", "flow_run_id": "forged", "logging.googleapis.com/trace": hostile, "traceparent": hostile,
		hostile: hostile, "first_message_id": hostile, "function": "forged", "verdict": "acknowledged", "reason": hostile,
	}
	body := push(hostile, 1, attributes)
	var wrapped map[string]any
	if err := json.Unmarshal([]byte(body), &wrapped); err != nil {
		t.Fatal(err)
	}
	wrapped["message"].(map[string]any)["messageId"] = hostile
	forged, err := json.Marshal(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		body     string
		err      error
		severity string
	}{
		"attributes":                     {body, nil, "INFO"},
		"a message's id":                 {string(forged), nil, "INFO"},
		"an error that quotes it":        {body, errors.New("message: " + hostile), "WARNING"},
		"an error that is never mended":  {body, delivery.Unprocessable(errors.New("message: " + hostile)), "ERROR"},
		"what is no push":                {hostile, nil, "ERROR"},
		"a push whose type is not right": {`{"message":{"attributes":{"a":7},"messageId":"` + strings.Repeat("A", 200<<10) + `"}}`, nil, "ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			topic := &publisher{}
			h := delivery.HTTP(func(context.Context, delivery.Delivery) error { return tt.err },
				delivery.Options{DeadLetter: topic, Function: "f", Logger: telemetry.NewLogger(&log, "p", slog.LevelDebug)})
			post(t, h, tt.body)
			if log.Len() > 64<<10 {
				t.Errorf("a line of %d bytes", log.Len())
			}
			got, _ := line(t, &log)
			want := []string{"attempt", "deployment_id", "execution", "flow_run_id", "function", "message", "message_id", "severity", "verdict", "work_pool"}
			if tt.severity != "INFO" {
				want = append(want, "error")
			}
			if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(maps.Keys(got))); diff != "" {
				t.Errorf("keys of the line: %s", diff)
			}
			if got["severity"] != tt.severity || got["flow_run_id"] != "" || got["function"] == "forged" {
				t.Errorf("severity %s, flow run %q, function %q", got["severity"], got["flow_run_id"], got["function"])
			}
			for _, dead := range topic.got {
				if n := len(dead.Attributes["reason"]); n > 1024 || dead.Attributes["function"] != "f" {
					t.Errorf("the dead letter has a reason of %d bytes, and the function %q", n, dead.Attributes["function"])
				}
			}
		})
	}
}

// TestNobodyMakesAMessageYounger holds that a time in the attributes is believed of the past only:
// until a message has an age, what it is about is waited for.
func TestNobodyMakesAMessageYounger(t *testing.T) {
	published := time.Date(2030, 1, 1, 6, 0, 0, 0, time.UTC)
	for said, want := range map[string]time.Time{
		"2029-12-31T06:00:00Z": published.Add(-24 * time.Hour), "2099-01-01T00:00:00Z": published, "yesterday": published, "": published,
	} {
		d := delivery.Delivery{PublishTime: published, Attributes: map[string]string{delivery.AttrFirstPublishTime: said}}
		if got := d.FirstPublishTime(); !got.Equal(want) {
			t.Errorf("%q is taken for %s, want %s", said, got, want)
		}
	}
}

func TestASlowPushIsGivenUp(t *testing.T) {
	conn := &deliverytest.Endless{ResponseRecorder: httptest.NewRecorder()}
	h := delivery.HTTP(func(context.Context, delivery.Delivery) error { return nil }, delivery.Options{})
	start := time.Now()
	h.ServeHTTP(conn, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", conn))
	if conn.Code != http.StatusBadRequest || conn.Deadline.Before(start) || conn.Deadline.Sub(start) > time.Minute {
		t.Errorf("answered %d, with a deadline of %s", conn.Code, conn.Deadline.Sub(start))
	}
}
