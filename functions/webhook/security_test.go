package webhook

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/telemetry"
)

// hostile is what somebody may send who would like to write into the log.
var hostile = "x\n{\"severity\":\"CRITICAL\",\"message\":\"forged\"}\r\n\x1b[31m\u2028\x00" + strings.Repeat("A", 200<<10)

// TestNothingOfARequestForgesALogLine holds that each request is one line with the keys that it
// always has, of a length that Cloud Logging takes, whoever sends what.
func TestNothingOfARequestForgesALogLine(t *testing.T) {
	event := func(change map[string]any) string {
		e := map[string]any{}
		if err := json.Unmarshal([]byte(portable), &e); err != nil {
			t.Fatal(err)
		}
		maps.Copy(e, change)
		data, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	keys := []string{"function", "message", "severity", "status", "time", "took"}
	for name, tt := range map[string]struct {
		authorization, body string
		header              map[string]string
		status              int
	}{
		"a forged secret":                  {authorization: bearer(hostile), body: portable, status: 401},
		"a method of one's own":            {body: portable, status: 401, header: map[string]string{"X-HTTP-Method-Override": hostile}},
		"a trace that is none":             {authorization: bearer(newSecret), body: portable, status: 204, header: map[string]string{"traceparent": hostile, "X-Cloud-Trace-Context": hostile}},
		"a work pool with lines":           {authorization: bearer(newSecret), body: event(map[string]any{"work_pool": hostile}), status: 204},
		"a state with lines":               {authorization: bearer(newSecret), body: event(map[string]any{"state_name": hostile, "state_type": hostile}), status: 204},
		"a flow run's id with lines":       {authorization: bearer(newSecret), body: event(map[string]any{"flow_run": "prefect.flow-run." + hostile}), status: 400},
		"an event's name with lines":       {authorization: bearer(newSecret), body: event(map[string]any{"event": hostile}), status: 204},
		"a field with lines":               {authorization: bearer(newSecret), body: event(map[string]any{hostile: hostile, "severity": "CRITICAL"}), status: 204},
		"what is not JSON, with the lines": {authorization: bearer(newSecret), body: hostile, status: 400},
		"the secret in the body":           {authorization: bearer(newSecret), body: event(map[string]any{"event": newSecret, "flow_run": newSecret}), status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			h := newWebhook(&topic{}, []string{oldSecret, newSecret}, telemetry.NewLogger(&log, "p", slog.LevelDebug))
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhook", strings.NewReader(tt.body))
			for k, v := range tt.header {
				r.Header.Set(k, v)
			}
			if tt.authorization != "" {
				r.Header.Set("Authorization", tt.authorization)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			var line map[string]any
			if n := bytes.Count(log.Bytes(), []byte("\n")); n != 1 || log.Len() > 64<<10 || json.Unmarshal(log.Bytes(), &line) != nil {
				t.Fatalf("%d lines of %d bytes: %.500s", n, log.Len(), &log)
			}
			if w.Code != tt.status || line["severity"] == "CRITICAL" {
				t.Errorf("answered %d, want %d; severity %s", w.Code, tt.status, line["severity"])
			}
			allowed := append(slices.Clone(keys), "error")
			if tt.status == http.StatusNoContent {
				allowed = append(slices.Clone(keys), "flow_run_id", "deployment_id", "work_pool", "state_type", "state_name", "message_id",
					"logging.googleapis.com/operation", "logging.googleapis.com/labels")
			}
			if diff := cmp.Diff(slices.Sorted(slices.Values(allowed)), slices.Sorted(maps.Keys(line))); diff != "" {
				t.Errorf("keys of the line: %s", diff)
			}
			if strings.Contains(log.String()+w.Body.String(), newSecret) {
				t.Errorf("the secret shows: %s %.500s", w.Body, &log)
			}
		})
	}
}

// endless is a connection whose body does not end by itself.
type endless struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (s *endless) SetReadDeadline(at time.Time) error {
	s.deadline = at
	return nil
}

func (s *endless) Read([]byte) (int, error) {
	if s.deadline.IsZero() {
		return 0, nil // and again
	}
	return 0, os.ErrDeadlineExceeded
}

// TestASlowBodyIsGivenUp holds that whoever has the secret cannot keep an instance waiting.
func TestASlowBodyIsGivenUp(t *testing.T) {
	h := newWebhook(&topic{}, []string{newSecret}, slog.New(slog.DiscardHandler))
	conn := &endless{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhook", conn)
	r.Header.Set("Authorization", bearer(newSecret))
	start := time.Now()
	h.ServeHTTP(conn, r)
	if conn.Code != http.StatusBadRequest || conn.deadline.Before(start) || conn.deadline.Sub(start) > 5*time.Second {
		t.Errorf("answered %d, with a deadline of %s", conn.Code, conn.deadline.Sub(start))
	}
}
