// Package delivery turns one Pub/Sub push into one call of a handler and one acknowledgement.
package delivery

import (
	"context"
	"errors"
	"time"
)

// Attributes of a message in the dead-letter topic that was put there by HTTP. A message
// published again with them keeps the first id and time, so whatever was derived from the
// first id (an idempotency key) stays the same.
const (
	AttrReason           = "reason"
	AttrFunction         = "function"
	AttrFirstMessageID   = "first_message_id"
	AttrFirstPublishTime = "first_publish_time" // RFC 3339
)

// Delivery is one attempt to deliver a message.
type Delivery struct {
	MessageID   string
	PublishTime time.Time
	Attributes  map[string]string
	Data        []byte
	// Attempt counts from 1; it is 0 where the subscription has no dead-letter policy.
	Attempt      int
	Subscription string // projects/P/subscriptions/S
}

// FirstMessageID is the id under which the message was first published: its own, unless it
// was published again from the dead-letter topic.
func (d Delivery) FirstMessageID() string {
	if id := d.Attributes[AttrFirstMessageID]; id != "" {
		return id
	}
	return d.MessageID
}

// FirstPublishTime is when the message was first published, like FirstMessageID. Whoever
// publishes cannot make a message younger than it is.
func (d Delivery) FirstPublishTime() time.Time {
	if t, err := time.Parse(time.RFC3339Nano, d.Attributes[AttrFirstPublishTime]); err == nil && t.Before(d.PublishTime) {
		return t
	}
	return d.PublishTime
}

// Handler acts on a delivery. nil acknowledges it, an error has it delivered again, an error
// marked Unprocessable moves it to the dead-letter topic and acknowledges it.
type Handler func(context.Context, Delivery) error

// Publisher publishes a message and returns its id once Pub/Sub has it.
type Publisher interface {
	Publish(ctx context.Context, data []byte, attributes map[string]string) (messageID string, err error)
}

type unprocessable struct{ error }

func (u unprocessable) Unwrap() error { return u.error }

// Unprocessable marks an error as one that no redelivery can mend. nil stays nil.
func Unprocessable(err error) error {
	if err == nil {
		return nil
	}
	return unprocessable{err}
}

// IsUnprocessable tells whether err, or an error that it wraps, was marked by Unprocessable.
func IsUnprocessable(err error) bool {
	var u unprocessable
	return errors.As(err, &u)
}
