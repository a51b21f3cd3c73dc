// Package followup sends to the topic flow-runs what follows from handling a flow run.
package followup

import (
	"context"
	"errors"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
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

// Gates is where the ledger keeps who waits for a slot.
type Gates interface {
	UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error)
	UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error)
}

// Sender sends what follows. It implements settle.Messages.
type Sender struct {
	topic Topic
	timer Timer
	gates Gates
	now   func() time.Time
}

// New returns a sender.
func New(topic Topic, timer Timer, gates Gates, now func() time.Time) *Sender {
	return &Sender{topic: topic, timer: timer, gates: gates, now: now}
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

// WakeAt is Wake at a time. cause tells timers of the same time apart.
func (s *Sender) WakeAt(ctx context.Context, w message.Wake, at time.Time, cause string) error {
	return s.timer.At(ctx, at, "wake "+w.WorkPool+" "+w.DeploymentID+" "+cause, message.EncodeWake(w))
}

// Freed tells that a slot of the work pool and of the deployment came free; either may be
// empty. Where nobody waits for one, nothing is sent.
func (s *Sender) Freed(ctx context.Context, workPool, deploymentID string) error {
	w, err := s.Waiting(ctx, workPool, deploymentID)
	if err != nil || w == (message.Wake{}) {
		return err
	}
	return s.Wake(ctx, w)
}

// Waiting returns what has to be woken now that a slot of the work pool and of the deployment
// came free. It asks the ledger only, where whoever had a flow run wait noted it: that costs
// no call to Prefect, and a limit that was set a moment ago is known.
func (s *Sender) Waiting(ctx context.Context, workPool, deploymentID string) (message.Wake, error) {
	var w message.Wake
	var errs []error
	if workPool != "" {
		_, err := s.gates.UpdatePool(ctx, workPool, func(p flowrun.Pool) (flowrun.Pool, error) {
			gate, wake := p.Gate.Freed(s.now())
			p.Gate, w.WorkPool = gate, named(workPool, wake)
			return p, nil
		})
		errs = append(errs, err)
	}
	if deploymentID != "" {
		_, err := s.gates.UpdateDeployment(ctx, deploymentID, func(d flowrun.Deployment) (flowrun.Deployment, error) {
			gate, wake := d.Gate.Freed(s.now())
			d.Gate, w.DeploymentID = gate, named(deploymentID, wake)
			return d, nil
		})
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return message.Wake{}, err
	}
	return w, nil
}

func named(name string, wake bool) string {
	if wake {
		return name
	}
	return ""
}

// Wake asks to take what waits in the work pool, and for the deployment.
func (s *Sender) Wake(ctx context.Context, w message.Wake) error {
	_, err := s.topic.Publish(ctx, message.EncodeWake(w), nil)
	return err
}
