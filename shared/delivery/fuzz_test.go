package delivery_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/pushpool/pushpool/shared/delivery"
)

// FuzzHTTP holds that whatever is posted to a subscription's endpoint is answered, and that a
// handler is called only with what a push holds.
func FuzzHTTP(f *testing.F) {
	f.Add([]byte(`{"message":{"data":"e30=","messageId":"1","publishTime":"2026-01-01T00:00:00Z","attributes":{"a":"b"}},"subscription":"projects/p/subscriptions/s","deliveryAttempt":2}`))
	f.Add([]byte(`{"message":{"message_id":"1"},"delivery_attempt":1}`))
	f.Add([]byte(`{"message":null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		called := false
		endpoint := delivery.HTTP(func(_ context.Context, d delivery.Delivery) error {
			called = true
			_, _ = d.FirstMessageID(), d.FirstPublishTime()
			return nil
		}, delivery.Options{})
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
		w := httptest.NewRecorder()
		endpoint.ServeHTTP(w, r)
		if want := map[bool]int{true: http.StatusNoContent, false: http.StatusBadRequest}[called]; w.Code != want {
			t.Errorf("called %t, answered %d", called, w.Code)
		}
	})
}
