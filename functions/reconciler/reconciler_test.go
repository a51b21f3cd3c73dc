package reconciler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/sweep"
	"github.com/pushpool/pushpool/shared/telemetry"
)

func TestMain(m *testing.M) {
	// A client library that wire.go imports starts this one and never ends it: one per process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

func TestTheSchedulersAnswer(t *testing.T) {
	for rule, tt := range map[string]struct {
		method   string
		err      error
		status   int
		severity string
	}{
		"a sweep":                      {method: http.MethodPost, status: 204, severity: "INFO"},
		"a sweep that is not complete": {method: http.MethodPost, err: errors.New("list flow runs: 503"), status: 500, severity: "ERROR"},
		"a visitor":                    {method: http.MethodGet, status: 405},
	} {
		t.Run(rule, func(t *testing.T) {
			var log bytes.Buffer
			h := endpoint(func(ctx context.Context) (sweep.Report, error) {
				if _, bounded := ctx.Deadline(); !bounded {
					t.Error("the sweep has no deadline")
				}
				return sweep.Report{sweep.Looks: 7}, tt.err
			}, telemetry.NewLogger(&log, "p", slog.LevelInfo))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), tt.method, "/reconciler", nil))
			if w.Code != tt.status || tt.err != nil && !strings.Contains(w.Body.String(), tt.err.Error()) {
				t.Errorf("answered %d %s", w.Code, w.Body)
			}
			if tt.status == http.StatusMethodNotAllowed {
				if w.Header().Get("Allow") != "POST" || log.Len() > 0 {
					t.Errorf("Allow %q, logged %s", w.Header().Get("Allow"), &log)
				}
				return
			}
			var line struct {
				Severity string             `json:"severity"`
				Sweep    map[string]float64 `json:"sweep"`
			}
			if err := json.Unmarshal(log.Bytes(), &line); err != nil { // exactly one line
				t.Fatalf("logged %s: %v", &log, err)
			}
			if line.Severity != tt.severity || line.Sweep["looks"] != 7 {
				t.Errorf("logged %+v", line)
			}
		})
	}
}

// All the looks of a sweep have to fit what this instance may ask of Prefect in a minute.
func TestLooksFitTheRequestsPerMinute(t *testing.T) {
	for rule, tt := range map[string]struct{ perMinute, want int }{
		"by default":            {500, 166},
		"one in any case":       {1, 1},
		"a server of our own's": {6000, 2000},
	} {
		t.Run(rule, func(t *testing.T) {
			var c config
			c.RequestsPerMinute = tt.perMinute
			if got := c.maxLooks(); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}
