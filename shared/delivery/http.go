package delivery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/telemetry"
)

const (
	// maxBody bounds a push body: Pub/Sub's 10 MB of data in base64, and attributes.
	maxBody = 15 << 20
	// readTimeout bounds the time that a body takes to come.
	readTimeout = 30 * time.Second
	// publishTimeout bounds the publication to the dead-letter topic.
	publishTimeout = 10 * time.Second
	// maxAttribute is Pub/Sub's bound on an attribute's value, in bytes.
	maxAttribute = 1024

	defaultTimeout = 60 * time.Second
)

// Verdicts of the line that is logged about a delivery.
const (
	acknowledged = "acknowledged"
	redelivered  = "redelivered"
	deadLettered = "dead-lettered"
)

// lineKeys are on every line, also when the handler did not add them.
var lineKeys = []string{telemetry.FlowRunID, "deployment_id", "work_pool", "execution"}

// Options say how HTTP delivers.
type Options struct {
	// DeadLetter takes the messages of Unprocessable errors. Without it they are delivered
	// again until the subscription itself moves them.
	DeadLetter Publisher
	// MaxAttempts is the subscription's max_delivery_attempts; 0 if it has no dead-letter policy.
	MaxAttempts int
	// Timeout bounds one call of the handler; 0 means 60 s. It has to be shorter than the
	// subscription's acknowledgement deadline, or the message is delivered twice at once.
	Timeout  time.Duration
	Logger   *slog.Logger
	Function string // the function's name in log lines and dead letters
}

// HTTP returns the endpoint of a push subscription with wrapped messages. Per message it
// calls h once and logs exactly one line with the keys function, message_id, flow_run_id,
// deployment_id, work_pool, execution, attempt, verdict and took (in seconds), and whatever
// else h gives to telemetry.Add. It answers
//
//	204  acknowledged: nil, or an Unprocessable error or one of the last attempt, whose message is in the dead-letter topic
//	503  any other error, or the dead letter could not be published: delivered again
//	500  h panicked: delivered again
//	400  not a wrapped push, 413 larger than 15 MiB, 405 not a POST
func HTTP(h Handler, o Options) http.Handler {
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &endpoint{handle: h, Options: o}
}

type endpoint struct {
	handle Handler
	Options
}

// result is what becomes of a delivery.
type result struct {
	status  int
	verdict string
	level   slog.Level
	message string
	err     error
	stack   []byte
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx := telemetry.WithLine(telemetry.WithTrace(r.Context(), r.Header))
	d, bad := read(w, r)
	if bad != nil {
		e.log(ctx, d, *bad, start)
		http.Error(w, bad.err.Error(), bad.status)
		return
	}
	ctx = telemetry.WithMessageTrace(ctx, d.Attributes)
	res := e.deliver(ctx, d)
	e.log(ctx, d, res, start)
	w.WriteHeader(res.status)
}

func (e *endpoint) deliver(ctx context.Context, d Delivery) result {
	err, stack := e.call(ctx, d)
	if err == nil {
		return result{status: http.StatusNoContent, verdict: acknowledged, level: slog.LevelInfo, message: "done"}
	}
	last := e.MaxAttempts > 0 && d.Attempt >= e.MaxAttempts
	if last || IsUnprocessable(err) {
		// On the last attempt Pub/Sub would move the message itself, but under a new id and
		// without the reason: published again, a run request would be a second one.
		publishErr := e.deadLetter(ctx, d, err)
		if publishErr == nil {
			res := result{
				status: http.StatusNoContent, verdict: deadLettered, level: slog.LevelError,
				message: "this message can never be processed; it was moved to the dead-letter topic", err: err, stack: stack,
			}
			if !IsUnprocessable(err) {
				res.message = fmt.Sprintf("failed on delivery attempt %d of %d; the message was moved to the dead-letter topic", d.Attempt, e.MaxAttempts)
			}
			return res
		}
		err = errors.Join(err, publishErr)
	}
	res := result{
		status: http.StatusServiceUnavailable, verdict: redelivered, level: slog.LevelWarn,
		message: "failed; the message will be delivered again", err: err, stack: stack,
	}
	if stack != nil {
		res.status, res.level = http.StatusInternalServerError, slog.LevelError
		res.message = "panicked; the message will be delivered again"
	}
	if last {
		res.verdict, res.level = deadLettered, slog.LevelError
		res.message = fmt.Sprintf("failed on delivery attempt %d of %d; Pub/Sub moves the message to the dead-letter topic", d.Attempt, e.MaxAttempts)
	}
	return res
}

// call runs the handler and turns a panic into an error with its stack.
func (e *endpoint) call(ctx context.Context, d Delivery) (err error, stack []byte) {
	defer func() {
		if p := recover(); p != nil {
			err, stack = fmt.Errorf("panic: %v", p), debug.Stack()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	return e.handle(ctx, d), nil
}

// deadLetter publishes the message as it came, so that it can be published again as it is.
func (e *endpoint) deadLetter(ctx context.Context, d Delivery, reason error) error {
	if e.DeadLetter == nil {
		return errors.New("no dead-letter topic is configured")
	}
	attributes := map[string]string{}
	for key, value := range d.Attributes {
		if !strings.HasPrefix(key, "goog") { // reserved: Pub/Sub refuses to publish them
			attributes[key] = value
		}
	}
	attributes[AttrReason] = cut(reason.Error(), maxAttribute)
	attributes[AttrFunction] = e.Function
	attributes[AttrFirstMessageID] = d.FirstMessageID()
	attributes[AttrFirstPublishTime] = d.FirstPublishTime().UTC().Format(time.RFC3339Nano)
	// The handler may have used up the request's time; the message must still not be lost.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	if _, err := e.DeadLetter.Publish(ctx, d.Data, attributes); err != nil {
		return fmt.Errorf("publish message %s to the dead-letter topic: %w", d.MessageID, err)
	}
	return nil
}

func (e *endpoint) log(ctx context.Context, d Delivery, res result, start time.Time) {
	added := telemetry.Attrs(ctx)
	values := map[string]slog.Attr{}
	for _, a := range added {
		values[a.Key] = a
	}
	attrs := []slog.Attr{slog.String("function", e.Function), slog.String("message_id", d.MessageID)}
	for _, key := range lineKeys {
		a, ok := values[key]
		if !ok {
			a = slog.String(key, "")
		}
		attrs = append(attrs, a)
		delete(values, key)
	}
	attrs = append(attrs, slog.Int("attempt", d.Attempt), slog.String("verdict", res.verdict),
		slog.Float64("took", time.Since(start).Seconds()))
	if res.err != nil {
		attrs = append(attrs, slog.String("error", res.err.Error()))
	}
	if res.stack != nil {
		attrs = append(attrs, slog.String("stack_trace", res.err.Error()+"\n\n"+string(res.stack)))
	}
	fixed := map[string]bool{}
	for _, a := range attrs {
		fixed[a.Key] = true
	}
	for _, a := range added {
		if _, ok := values[a.Key]; ok && !fixed[a.Key] {
			attrs = append(attrs, a)
		}
	}
	e.Logger.LogAttrs(ctx, res.level, res.message, attrs...)
}

// envelope is the body of a wrapped push. Pub/Sub writes most keys in both spellings
// (https://cloud.google.com/pubsub/docs/push#receive_push).
type envelope struct {
	Message *struct {
		Data             []byte            `json:"data"`
		Attributes       map[string]string `json:"attributes"`
		MessageID        string            `json:"messageId"`
		MessageIDSnake   string            `json:"message_id"`
		PublishTime      time.Time         `json:"publishTime"`
		PublishTimeSnake time.Time         `json:"publish_time"`
	} `json:"message"`
	Subscription         string `json:"subscription"`
	DeliveryAttempt      int    `json:"deliveryAttempt"`
	DeliveryAttemptSnake int    `json:"delivery_attempt"`
}

func read(w http.ResponseWriter, r *http.Request) (Delivery, *result) {
	bad := func(status int, err error) (Delivery, *result) {
		return Delivery{}, &result{
			status: status, verdict: redelivered, level: slog.LevelError,
			message: "refused: the request is not a wrapped Pub/Sub push", err: err,
		}
	}
	if r.Method != http.MethodPost {
		return bad(http.StatusMethodNotAllowed, fmt.Errorf("method %s: use POST", r.Method))
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout)) // a recorder has none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return bad(http.StatusRequestEntityTooLarge, fmt.Errorf("read push body: larger than %d bytes", large.Limit))
		}
		return bad(http.StatusBadRequest, fmt.Errorf("read push body: %w", err))
	}
	var env envelope
	if err := json.Unmarshal(body, &env); err != nil {
		return bad(http.StatusBadRequest, fmt.Errorf("decode push body: %w", err))
	}
	m := env.Message
	if m == nil {
		return bad(http.StatusBadRequest, errors.New("decode push body: message is missing; set the subscription up without no_wrapper"))
	}
	return Delivery{
		MessageID:    cmp.Or(m.MessageID, m.MessageIDSnake),
		PublishTime:  cmp.Or(m.PublishTime, m.PublishTimeSnake),
		Attributes:   maps.Clone(m.Attributes),
		Data:         m.Data,
		Attempt:      cmp.Or(env.DeliveryAttempt, env.DeliveryAttemptSnake),
		Subscription: env.Subscription,
	}, nil
}

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len("…")], "") + "…"
}
