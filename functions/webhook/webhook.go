// Package webhook takes flow run events from Prefect's webhook action to the topic flow-runs.
package webhook

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/telemetry"
)

const (
	// maxBody bounds a request. Prefect's largest event has 1.5 MB.
	maxBody = 2 << 20
	// timeout leaves Prefect's webhook action, which waits 5 s, time for the answer.
	timeout = 4 * time.Second
)

// Topic is the topic flow-runs.
type Topic interface {
	Publish(ctx context.Context, data []byte, attributes map[string]string) (messageID string, err error)
}

// Webhook answers
//
//	204  the event is published
//	400  the body is no flow run event; the answer says what to send
//	401  no valid secret
//	405  not a POST
//	413  larger than 2 MiB
//	503  the event could not be published; Prefect does not repeat it, the sweep finds the flow run
type Webhook struct {
	topic   Topic
	secrets [][sha256.Size]byte
	log     *slog.Logger
}

func newWebhook(topic Topic, secrets []string, log *slog.Logger) *Webhook {
	w := &Webhook{topic: topic, log: log}
	for _, s := range secrets {
		w.secrets = append(w.secrets, sha256.Sum256([]byte(s)))
	}
	return w
}

// ServeHTTP implements http.Handler. It logs one line about each request.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(telemetry.WithLine(telemetry.WithTrace(r.Context(), r.Header)), timeout)
	defer cancel()
	status, err := h.receive(ctx, w, r)
	attrs := []slog.Attr{slog.String("function", "webhook"), slog.Int("status", status), slog.Float64("took", time.Since(start).Seconds())}
	attrs = append(attrs, telemetry.Attrs(ctx)...)
	if err != nil {
		level := slog.LevelWarn // it is the caller's to mend, who reads the answer
		if status >= http.StatusInternalServerError {
			level = slog.LevelError
		}
		h.log.LogAttrs(ctx, level, "the event was not taken; if it was about a flow run of ours, the sweep finds that within its interval",
			append(attrs, slog.String("error", err.Error()))...)
		http.Error(w, err.Error(), status)
		return
	}
	h.log.LogAttrs(ctx, slog.LevelInfo, "event published", attrs...)
	w.WriteHeader(status)
}

func (h *Webhook) receive(ctx context.Context, w http.ResponseWriter, r *http.Request) (status int, err error) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return http.StatusMethodNotAllowed, fmt.Errorf("method %s: use POST", r.Method)
	}
	if !h.authorized(r) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return http.StatusUnauthorized, errors.New(`no valid secret; send the header "Authorization: Bearer SECRET" with a secret of this installation`)
	}
	deadline, _ := ctx.Deadline()
	_ = http.NewResponseController(w).SetReadDeadline(deadline) // a recorder has none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return http.StatusRequestEntityTooLarge, fmt.Errorf("read body: larger than %d bytes", large.Limit)
		}
		return http.StatusBadRequest, fmt.Errorf("read body: %w", err)
	}
	m, err := message.Decode(body, nil)
	if err != nil {
		return http.StatusBadRequest, errors.New(strings.ReplaceAll(err.Error(), token(r), "(secret)")) // which it quotes from
	}
	event, ok := m.(message.PrefectEvent)
	if !ok {
		return http.StatusBadRequest, errors.New("message: not a Prefect event; publish run requests to the topic flow-runs")
	}
	telemetry.Add(ctx, slog.String(telemetry.FlowRunID, event.FlowRunID), slog.String("deployment_id", event.DeploymentID),
		slog.String("work_pool", event.WorkPool), slog.String("state_type", event.StateType), slog.String("state_name", event.StateName))
	var attributes map[string]string
	if parent := telemetry.Traceparent(ctx); parent != "" {
		attributes = map[string]string{"traceparent": parent}
	}
	id, err := h.topic.Publish(ctx, body, attributes)
	if err != nil {
		return http.StatusServiceUnavailable, err
	}
	telemetry.Add(ctx, slog.String("message_id", id))
	return http.StatusNoContent, nil
}

// authorized compares with all secrets in constant time, so that neither which of them
// matches nor how far it does shows in the time that the answer takes.
func (h *Webhook) authorized(r *http.Request) bool {
	sum := sha256.Sum256([]byte(token(r)))
	match := 0
	for _, s := range h.secrets {
		match |= subtle.ConstantTimeCompare(sum[:], s[:])
	}
	return match == 1
}

// token is what the request has for a secret.
func token(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}
