// Package publish publishes messages to one topic and waits until Pub/Sub has them.
package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// timeout bounds one publication, the client's own retries included.
const timeout = 10 * time.Second

// Topic publishes to one topic. It may be used by several goroutines.
type Topic struct{ publisher *pubsub.Publisher }

// New returns a Topic for the topic with the given id (or full name) in the client's project.
// It does not check that the topic exists.
func New(client *pubsub.Client, topicID string) *Topic {
	p := client.Publisher(topicID)
	// Each caller waits for its message: batches only gather what comes at the same moment.
	p.PublishSettings.DelayThreshold = time.Millisecond
	p.PublishSettings.Timeout = timeout
	return &Topic{publisher: p}
}

// Publish publishes one message and returns its id once Pub/Sub has stored it. It takes 10 s
// at most. The error is a *flowrun.Error: Unclear (a time-out, unavailable: it may have been
// published), Refused (quota, permission), NotFound (no such topic), Permanent (too large, not valid).
func (t *Topic) Publish(ctx context.Context, data []byte, attributes map[string]string) (messageID string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	id, err := t.publisher.Publish(ctx, &pubsub.Message{Data: data, Attributes: attributes}).Get(ctx)
	if err != nil {
		return "", t.classify(err)
	}
	return id, nil
}

// Close publishes what is still waiting, and then refuses further messages.
func (t *Topic) Close() { t.publisher.Stop() }

func (t *Topic) classify(err error) error {
	e := &flowrun.Error{Act: fmt.Sprintf("publish to %s", t.publisher), Err: err}
	switch status.Code(err) {
	case codes.NotFound:
		e.Fault, e.Hint = flowrun.NotFound, "create the topic"
	case codes.PermissionDenied, codes.Unauthenticated:
		e.Fault, e.Hint = flowrun.Refused, "grant roles/pubsub.publisher on the topic to the service account"
	case codes.ResourceExhausted:
		e.Fault, e.Hint = flowrun.Refused, "ask for more Pub/Sub quota if this goes on"
	case codes.InvalidArgument:
		e.Fault = flowrun.Permanent
	}
	if errors.Is(err, pubsub.ErrOversizedMessage) {
		e.Fault, e.Hint = flowrun.Permanent, "a message may have 10 MB"
	}
	if errors.Is(err, pubsub.ErrPublisherStopped) {
		e.Fault = flowrun.Refused
	}
	return e
}
