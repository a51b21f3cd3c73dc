package deliverytest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	setupTimeout = 30 * time.Second
	// answerTimeout is Pub/Sub's longest acknowledgement deadline, so its longest wait for an answer.
	answerTimeout = 600 * time.Second
	// lease is how long a message stays ours after this process died; the client renews it
	// meanwhile. Pub/Sub allows no shorter one.
	lease = 10 * time.Second
	// returnTimeout bounds giving messages back in Close: the server may be gone.
	returnTimeout = time.Second
	// closeGrace is how long Close lets a request that is under way go on.
	closeGrace = 5 * time.Second
	// streams of messages. pstest hands each one about one message every 10 ms.
	streams = 8
)

// PusherOptions describe a push subscription.
type PusherOptions struct {
	Addr                         string // host:port of any Pub/Sub emulator
	Project, Topic, Subscription string // ids; topic and subscription are created if missing
	Endpoint                     string // URL
	// MinBackoff and MaxBackoff bound the wait after a failed attempt, which doubles each
	// time. 0 means Pub/Sub's defaults, 10 s and 600 s.
	MinBackoff, MaxBackoff time.Duration
	// MaxAttempts is after how many failed attempts a message goes to DeadLetterTopic (an id,
	// created if missing). Without either, messages are delivered until acknowledged and carry
	// no deliveryAttempt, as on Pub/Sub.
	MaxAttempts     int
	DeadLetterTopic string
	Concurrency     int           // requests at the same time; 0 means 100
	Timeout         time.Duration // of one request; 0 means 600 s
	// Fault, if set, is asked before each attempt what is to go wrong with it.
	Fault func(Push) Fault
}

// Push is one attempt to deliver a message.
type Push struct {
	MessageID  string
	Attempt    int // from 1
	Data       []byte
	Attributes map[string]string
}

// Fault is what goes wrong with one attempt. The zero value is nothing. Messages are
// reordered by delaying some of them.
type Fault struct {
	Lose   bool          // acknowledged without having been delivered
	Delay  time.Duration // before the attempt
	Copies int           // how many times more it is delivered at the same time
	Deaf   bool          // delivered, but the answer is lost: delivered again
}

// Pusher is the push half of Pub/Sub: it pulls from a subscription and posts to an endpoint.
type Pusher struct {
	o          PusherOptions
	client     *pubsub.Client
	http       *http.Client
	deadLetter *pubsub.Publisher
	slots      chan struct{}
	close      func() error

	mu       sync.Mutex
	attempts map[string]int // by message id, until acknowledged
	gate     chan struct{}  // closed: open
	ended    bool           // all streams
	returned []string       // acknowledgement ids of messages that go back when all streams have ended
}

// NewPusher creates the topics and the subscription where they are missing, and starts to
// push. ctx bounds the set-up only. Close the Pusher.
func NewPusher(ctx context.Context, o PusherOptions) (*Pusher, error) {
	o.MinBackoff = cmp.Or(o.MinBackoff, 10*time.Second)
	o.MaxBackoff = max(cmp.Or(o.MaxBackoff, 600*time.Second), o.MinBackoff)
	o.Concurrency = cmp.Or(o.Concurrency, 100)
	o.Timeout = cmp.Or(o.Timeout, answerTimeout)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = o.Concurrency
	p := &Pusher{
		o: o, slots: make(chan struct{}, o.Concurrency),
		attempts: map[string]int{}, gate: make(chan struct{}),
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	close(p.gate)
	client, err := pubsub.NewClient(context.WithoutCancel(ctx), o.Project,
		append(ClientOptions(o.Addr), option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(p.hold)))...)
	if err != nil {
		return nil, fmt.Errorf("connect to Pub/Sub at %s: %w", o.Addr, err)
	}
	p.client = client
	if err := p.setUp(ctx); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	if o.DeadLetterTopic != "" {
		p.deadLetter = client.Publisher(o.DeadLetterTopic)
		p.deadLetter.PublishSettings.DelayThreshold = time.Millisecond
	}
	receiving, stop := context.WithCancel(context.WithoutCancel(ctx))
	subscriber := client.Subscriber(o.Subscription)
	subscriber.ReceiveSettings.NumGoroutines = streams
	// Messages are held while they wait for their next attempt, and must not hold up others.
	subscriber.ReceiveSettings.MaxOutstandingMessages = -1
	subscriber.ReceiveSettings.MaxOutstandingBytes = -1
	subscriber.ReceiveSettings.MaxExtension = 7 * 24 * time.Hour
	subscriber.ReceiveSettings.MinDurationPerAckExtension = lease
	subscriber.ReceiveSettings.MaxDurationPerAckExtension = lease
	ended := make(chan error, 1)
	go func() { ended <- subscriber.Receive(receiving, p.push) }()
	p.close = sync.OnceValue(func() error {
		stop()
		err := <-ended
		p.giveBack()
		if p.deadLetter != nil {
			p.deadLetter.Stop()
		}
		p.http.CloseIdleConnections()
		return errors.Join(err, client.Close())
	})
	return p, nil
}

// Pause holds back attempts that have not begun, until Resume.
func (p *Pusher) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
		p.gate = make(chan struct{})
	default: // paused already
	}
}

// Resume ends a Pause.
func (p *Pusher) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// Close stops pushing and waits for requests under way, 5 s at most. Messages that were not
// acknowledged go back to the subscription. The error is why pushing ended before, if it did.
// Closing twice is harmless.
func (p *Pusher) Close() error { return p.close() }

func (p *Pusher) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	for _, id := range []string{p.o.Topic, p.o.DeadLetterTopic} {
		if id == "" {
			continue
		}
		_, err := p.client.TopicAdminClient.CreateTopic(ctx, &pubsubpb.Topic{Name: p.name("topics", id)})
		if err != nil && status.Code(err) != codes.AlreadyExists {
			return fmt.Errorf("create topic %s: %w", id, err)
		}
	}
	_, err := p.client.SubscriptionAdminClient.CreateSubscription(ctx, &pubsubpb.Subscription{
		Name: p.name("subscriptions", p.o.Subscription), Topic: p.name("topics", p.o.Topic),
		AckDeadlineSeconds: int32(lease / time.Second),
	})
	if err != nil && status.Code(err) != codes.AlreadyExists {
		return fmt.Errorf("create subscription %s: %w", p.o.Subscription, err)
	}
	return nil
}

func (p *Pusher) name(kind, id string) string {
	return fmt.Sprintf("projects/%s/%s/%s", p.o.Project, kind, id)
}

// push delivers one message until it is acknowledged, dead-lettered, or the Pusher closes.
func (p *Pusher) push(ctx context.Context, m *pubsub.Message) {
	for {
		acknowledged, attempt, err := p.try(ctx, m)
		if err != nil { // closing, the attempt did not begin
			m.Nack()
			return
		}
		if !acknowledged && p.deadLetter != nil && p.o.MaxAttempts > 0 && attempt >= p.o.MaxAttempts {
			acknowledged = p.moveAway(ctx, m, attempt)
		}
		if acknowledged {
			p.mu.Lock()
			delete(p.attempts, m.ID)
			p.mu.Unlock()
			m.Ack()
			return
		}
		if wait(ctx, p.backoff(attempt)) != nil {
			m.Nack()
			return
		}
	}
}

// try makes one attempt, once there is room and no pause.
func (p *Pusher) try(ctx context.Context, m *pubsub.Message) (acknowledged bool, attempt int, err error) {
	if err := p.enter(ctx); err != nil {
		return false, 0, err
	}
	p.mu.Lock()
	p.attempts[m.ID]++
	attempt = p.attempts[m.ID]
	p.mu.Unlock()
	var fault Fault
	if p.o.Fault != nil {
		fault = p.o.Fault(Push{MessageID: m.ID, Attempt: attempt, Data: bytes.Clone(m.Data), Attributes: maps.Clone(m.Attributes)})
	}
	if fault.Delay > 0 { // others may overtake meanwhile
		<-p.slots
		if err := wait(ctx, fault.Delay); err != nil {
			return false, attempt, err
		}
		if err := p.enter(ctx); err != nil {
			return false, attempt, err
		}
	}
	defer func() { <-p.slots }()
	if fault.Lose {
		return true, attempt, nil
	}
	var copies sync.WaitGroup
	for range fault.Copies {
		copies.Go(func() { p.post(ctx, m, attempt) })
	}
	acknowledged = p.post(ctx, m, attempt)
	copies.Wait()
	return acknowledged && !fault.Deaf, attempt, nil
}

// enter waits for a slot with the gate open.
func (p *Pusher) enter(ctx context.Context) error {
	for {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		p.mu.Lock()
		gate := p.gate
		p.mu.Unlock()
		select {
		case <-gate:
			if ctx.Err() != nil {
				<-p.slots
			}
			return ctx.Err()
		default:
		}
		<-p.slots
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *Pusher) post(ctx context.Context, m *pubsub.Message, attempt int) bool {
	request, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.o.Timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		_ = wait(request, closeGrace)
		cancel()
	})()
	r, err := http.NewRequestWithContext(request, http.MethodPost, p.o.Endpoint, bytes.NewReader(p.body(m, attempt)))
	if err != nil {
		return false
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "CloudPubSub-Google")
	response, err := p.http.Do(r)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	switch response.StatusCode { // https://cloud.google.com/pubsub/docs/push#receive_push
	case http.StatusProcessing, http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent:
		return true
	}
	return false
}

// body is the wrapped push, with most keys in both spellings as Pub/Sub writes it.
func (p *Pusher) body(m *pubsub.Message, attempt int) []byte {
	published := m.PublishTime.UTC().Format(time.RFC3339Nano)
	message := map[string]any{
		"data": m.Data, "messageId": m.ID, "message_id": m.ID, "publishTime": published, "publish_time": published,
	}
	if len(m.Attributes) > 0 {
		message["attributes"] = m.Attributes
	}
	if m.OrderingKey != "" {
		message["orderingKey"] = m.OrderingKey
	}
	envelope := map[string]any{"message": message, "subscription": p.name("subscriptions", p.o.Subscription)}
	if p.o.DeadLetterTopic != "" && p.o.MaxAttempts > 0 {
		envelope["deliveryAttempt"] = attempt
	}
	data, err := json.Marshal(envelope)
	if err != nil {
		panic(err) // maps of strings, bytes and numbers always encode
	}
	return data
}

// moveAway publishes a message to the dead-letter topic with the attributes that Pub/Sub adds
// (https://cloud.google.com/pubsub/docs/handling-failures#track_delivery_attempts).
func (p *Pusher) moveAway(ctx context.Context, m *pubsub.Message, attempt int) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), setupTimeout)
	defer cancel()
	attributes := maps.Clone(m.Attributes)
	if attributes == nil {
		attributes = map[string]string{}
	}
	attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = strconv.Itoa(attempt)
	attributes["CloudPubSubDeadLetterSourceSubscription"] = p.o.Subscription
	attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = p.o.Project
	attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = m.PublishTime.UTC().Format(time.RFC3339Nano)
	_, err := p.deadLetter.Publish(ctx, &pubsub.Message{Data: m.Data, Attributes: attributes}).Get(ctx)
	return err == nil
}

// backoff is the wait after the given attempt.
func (p *Pusher) backoff(attempt int) time.Duration {
	d := p.o.MinBackoff
	for range attempt - 1 {
		if d *= 2; d >= p.o.MaxBackoff {
			return p.o.MaxBackoff
		}
	}
	return d
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
