// Package lifecycle tells on the topic lifecycle what the ledger records of launches.
package lifecycle

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/message"
)

// timeout bounds one publication: a message's answer waits for it.
const timeout = 5 * time.Second

// Topic publishes to the topic lifecycle.
type Topic interface {
	Publish(ctx context.Context, data []byte, attributes map[string]string) (messageID string, err error)
}

// Ledger is a ledger that tells each step that it records. A step that cannot be told is
// logged and never fails what was recorded: who follows by the topic alone may miss one, and
// is told some twice.
type Ledger struct {
	ledger.Ledger
	topic   Topic
	install string
	log     *slog.Logger
	now     func() time.Time
}

// New returns l with its steps told on the topic, as those of the installation with the given name.
func New(l ledger.Ledger, topic Topic, install string, log *slog.Logger, now func() time.Time) *Ledger {
	return &Ledger{Ledger: l, topic: topic, install: install, log: log, now: now}
}

// Update implements ledger.Ledger.
func (l *Ledger) Update(ctx context.Context, flowRunID string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error) {
	var before flowrun.Record
	after, err := l.Ledger.Update(ctx, flowRunID, func(r flowrun.Record) (flowrun.Record, error) {
		before = r
		return change(r)
	})
	if err == nil {
		for _, step := range steps(before, after) {
			l.tell(ctx, message.EncodeLifecycle(l.install, event(after, step, l.now())), flowRunID, step)
		}
	}
	return after, err
}

// tell publishes beside the work that ctx belongs to; where nobody would wait for it, at once.
func (l *Ledger) tell(ctx context.Context, data []byte, flowRunID, step string) {
	publish := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		if _, err := l.topic.Publish(ctx, data, nil); err != nil {
			l.log.WarnContext(ctx, "a step of a launch was not told on the topic lifecycle; nothing else depends on it",
				"flow_run_id", flowRunID, "step", step, "error", err)
		}
	}
	if beside, ok := ctx.Value(besideKey{}).(*sync.WaitGroup); ok {
		beside.Go(publish)
		return
	}
	publish()
}

type besideKey struct{}

// Beside returns a context under which steps are told beside the work, and what waits until
// they have been: nothing runs once a function has answered.
func Beside(ctx context.Context) (context.Context, func()) {
	var beside sync.WaitGroup
	return context.WithValue(ctx, besideKey{}, &beside), beside.Wait
}

// steps are those that a change of the record took the launch through, in their order.
func steps(before, after flowrun.Record) (steps []string) {
	now := after.Launch
	if now.LaunchID == "" {
		return nil
	}
	was := of(before, now.LaunchID)
	for _, s := range []struct {
		step      string
		was, isIt bool
	}{
		{message.Claimed, claimed(was), claimed(now)},
		{message.Launched, launched(was), launched(now)},
		{message.Abandoned, was.Status == flowrun.StatusAbandoned, now.Status == flowrun.StatusAbandoned},
		{message.Rejected, was.Status == flowrun.StatusRejected, now.Status == flowrun.StatusRejected},
		{message.Finished, finished(was), finished(now)},
		{message.PutBack, putBack(was), putBack(now)},
	} {
		if s.isIt && !s.was {
			steps = append(steps, s.step)
		}
	}
	return steps
}

// of is what the record knew of a launch.
func of(r flowrun.Record, id flowrun.LaunchID) flowrun.Launch {
	for _, l := range append([]flowrun.Launch{r.Launch}, r.Previous...) {
		if l.LaunchID == id {
			return l
		}
	}
	return flowrun.Launch{}
}

// claimed: a candidate is Claimed in the ledger before Prefect has accepted it. What is
// recorded of it next, its place or its end, tells that Prefect did.
func claimed(l flowrun.Launch) bool {
	return l.Region != "" || l.Status != flowrun.StatusNone && l.Status != flowrun.StatusClaimed
}

// launched: the end can overtake the recording of the launch.
func launched(l flowrun.Launch) bool { return !l.LaunchedAt.IsZero() || !l.StartedAt.IsZero() }

// finished: a launch that was put back before it was made has no outcome.
func finished(l flowrun.Launch) bool { return l.Status == flowrun.StatusFinished && l.Outcome != "" }

func putBack(l flowrun.Launch) bool {
	return l.Report != nil && l.Report.Type == flowrun.StateScheduled
}

func event(r flowrun.Record, step string, now time.Time) message.Lifecycle {
	e := message.Lifecycle{
		Type: step, FlowRunID: r.FlowRunID, LaunchID: string(r.LaunchID), WorkPool: r.WorkPool, DeploymentID: r.DeploymentID,
		Region: r.Region, Execution: r.ExecutionName, Time: now,
	}
	switch step {
	case message.Finished:
		e.Outcome, e.Reason = string(r.Outcome), r.Reason
	case message.PutBack:
		e.Reason, e.ScheduledTime = r.Reason, r.Report.ScheduledTime
	case message.Abandoned, message.Rejected:
		e.Reason = r.Reason
	}
	return e
}
