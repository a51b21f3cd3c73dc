package dispatcher

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// deadLetters is the dead-letter topic.
type deadLetters struct{ reasons, firstIDs, data []string }

func (d *deadLetters) Publish(_ context.Context, data []byte, a map[string]string) (string, error) {
	d.data, d.reasons, d.firstIDs = append(d.data, string(data)), append(d.reasons, a[delivery.AttrReason]), append(d.firstIDs, a[delivery.AttrFirstMessageID])
	return "1", nil
}

// push sends the message as Pub/Sub would and returns the status and the lines logged about it.
func push(t *testing.T, in *installation, dead *deadLetters, data string) (int, []map[string]any) {
	t.Helper()
	var log bytes.Buffer
	h := delivery.HTTP(in.Handle, delivery.Options{
		DeadLetter: dead, MaxAttempts: 100, Function: "dispatcher", Logger: telemetry.NewLogger(&log, "p", slog.LevelDebug),
	})
	body, err := json.Marshal(map[string]any{
		"message":         map[string]any{"data": []byte(data), "messageId": "17", "publishTime": time.Now()},
		"deliveryAttempt": 1, "subscription": "projects/p/subscriptions/dispatcher",
	})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/dispatcher", bytes.NewReader(body)))
	var lines []map[string]any
	for line := range strings.Lines(log.String()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return w.Code, lines
}

// One line, one dead letter with the reason, and no redelivery loop.
func TestAPoisonMessageEndsInTheDeadLetterAtOnce(t *testing.T) {
	in, dead := start(t), &deadLetters{}
	const poison = `{"deployment":"flow/nightly"}`
	status, lines := push(t, in, dead, poison)
	if status != http.StatusNoContent || len(lines) != 1 || lines[0]["severity"] != "ERROR" || lines[0]["verdict"] != "dead-lettered" {
		t.Fatalf("answered %d, logged %v", status, lines)
	}
	if diff := cmp.Diff(&deadLetters{reasons: []string{lines[0]["error"].(string)}, firstIDs: []string{"17"}, data: []string{poison}},
		dead, cmp.AllowUnexported(deadLetters{})); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
}

// The line of an event is found by the flow run that the event is about, whatever it woke.
func TestTheLineIsAboutTheFlowRunOfTheMessage(t *testing.T) {
	in, dead := start(t), &deadLetters{}
	in.now = func() time.Time { return time.Now().Add(time.Second) }
	ended := in.create(t, "capped", nil)
	in.create(t, "capped", nil)
	if _, err := in.prefect.SetState(t.Context(), ended.ID, prefect.Proposal{Type: flowrun.StateCancelled, Name: "Cancelled"}); err != nil {
		t.Fatal(err)
	}
	_, lines := push(t, in, dead, `{"event":"prefect.flow-run.Cancelled","flow_run":"`+ended.ID+`","state_type":"CANCELLED"}`)
	got := []any{}
	for _, key := range []string{"flow_run_id", "work_pool", "verdict", "severity"} {
		got = append(got, lines[0][key])
	}
	if diff := cmp.Diff([]any{ended.ID, "capped", "acknowledged", "INFO"}, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}
