package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
	"github.com/pushpool/pushpool/shared/publish"
)

// patience bounds waits for what has to come; no test passes by waiting it out.
const patience = time.Minute

// Names on the Pub/Sub that a test talks to. The project is each test's own.
const (
	topic     = "flow-runs"
	pushed    = "flow-runs-push"
	deadTopic = "dead-letters"
	deadSub   = "dead-letters-pull"
)

func TestPubSubInThisProcess(t *testing.T) {
	server, err := deliverytest.NewPubSub(deliverytest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, server.Close()) })
	testPushes(t, server.Addr(), func(t *testing.T, _ *pubsub.Client, project, url string) {
		pusher, err := deliverytest.NewPusher(t.Context(), deliverytest.PusherOptions{
			Addr: server.Addr(), Project: project, Topic: topic, Subscription: pushed, Endpoint: url, MinBackoff: time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { check(t, pusher.Close()) })
	})
}

func TestPubSubEmulator(t *testing.T) {
	addr := os.Getenv("PUSHPOOL_TEST_PUBSUB")
	if addr == "" {
		const hint = "set PUSHPOOL_TEST_PUBSUB to host:port of `gcloud beta emulators pubsub start`"
		if os.Getenv("CI") == "true" {
			t.Fatal(hint)
		}
		t.Skip(hint)
	}
	testPushes(t, addr, func(t *testing.T, client *pubsub.Client, project, url string) {
		_, err := client.SubscriptionAdminClient.CreateSubscription(t.Context(), &pubsubpb.Subscription{
			Name: "projects/" + project + "/subscriptions/" + pushed, Topic: "projects/" + project + "/topics/" + topic,
			PushConfig: &pubsubpb.PushConfig{PushEndpoint: url}, AckDeadlineSeconds: 600,
			RetryPolicy: &pubsubpb.RetryPolicy{MinimumBackoff: &durationpb.Duration{}, MaximumBackoff: durationpb.New(time.Second)},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // or the emulator goes on pushing to a port that is soon another's
			check(t, client.SubscriptionAdminClient.DeleteSubscription(context.WithoutCancel(t.Context()),
				&pubsubpb.DeleteSubscriptionRequest{Subscription: "projects/" + project + "/subscriptions/" + pushed}))
		})
	})
}

// testPushes publishes to the Pub/Sub at addr, from which subscribe pushes to a URL.
func testPushes(t *testing.T, addr string, subscribe func(t *testing.T, client *pubsub.Client, project, url string)) {
	project := fmt.Sprintf("test-%d", time.Now().UnixNano())
	client, err := pubsub.NewClient(t.Context(), project, deliverytest.ClientOptions(addr)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, client.Close()) })
	for _, id := range []string{topic, deadTopic} {
		if _, err := client.TopicAdminClient.CreateTopic(t.Context(), &pubsubpb.Topic{Name: "projects/" + project + "/topics/" + id}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.SubscriptionAdminClient.CreateSubscription(t.Context(), &pubsubpb.Subscription{
		Name: "projects/" + project + "/subscriptions/" + deadSub, Topic: "projects/" + project + "/topics/" + deadTopic,
	}); err != nil {
		t.Fatal(err)
	}
	messages, dead := publish.New(client, topic), publish.New(client, deadTopic)
	t.Cleanup(messages.Close)
	t.Cleanup(dead.Close)

	got := make(chan delivery.Delivery, 100)
	failed := false // deliveries of one message come one after the other
	endpoint := httptest.NewServer(delivery.HTTP(func(_ context.Context, d delivery.Delivery) error {
		got <- d
		switch string(d.Data) {
		case "fails once":
			if !failed {
				failed = true
				return errors.New("not yet")
			}
		case "never":
			return delivery.Unprocessable(errors.New("no such deployment"))
		}
		return nil
	}, delivery.Options{DeadLetter: dead, Function: "f"}))
	t.Cleanup(endpoint.Close)
	subscribe(t, client, project, endpoint.URL)

	// One after the other: each delivery that is not expected shows in the next step.
	for _, step := range []struct {
		data string
		want int // deliveries
	}{{"acknowledged", 1}, {"fails once", 2}, {"never", 1}, {"after all", 1}} {
		id, err := messages.Publish(t.Context(), []byte(step.data), map[string]string{"a": "b"})
		if err != nil {
			t.Fatal(err)
		}
		for range step.want {
			d := receive(t, got)
			if d.PublishTime.IsZero() {
				t.Errorf("%s: no publish time", step.data)
			}
			d.PublishTime, d.Attempt = time.Time{}, 0
			want := delivery.Delivery{
				MessageID: id, Attributes: map[string]string{"a": "b"}, Data: []byte(step.data),
				Subscription: "projects/" + project + "/subscriptions/" + pushed,
			}
			if diff := cmp.Diff(want, d); diff != "" {
				t.Error(diff)
			}
			if step.data == "never" {
				checkDeadLetter(t, client, "projects/"+project+"/subscriptions/"+deadSub, id)
			}
		}
	}
}

func receive(t *testing.T, got <-chan delivery.Delivery) delivery.Delivery {
	t.Helper()
	select {
	case d := <-got:
		return d
	case <-time.After(patience):
		t.Fatal("no push came")
		return delivery.Delivery{}
	}
}

// checkDeadLetter waits for the message in the dead-letter topic.
func checkDeadLetter(t *testing.T, client *pubsub.Client, subscription, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		// It waits on the server; that may answer with nothing before something comes.
		r, err := client.SubscriptionAdminClient.Pull(ctx, &pubsubpb.PullRequest{Subscription: subscription, MaxMessages: 10})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.ReceivedMessages) == 0 {
			continue
		}
		m := r.ReceivedMessages[0].Message
		at, err := time.Parse(time.RFC3339Nano, m.Attributes[delivery.AttrFirstPublishTime])
		if err != nil || at.IsZero() {
			t.Errorf("first publish time: %v", err)
		}
		delete(m.Attributes, delivery.AttrFirstPublishTime)
		want := map[string]string{"a": "b", delivery.AttrReason: "no such deployment", delivery.AttrFunction: "f", delivery.AttrFirstMessageID: id}
		if diff := cmp.Diff(want, m.Attributes); diff != "" || string(m.Data) != "never" || len(r.ReceivedMessages) != 1 {
			t.Errorf("%d messages, data %q, attributes %s", len(r.ReceivedMessages), m.Data, diff)
		}
		return
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
