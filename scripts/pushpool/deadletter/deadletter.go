// Package deadletter shows what is in the dead-letter subscriptions, publishes it again or drops it.
package deadletter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/message"
)

// Letter is a message that could not be processed.
type Letter struct {
	ID           string    `json:"id"`
	Subscription string    `json:"subscription"`
	Published    time.Time `json:"published"` // into the dead-letter topic
	// Function is the one that could not process it; empty where nobody said.
	Function string `json:"function"`
	// Reason is why; where Pub/Sub moved the message itself, that is all that is known.
	Reason string `json:"reason"`
	// FirstMessageID is the id that it was published under at first; empty where Pub/Sub moved
	// it itself, which hides it.
	FirstMessageID string            `json:"first_message_id"`
	Data           string            `json:"data"`
	Attributes     map[string]string `json:"attributes"`

	ackID string
}

// Attributes that Pub/Sub adds where it moves a message itself
// (https://cloud.google.com/pubsub/docs/handling-failures#how_dead_letter_topics_work).
const (
	sourceCount        = "CloudPubSubDeadLetterSourceDeliveryCount"
	sourceSubscription = "CloudPubSubDeadLetterSourceSubscription"
	sourcePrefix       = "CloudPubSubDeadLetterSource"
)

const (
	// hold is how long letters that were pulled are kept from others, in seconds: Pub/Sub's longest.
	hold = 600
	page = 100
	// patience is how long a pull waits for a message that may not be there.
	patience = 1500 * time.Millisecond
	// answers is within what Pub/Sub answers that has nothing to wait for.
	answers = 10 * time.Second
)

// Box is the dead-letter subscriptions of an installation.
type Box struct {
	client        *pubsub.Client
	project       string
	subscriptions []string
}

// NewBox returns the box of these subscriptions' ids.
func NewBox(client *pubsub.Client, project string, subscriptions []string) *Box {
	return &Box{client: client, project: project, subscriptions: subscriptions}
}

func (b *Box) path(subscription string) string {
	return "projects/" + b.project + "/subscriptions/" + subscription
}

// Take pulls the letters that keep takes, at most so many; the others go back at once. Those
// taken are held from everybody else for up to ten minutes: give them to Release, Drop or Replay.
func (b *Box) Take(ctx context.Context, most int, keep func(Letter) bool) ([]Letter, error) {
	if len(b.subscriptions) == 0 {
		return nil, errors.New("read dead letters: DEAD_LETTER_SUBSCRIPTIONS is not set; write the ids of their subscriptions, separated by commas")
	}
	var taken, passed []Letter
	seen := map[string]bool{}
	var failed error
	for _, subscription := range b.subscriptions {
		for len(taken) < most {
			letters, err := b.pull(ctx, subscription)
			if err != nil {
				failed = errors.Join(failed, err)
				break
			}
			for _, l := range letters {
				if seen[l.ID] || len(taken) >= most || !keep(l) {
					passed = append(passed, l)
				} else {
					taken = append(taken, l)
				}
				seen[l.ID] = true
			}
			if len(letters) == 0 {
				break
			}
		}
	}
	return taken, errors.Join(failed, b.Release(ctx, passed))
}

func (b *Box) pull(ctx context.Context, subscription string) ([]Letter, error) {
	name := b.path(subscription)
	ask := func(patience time.Duration, atOnce bool) (*pubsubpb.PullResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return b.client.SubscriptionAdminClient.Pull(ctx, &pubsubpb.PullRequest{
			Subscription: name, MaxMessages: page, ReturnImmediately: atOnce, //nolint:staticcheck // see below
		})
	}
	answer, err := ask(patience, false)
	if ctx.Err() == nil && status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded) {
		// Pub/Sub waits for a message, or cannot be reached. Asked like this it answers.
		answer, err = ask(answers, true)
	}
	if err != nil {
		return nil, fmt.Errorf("pull dead letters from %s: %w; check that it exists and that you have roles/pubsub.subscriber on it", name, err)
	}
	var letters []Letter
	var ids []string
	for _, m := range answer.GetReceivedMessages() {
		l := read(subscription, m.GetMessage())
		l.ackID = m.GetAckId()
		letters, ids = append(letters, l), append(ids, m.GetAckId())
	}
	if len(ids) == 0 {
		return nil, nil
	}
	err = b.client.SubscriptionAdminClient.ModifyAckDeadline(ctx, &pubsubpb.ModifyAckDeadlineRequest{
		Subscription: name, AckIds: ids, AckDeadlineSeconds: hold,
	})
	return letters, err
}

func read(subscription string, m *pubsubpb.PubsubMessage) Letter {
	a := m.GetAttributes()
	l := Letter{
		ID: m.GetMessageId(), Subscription: subscription, Published: m.GetPublishTime().AsTime(),
		Function: a[delivery.AttrFunction], Reason: a[delivery.AttrReason], FirstMessageID: a[delivery.AttrFirstMessageID],
		Data: string(m.GetData()), Attributes: a,
	}
	if l.Reason == "" {
		l.Reason = fmt.Sprintf("Pub/Sub moved it after %s delivery attempts at %s; the function's log has what failed", orUnknown(a[sourceCount]), orUnknown(a[sourceSubscription]))
	}
	return l
}

func orUnknown(s string) string {
	if s == "" {
		return "an unknown number of"
	}
	return s
}

// Release gives letters back, as they were.
func (b *Box) Release(ctx context.Context, letters []Letter) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var failed []error
	for subscription, ids := range bySubscription(letters) {
		failed = append(failed, b.client.SubscriptionAdminClient.ModifyAckDeadline(ctx, &pubsubpb.ModifyAckDeadlineRequest{
			Subscription: b.path(subscription), AckIds: ids, AckDeadlineSeconds: 0,
		}))
	}
	return errors.Join(failed...)
}

// Drop removes letters for good.
func (b *Box) Drop(ctx context.Context, letters []Letter) error {
	var failed []error
	for subscription, ids := range bySubscription(letters) {
		err := b.client.SubscriptionAdminClient.Acknowledge(ctx, &pubsubpb.AcknowledgeRequest{Subscription: b.path(subscription), AckIds: ids})
		if err != nil {
			err = fmt.Errorf("drop %d dead letters of %s: %w; they come back by themselves", len(ids), subscription, err)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

func bySubscription(letters []Letter) map[string][]string {
	ids := map[string][]string{}
	for _, l := range letters {
		ids[l.Subscription] = append(ids[l.Subscription], l.ackID)
	}
	return ids
}

// Topics are the topics that letters came from, by the function that could not process them.
type Topics map[string]interface {
	Publish(ctx context.Context, data []byte, attributes map[string]string) (messageID string, err error)
}

// Another returns the deployment that the letter would ask for another flow run of, published again; empty where
// it would not. It is a run request without a key of its own whose first id is hidden.
func (l Letter) Another() (deployment string) {
	m, _ := message.Decode([]byte(l.Data), l.Attributes)
	if r, ok := m.(message.RunRequest); ok && r.IdempotencyKey == "" && l.FirstMessageID == "" {
		return r.Deployment
	}
	return ""
}

// Replay publishes a letter again where it came from, then removes it. Doing so twice does no
// harm, but for one that asks for [Letter.Another]: a run request keeps the id that makes it the
// same request, and everything else only has somebody look again.
func (b *Box) Replay(ctx context.Context, l Letter, topics Topics) (messageID string, err error) {
	topic, ok := topics[l.source()]
	if !ok {
		return "", fmt.Errorf("replay dead letter %s: neither it nor the name of subscription %q says which function it was for; publish its data yourself and drop it", l.ID, l.Subscription)
	}
	id, err := topic.Publish(ctx, []byte(l.Data), l.again())
	if err != nil {
		return "", fmt.Errorf("replay dead letter %s: %w; it stays where it is", l.ID, err)
	}
	return id, b.Drop(ctx, []Letter{l})
}

// source returns the function that the letter was for.
func (l Letter) source() string {
	if l.Function != "" {
		return l.Function
	}
	for _, name := range []string{l.Attributes[sourceSubscription], l.Subscription} {
		switch {
		case strings.Contains(name, "flow-runs"), strings.Contains(name, "dispatcher"):
			return "dispatcher"
		case strings.Contains(name, "executions"), strings.Contains(name, "finalizer"):
			return "finalizer"
		}
	}
	return ""
}

// again is the attributes that the letter is published again with: as it first was, and by
// which id and when.
func (l Letter) again() map[string]string {
	attributes := map[string]string{}
	for key, value := range l.Attributes {
		switch {
		case key == delivery.AttrReason, key == delivery.AttrFunction, strings.HasPrefix(key, sourcePrefix), strings.HasPrefix(key, "goog"):
		default:
			attributes[key] = value
		}
	}
	if attributes[delivery.AttrFirstMessageID] == "" {
		attributes[delivery.AttrFirstMessageID] = l.ID
	}
	return attributes
}
