// Package followup sends to the topic flow-runs what follows from handling a flow run.
package followup

import (
	"context"
	"time"

	"github.com/pushpool/pushpool/shared/message"
)

// Topic publishes to the topic flow-runs.
type Topic interface {
	Publish(ctx context.Context, data []byte, attributes map[string]string) (messageID string, err error)
}

// Timer publishes to the topic flow-runs later.
type Timer interface {
	At(ctx context.Context, when time.Time, key string, data []byte) error
}

// Pools tells whether flow runs of a work pool may have to wait for a slot.
type Pools interface {
	LimitedLately(ctx context.Context, pool string) (bool, error)
}

// Sender sends what follows. It implements settle.Messages.
type Sender struct {
	topic Topic
	timer Timer
	pools Pools
}

// New returns a sender.
func New(topic Topic, timer Timer, pools Pools) *Sender {
	return &Sender{topic: topic, timer: timer, pools: pools}
}

// Dispatch asks to look at the flow run now.
func (s *Sender) Dispatch(ctx context.Context, flowRunID string) error {
	_, err := s.topic.Publish(ctx, message.EncodeDispatch(message.Dispatch{FlowRunID: flowRunID}), nil)
	return err
}

// DispatchAt asks to look at the flow run at a time. cause tells timers of the same time apart.
func (s *Sender) DispatchAt(ctx context.Context, flowRunID string, at time.Time, cause string) error {
	return s.timer.At(ctx, at, flowRunID+" "+cause, message.EncodeDispatch(message.Dispatch{FlowRunID: flowRunID}))
}

// Freed tells that a slot of the work pool came free. In a pool without limits nobody waits
// for one, and nothing is sent.
func (s *Sender) Freed(ctx context.Context, workPool string) error {
	limited, err := s.pools.LimitedLately(ctx, workPool)
	if err != nil || !limited {
		return err
	}
	return s.Wake(ctx, workPool)
}

// Wake asks to take what waits in the work pool.
func (s *Sender) Wake(ctx context.Context, workPool string) error {
	_, err := s.topic.Publish(ctx, message.EncodeWake(message.Wake{WorkPool: workPool}), nil)
	return err
}
