package deliverytest_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"

	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
)

type received struct {
	Data       string
	Attempt    int
	Attributes map[string]string
}

// endpoint records pushes and answers as told.
type endpoint struct {
	*httptest.Server
	got chan received
}

func newEndpoint(t *testing.T, answer func(r received) int) *endpoint {
	t.Helper()
	e := &endpoint{got: make(chan received, 10000)}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Message struct {
				Data             []byte            `json:"data"`
				Attributes       map[string]string `json:"attributes"`
				MessageID        string            `json:"messageId"`
				MessageIDSnake   string            `json:"message_id"`
				PublishTime      time.Time         `json:"publishTime"`
				PublishTimeSnake time.Time         `json:"publish_time"`
			} `json:"message"`
			Subscription    string `json:"subscription"`
			DeliveryAttempt int    `json:"deliveryAttempt"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Errorf("body: %v", err)
		}
		m := body.Message
		if m.MessageID == "" || m.MessageID != m.MessageIDSnake || m.PublishTime.IsZero() || !m.PublishTime.Equal(m.PublishTimeSnake) || body.Subscription != "projects/proj/subscriptions/pushed" {
			t.Errorf("body %+v", body)
		}
		got := received{string(m.Data), body.DeliveryAttempt, m.Attributes}
		w.WriteHeader(answer(got))
		e.got <- got
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) next(t *testing.T) received {
	t.Helper()
	select {
	case r := <-e.got:
		return r
	case <-time.After(patience):
		t.Fatal("no push came")
		return received{}
	}
}

func always(status int) func(received) int { return func(received) int { return status } }

func newPubSub(t *testing.T) *deliverytest.PubSub {
	t.Helper()
	p, err := deliverytest.NewPubSub(deliverytest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, p.Close()) })
	return p
}

func newClient(t *testing.T, addr string) *pubsub.Client {
	t.Helper()
	c, err := pubsub.NewClient(t.Context(), "proj", deliverytest.ClientOptions(addr)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, c.Close()) })
	return c
}

func newPusher(t *testing.T, o deliverytest.PusherOptions) *deliverytest.Pusher {
	t.Helper()
	o.Project, o.Topic, o.Subscription = "proj", "flows", "pushed"
	if o.MinBackoff == 0 {
		o.MinBackoff, o.MaxBackoff = time.Millisecond, 10*time.Millisecond
	}
	p, err := deliverytest.NewPusher(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, p.Close()) })
	return p
}

func publish(t *testing.T, addr, data string, attributes map[string]string) {
	t.Helper()
	p := newClient(t, addr).Publisher("flows")
	defer p.Stop()
	if _, err := p.Publish(t.Context(), &pubsub.Message{Data: []byte(data), Attributes: attributes}).Get(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
