package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/telemetry"
)

const (
	oldSecret = "the-secret-that-is-being-replaced"
	newSecret = "the-secret-that-replaces-it"
	portable  = `{"event":"prefect.flow-run.Scheduled","flow_run":"prefect.flow-run.94c6ba7a-25de-4fcb-9b37-8dfb8281263f","state_type":"SCHEDULED","work_pool":"etl"}`
	flowRunID = "94c6ba7a-25de-4fcb-9b37-8dfb8281263f"
)

// topic keeps what was published; publish, if set, decides instead.
type topic struct {
	published  []string
	attributes map[string]string // of the last message
	publish    func(context.Context) error
}

func (t *topic) Publish(ctx context.Context, data []byte, attributes map[string]string) (string, error) {
	if t.publish != nil {
		if err := t.publish(ctx); err != nil {
			return "", err
		}
	}
	t.published, t.attributes = append(t.published, string(data)), attributes
	return "17", nil
}

func bearer(secret string) string { return "Bearer " + secret }

// send makes one request and returns its answer and the lines that were logged about it.
func send(t *testing.T, top *topic, method, authorization string, body io.Reader) (*httptest.ResponseRecorder, string, []map[string]any) {
	t.Helper()
	var log bytes.Buffer
	h := newWebhook(top, []string{oldSecret, newSecret}, telemetry.NewLogger(&log, "p", slog.LevelDebug))
	r := httptest.NewRequestWithContext(t.Context(), method, "/webhook", body)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	for _, s := range []string{oldSecret, newSecret} {
		if strings.Contains(log.String()+w.Body.String(), s) {
			t.Errorf("a secret shows in the answer or in the log: %s %s", w.Body, &log)
		}
	}
	var lines []map[string]any
	for line := range strings.Lines(log.String()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		lines = append(lines, l)
	}
	return w, strings.TrimSpace(w.Body.String()), lines
}

func TestAnswers(t *testing.T) {
	padded := portable + strings.Repeat(" ", maxBody-len(portable))
	down := func(context.Context) error { return errors.New("publish to flow-runs: unavailable") }
	for rule, tt := range map[string]struct {
		method, authorization, body string
		publish                     func(context.Context) error
		status                      int
		answer                      string // contained in the answer
		severity                    string
		header                      map[string]string
	}{
		"an event with a valid secret is published":    {authorization: bearer(newSecret), body: portable, status: 204, severity: "INFO"},
		"several secrets are valid at once":            {authorization: bearer(oldSecret), body: portable, status: 204, severity: "INFO"},
		"the scheme's case does not matter (RFC 9110)": {authorization: "bEARER " + newSecret, body: portable, status: 204, severity: "INFO"},
		"no header":                             {body: portable, status: 401, answer: "Authorization: Bearer SECRET", severity: "WARNING", header: map[string]string{"WWW-Authenticate": "Bearer"}},
		"a wrong secret":                        {authorization: bearer("the-secret-that-replaces-iT"), body: portable, status: 401, answer: "no valid secret", severity: "WARNING"},
		"the beginning of a secret":             {authorization: bearer(newSecret[:len(newSecret)-1]), body: portable, status: 401, severity: "WARNING"},
		"two secrets as configured":             {authorization: bearer(oldSecret + "," + newSecret), body: portable, status: 401, severity: "WARNING"},
		"an empty secret":                       {authorization: "Bearer ", body: portable, status: 401, severity: "WARNING"},
		"another scheme":                        {authorization: "Basic " + newSecret, body: portable, status: 401, severity: "WARNING"},
		"no scheme":                             {authorization: newSecret, body: portable, status: 401, severity: "WARNING"},
		"the secret is checked before the body": {body: "not JSON", status: 401, severity: "WARNING"},
		"a GET":                                 {method: "GET", authorization: bearer(newSecret), status: 405, answer: "use POST", severity: "WARNING", header: map[string]string{"Allow": "POST"}},
		"a PUT":                                 {method: "PUT", authorization: bearer(newSecret), body: portable, status: 405, severity: "WARNING", header: map[string]string{"Allow": "POST"}},
		"an empty body":                         {authorization: bearer(newSecret), status: 400, answer: "message: empty", severity: "WARNING"},
		"not JSON":                              {authorization: bearer(newSecret), body: "{", status: 400, answer: "not JSON", severity: "WARNING"},
		"an event about something else than a flow run":  {authorization: bearer(newSecret), body: strings.ReplaceAll(portable, "prefect.flow-run.94", "prefect.work-pool.94"), status: 400, answer: "flow_run:", severity: "WARNING"},
		"a run request: the secret is for events only":   {authorization: bearer(newSecret), body: `{"deployment":"etl/prod"}`, status: 400, answer: "publish run requests to the topic", severity: "WARNING"},
		"a dispatch, which only the system itself sends": {authorization: bearer(newSecret), body: `{"flow_run_id":"` + flowRunID + `"}`, status: 400, answer: "not a Prefect event", severity: "WARNING"},
		"2 MiB":          {authorization: bearer(newSecret), body: padded, status: 204, severity: "INFO"},
		"2 MiB and one":  {authorization: bearer(newSecret), body: padded + " ", status: 413, answer: "larger than 2097152 bytes", severity: "WARNING"},
		"Pub/Sub is out": {authorization: bearer(newSecret), body: portable, publish: down, status: 503, answer: "publish to flow-runs: unavailable", severity: "ERROR"},
	} {
		t.Run(rule, func(t *testing.T) {
			top := &topic{publish: tt.publish}
			method := tt.method
			if method == "" {
				method = http.MethodPost
			}
			resp, answer, lines := send(t, top, method, tt.authorization, strings.NewReader(tt.body))
			if resp.Code != tt.status || !strings.Contains(answer, tt.answer) || tt.status != 204 && answer == "" {
				t.Errorf("answered %d %q, want %d with %q", resp.Code, answer, tt.status, tt.answer)
			}
			for name, want := range tt.header {
				if got := resp.Header().Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			var want []string
			if tt.status == http.StatusNoContent {
				want = []string{tt.body}
			}
			if diff := cmp.Diff(want, top.published); diff != "" {
				t.Errorf("published (-want +got):\n%.500s", diff)
			}
			if len(lines) != 1 || lines[0]["severity"] != tt.severity || lines[0]["status"] != float64(tt.status) {
				t.Errorf("logged %v, want one line of severity %s and status %d", lines, tt.severity, tt.status)
			}
		})
	}
}

// What servers really sent is published as it came, and read by the dispatcher as the same event.
func TestRealBodies(t *testing.T) {
	for file, want := range map[string]struct{ flowRunID, stateType, stateName string }{
		"2.20.25-event-json.txt":      {"6536bcee-f430-4f40-be67-83d7d56d5723", "SCHEDULED", "Scheduled"}, // a JSON string
		"2.20.25-portable.txt":        {"ca7163af-2656-4a07-b7a9-558c598cd17e", "SCHEDULED", "Scheduled"}, // a JSON string
		"3.8.8-event-tojson-late.txt": {"01a2085c-8d7d-71b9-8784-eecb79fa3750", "SCHEDULED", "Late"},
		"3.8.8-odd-state-name.txt":    {"94c6ba7a-25de-4fcb-9b37-8dfb8281263f", "PENDING", `It's <my> "état"`},
		"3.8.8-portable.txt":          {"94c6ba7a-25de-4fcb-9b37-8dfb8281263f", "SCHEDULED", "Scheduled"},
	} {
		t.Run(file, func(t *testing.T) {
			body, err := os.ReadFile(filepath.Join("testdata", file))
			if err != nil {
				t.Fatal(err)
			}
			top := &topic{}
			resp, answer, lines := send(t, top, http.MethodPost, bearer(newSecret), bytes.NewReader(body))
			if resp.Code != http.StatusNoContent {
				t.Fatalf("answered %d %s", resp.Code, answer)
			}
			if diff := cmp.Diff([]string{string(body)}, top.published); diff != "" {
				t.Fatalf("published (-want +got):\n%s", diff)
			}
			m, err := message.Decode([]byte(top.published[0]), nil)
			if err != nil {
				t.Fatal(err)
			}
			e, _ := m.(message.PrefectEvent)
			got := struct{ flowRunID, stateType, stateName string }{e.FlowRunID, e.StateType, e.StateName}
			if got != want {
				t.Errorf("published %v, want %v", got, want)
			}
			if lines[0]["state_name"] != want.stateName {
				t.Errorf("logged state_name %v, want %s", lines[0]["state_name"], want.stateName)
			}
		})
	}
	t.Run("what Prefect failed to render is refused with what to do", func(t *testing.T) {
		body, err := os.ReadFile("testdata/2.20.25-render-error.txt")
		if err != nil {
			t.Fatal(err)
		}
		resp, answer, _ := send(t, &topic{}, http.MethodPost, bearer(newSecret), bytes.NewReader(body))
		if resp.Code != http.StatusBadRequest || !strings.Contains(answer, "use the portable template") {
			t.Errorf("answered %d %s", resp.Code, answer)
		}
	})
}

func TestTheLineIsFoundByItsFlowRun(t *testing.T) {
	_, _, lines := send(t, &topic{}, http.MethodPost, bearer(newSecret), strings.NewReader(portable))
	got := map[string]any{}
	for _, key := range []string{"flow_run_id", "work_pool", "state_type", "message_id", "function", "logging.googleapis.com/operation", "logging.googleapis.com/labels"} {
		got[key] = lines[0][key]
	}
	want := map[string]any{
		"flow_run_id": flowRunID, "work_pool": "etl", "state_type": "SCHEDULED", "message_id": "17", "function": "webhook",
		"logging.googleapis.com/operation": map[string]any{"id": flowRunID, "producer": "pushpool"},
		"logging.googleapis.com/labels":    map[string]any{"pushpool-flow-run": flowRunID},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

// Prefect's action waits 5 s and does not repeat; a late answer would look like a broken webhook.
func TestAnswersWithinTheActionsFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := &topic{publish: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		start := time.Now()
		resp, _, _ := send(t, hangs, http.MethodPost, bearer(newSecret), strings.NewReader(portable))
		if resp.Code != http.StatusServiceUnavailable || time.Since(start) >= 5*time.Second {
			t.Errorf("answered %d after %s", resp.Code, time.Since(start))
		}
	})
	t.Run("a body that comes slowly leaves less for the publication", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hangs := &topic{publish: func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			}}
			start := time.Now()
			send(t, hangs, http.MethodPost, bearer(newSecret), &slow{data: strings.NewReader(portable), after: 3 * time.Second})
			if took := time.Since(start); took >= 5*time.Second {
				t.Errorf("answered after %s", took)
			}
		})
	})
}

// slow is a body whose first byte comes late.
type slow struct {
	data  io.Reader
	after time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(s.after) // of synctest's clock
	s.after = 0
	return s.data.Read(p)
}

func TestConfiguration(t *testing.T) {
	for rule, tt := range map[string]struct{ secrets, wrong string }{
		"one secret":                       {newSecret, ""},
		"two while one is replaced":        {oldSecret + "," + newSecret, ""},
		"none":                             {"", "WEBHOOK_SECRETS: not set; write the secrets"},
		"one too short to resist guessing": {newSecret + ",hunter2", "WEBHOOK_SECRETS: one of them is too short"},
		"a trailing comma":                 {newSecret + ",", "WEBHOOK_SECRETS: one of them is too short"},
		"space that nobody would send":     {oldSecret + ", " + newSecret, "WEBHOOK_SECRETS: one of them is too short, or has space around it"},
	} {
		t.Run(rule, func(t *testing.T) {
			_, err := New(install.Surroundings{Environ: []string{"GOOGLE_CLOUD_PROJECT=p", "WEBHOOK_SECRETS=" + tt.secrets}, Log: io.Discard})
			if tt.wrong == "" && err != nil || tt.wrong != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.wrong)) {
				t.Errorf("got %v, want %q", err, tt.wrong)
			}
			if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), newSecret)) {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

// The trace of the call goes on with the message, to the dispatcher and to the flow.
func TestTheTraceGoesWithTheMessage(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for header, want := range map[string]map[string]string{"": nil, parent: {"traceparent": parent}} {
		top := &topic{}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhook", strings.NewReader(portable))
		r.Header.Set("Authorization", bearer(newSecret))
		r.Header.Set("traceparent", header)
		newWebhook(top, []string{newSecret}, slog.New(slog.DiscardHandler)).ServeHTTP(httptest.NewRecorder(), r)
		if diff := cmp.Diff(want, top.attributes); diff != "" || len(top.published) != 1 {
			t.Errorf("%d published; attributes (-want +got):\n%s", len(top.published), diff)
		}
	}
}

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

// TestASlowBodyIsGivenUp holds that whoever has the secret cannot keep an instance waiting.
func TestASlowBodyIsGivenUp(t *testing.T) {
	h := newWebhook(&topic{}, []string{newSecret}, slog.New(slog.DiscardHandler))
	conn := &deliverytest.Endless{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhook", conn)
	r.Header.Set("Authorization", bearer(newSecret))
	start := time.Now()
	h.ServeHTTP(conn, r)
	if conn.Code != http.StatusBadRequest || conn.Deadline.Before(start) || conn.Deadline.Sub(start) > 5*time.Second {
		t.Errorf("answered %d, with a deadline of %s", conn.Code, conn.Deadline.Sub(start))
	}
}
