package deliverytest_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
)

// patience bounds waits for what has to come; no test passes by waiting it out.
const patience = time.Minute

func TestAMessageIsPushedOnceWhenAcknowledged(t *testing.T) {
	server := newPubSub(t)
	for _, status := range []int{200, 201, 202, 204} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			e := newEndpoint(t, always(status))
			p := newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL})
			publish(t, server.Addr(), "hello", map[string]string{"a": "b"})
			if diff := cmp.Diff(received{"hello", 0, map[string]string{"a": "b"}}, e.next(t)); diff != "" {
				t.Error(diff)
			}
			check(t, p.Close()) // after it nothing is under way
			if len(e.got) > 0 {
				t.Errorf("pushed again: %v", <-e.got)
			}
			check(t, newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL}).Close())
		})
	}
}

func TestOtherAnswersAreRedeliveredAndCounted(t *testing.T) {
	server := newPubSub(t)
	statuses := []int{500, 503, 400, 429, 302, 203, 204}
	var mu sync.Mutex
	e := newEndpoint(t, func(received) int {
		mu.Lock()
		defer mu.Unlock()
		s := statuses[0]
		statuses = statuses[1:]
		return s
	})
	newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL, MaxAttempts: 100, DeadLetterTopic: "dead"})
	publish(t, server.Addr(), "x", nil)
	for attempt := range 7 {
		if diff := cmp.Diff(received{Data: "x", Attempt: attempt + 1}, e.next(t)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestAMessageGoesToTheDeadLetterTopicAfterItsLastAttempt(t *testing.T) {
	server := newPubSub(t)
	client := newClient(t, server.Addr())
	e := newEndpoint(t, always(500))
	newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL, MaxAttempts: 3, DeadLetterTopic: "dead"})
	_, err := client.SubscriptionAdminClient.CreateSubscription(t.Context(), &pubsubpb.Subscription{Name: "projects/proj/subscriptions/dead", Topic: "projects/proj/topics/dead"})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, server.Addr(), "x", map[string]string{"a": "b"})
	got := pull(t, client, "dead")
	for attempt := range 3 {
		if r := e.next(t); r.Attempt != attempt+1 {
			t.Errorf("attempt %d, want %d", r.Attempt, attempt+1)
		}
	}
	if len(e.got) > 0 {
		t.Error("pushed a fourth time")
	}
	if _, err := time.Parse(time.RFC3339Nano, got.Attributes["CloudPubSubDeadLetterSourceTopicPublishTime"]); err != nil {
		t.Error(err)
	}
	delete(got.Attributes, "CloudPubSubDeadLetterSourceTopicPublishTime")
	want := map[string]string{
		"a": "b", "CloudPubSubDeadLetterSourceDeliveryCount": "3", "CloudPubSubDeadLetterSourceSubscription": "pushed",
		"CloudPubSubDeadLetterSourceSubscriptionProject": "proj",
	}
	if diff := cmp.Diff(want, got.Attributes); diff != "" || string(got.Data) != "x" {
		t.Errorf("data %q, attributes %s", got.Data, diff)
	}
}

// pull receives one message with a stream, as the client library does it.
func pull(t *testing.T, client *pubsub.Client, subscription string) *pubsub.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var once sync.Once
	var got *pubsub.Message
	err := client.Subscriber(subscription).Receive(ctx, func(_ context.Context, m *pubsub.Message) {
		m.Ack()
		once.Do(func() { got = m; cancel() })
	})
	check(t, err)
	if got == nil {
		t.Fatal("no message came")
	}
	return got
}

func TestFaults(t *testing.T) {
	first := func(f deliverytest.Fault) func(deliverytest.Push) deliverytest.Fault {
		return func(p deliverytest.Push) deliverytest.Fault {
			if string(p.Data) == "a" && p.Attempt == 1 {
				return f
			}
			return deliverytest.Fault{}
		}
	}
	for name, test := range map[string]struct {
		fault deliverytest.Fault
		want  []string // in any order
	}{
		"lost":                   {deliverytest.Fault{Lose: true}, []string{"b"}},
		"duplicated":             {deliverytest.Fault{Copies: 2}, []string{"a", "a", "a", "b"}},
		"the answer is lost":     {deliverytest.Fault{Deaf: true}, []string{"a", "a", "b"}},
		"delayed, not forgotten": {deliverytest.Fault{Delay: time.Millisecond}, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := newPubSub(t)
			e := newEndpoint(t, always(204))
			newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL, Fault: first(test.fault)})
			publish(t, server.Addr(), "a", nil)
			var got []string
			for range len(test.want) - 1 {
				got = append(got, e.next(t).Data)
				if got[0] == "b" {
					t.Fatal("b before it was published")
				}
			}
			publish(t, server.Addr(), "b", nil)
			got = append(got, e.next(t).Data)
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestADelayedMessageIsOvertaken(t *testing.T) {
	server := newPubSub(t)
	e := newEndpoint(t, always(204))
	newPusher(t, deliverytest.PusherOptions{
		Addr: server.Addr(), Endpoint: e.URL, Concurrency: 1,
		Fault: func(p deliverytest.Push) (f deliverytest.Fault) {
			if string(p.Data) == "slow" {
				f.Delay = time.Hour
			}
			return f
		},
	})
	publish(t, server.Addr(), "slow", nil)
	publish(t, server.Addr(), "fast", nil)
	if got := e.next(t); got.Data != "fast" {
		t.Error(got)
	}
}

func TestPauseHoldsMessagesBackUntilResume(t *testing.T) {
	server := newPubSub(t)
	pushers := make(chan *deliverytest.Pusher, 1)
	e := newEndpoint(t, func(r received) int {
		if r.Attributes["pause"] == "" {
			return 204
		}
		p := <-pushers
		p.Pause()
		p.Pause()
		return 204
	})
	start := func() *deliverytest.Pusher {
		return newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL})
	}
	pausing := map[string]string{"pause": "yes"}

	p := start()
	pushers <- p
	publish(t, server.Addr(), "1", pausing)
	e.next(t)
	publish(t, server.Addr(), "2", nil)
	p.Resume()
	p.Resume()
	if got := e.next(t); got.Data != "2" {
		t.Errorf("after Resume: %v", got)
	}

	pushers <- p
	publish(t, server.Addr(), "3", pausing)
	e.next(t)
	publish(t, server.Addr(), "4", nil)
	check(t, p.Close())
	if len(e.got) > 0 {
		t.Errorf("pushed while paused: %v", <-e.got)
	}
}

func TestCloseGivesBackWhatWasNotAcknowledged(t *testing.T) {
	server := newPubSub(t)
	down := newEndpoint(t, always(500))
	p := newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: down.URL, MinBackoff: time.Hour})
	publish(t, server.Addr(), "x", nil)
	down.next(t)
	check(t, p.Close())
	up := newEndpoint(t, always(204))
	newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: up.URL})
	if got := up.next(t); got.Data != "x" {
		t.Error(got)
	}
}

func TestConcurrencyIsBounded(t *testing.T) {
	server := newPubSub(t)
	var mu sync.Mutex
	var now, most int
	e := newEndpoint(t, func(received) int {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		defer func() { mu.Lock(); now--; mu.Unlock() }()
		return 204
	})
	newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL, Concurrency: 2})
	for i := range 50 {
		server.Server().Publish("projects/proj/topics/flows", fmt.Append(nil, i), nil)
	}
	seen := map[string]bool{}
	for len(seen) < 50 {
		seen[e.next(t).Data] = true
	}
	mu.Lock()
	defer mu.Unlock()
	if most > 2 {
		t.Errorf("%d requests at once", most)
	}
}

func TestAnEndpointThatIsDownIsTriedAgain(t *testing.T) {
	server := newPubSub(t)
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	tried := make(chan int, 1000)
	newPusher(t, deliverytest.PusherOptions{
		Addr: server.Addr(), Endpoint: down.URL,
		Fault: func(p deliverytest.Push) deliverytest.Fault { tried <- p.Attempt; return deliverytest.Fault{} },
	})
	publish(t, server.Addr(), "x", nil)
	for want := range 3 {
		select {
		case got := <-tried:
			if got != want+1 {
				t.Errorf("attempt %d, want %d", got, want+1)
			}
		case <-time.After(patience):
			t.Fatal("not tried")
		}
	}
}

func TestManyMessagesAllArriveThroughOnePort(t *testing.T) {
	server := newPubSub(t)
	e := newEndpoint(t, always(204))
	newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL})
	p := newClient(t, server.Addr()).Publisher("flows")
	defer p.Stop()
	const many = 500
	for i := range many {
		r := p.Publish(t.Context(), &pubsub.Message{Data: fmt.Append(nil, i)})
		defer func() {
			_, err := r.Get(t.Context())
			check(t, err)
		}()
	}
	start := time.Now()
	seen := map[string]bool{}
	for len(seen) < many {
		seen[e.next(t).Data] = true
	}
	t.Logf("%d messages in %s", many, time.Since(start))
}

func TestAnAddressInUseIsAnError(t *testing.T) {
	if _, err := deliverytest.NewPubSub(deliverytest.Options{Addr: newPubSub(t).Addr()}); err == nil {
		t.Error("no error")
	}
}

func TestAServerThatIsNotThereIsAnError(t *testing.T) {
	server := newPubSub(t)
	addr := server.Addr()
	check(t, server.Close())
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := deliverytest.NewPusher(ctx, deliverytest.PusherOptions{Addr: addr, Project: "proj", Topic: "flows", Subscription: "pushed"}); err == nil {
		t.Error("no error")
	}
}
