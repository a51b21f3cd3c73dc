package launch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	// slotFor is how long a slot is left alone after it was given to a launch: an execution is
	// there after a few seconds. Whether it is, the job itself tells the next launch.
	slotFor = 10 * time.Second
	// slotBusy is the same after a slot was found to be starting an execution still, as while
	// an image is imported, or to hold a failure that nobody has settled yet.
	slotBusy = 30 * time.Second
	// slotTries bounds the slots that one launch looks at.
	slotTries = 5
)

// Slots keeps the jobs of launch mode slots, so that no two launches take the same one at a time.
type Slots interface {
	TakeSlot(ctx context.Context, region string, of int, until time.Time) (slot int, ok bool, err error)
	KeepSlot(ctx context.Context, region string, slot int, until time.Time) error
}

// errSlots marks a launch for which there was no slot, which says nothing about Cloud Run.
var errSlots = errors.New("no slot")

// inSlot updates one of the region's slots with the launch's job, which starts the execution.
// An update is made only of a job that has started its last execution, and only if nobody
// updated it meanwhile: of two updates that race one is refused and goes to another slot, and
// none keeps the execution of the other from starting.
func (l *Launcher) inSlot(ctx context.Context, holder string, rec flowrun.Record, p plan) (flowrun.Record, cloudrun.JobName, error) {
	for range slotTries {
		n, err := l.takeSlot(ctx, p.Name)
		if err != nil {
			return rec, p.Name, err
		}
		p.Name.Job = cloudrun.SlotJob(l.cfg.Name, n)
		job, err := l.cloudRun.Job(ctx, p.Name)
		missing := err != nil && flowrun.FaultOf(err) == flowrun.NotFound
		if err != nil && !missing {
			return rec, p.Name, err
		}
		if !missing {
			busy, err := l.occupied(ctx, job)
			if err != nil {
				return rec, p.Name, err
			}
			if busy {
				l.keepSlot(ctx, p.Name, n)
				continue
			}
		}
		if rec, err = l.attempted(ctx, holder, rec, p.Launch); err != nil {
			return rec, p.Name, err
		}
		if err = l.write(ctx, p, job, missing); errors.Is(err, cloudrun.ErrChanged) {
			continue
		}
		return rec, p.Name, err
	}
	return rec, p.Name, &flowrun.Error{
		Fault: flowrun.Refused, Act: "find a slot in " + p.Name.Region,
		Err: fmt.Errorf("%w: the %d that were looked at are starting executions", errSlots, slotTries),
	}
}

// write makes the one write of a launch in a slot. That its execution was started before is success.
func (l *Launcher) write(ctx context.Context, p plan, job cloudrun.Job, missing bool) error {
	var err error
	if missing {
		err = l.cloudRun.CreateJob(ctx, p.Launch)
		if err != nil && flowrun.FaultOf(err) == flowrun.Exists {
			return &flowrun.Error{Fault: flowrun.Refused, Act: "create slot " + p.Name.String(), Err: fmt.Errorf("%w: %w", cloudrun.ErrChanged, err)}
		}
	} else if err = l.cloudRun.UpdateJob(ctx, p.Launch, job.Etag); err != nil && flowrun.FaultOf(err) == flowrun.Exists {
		return nil
	}
	if err != nil && flowrun.FaultOf(err) == flowrun.Refused && !errors.Is(err, cloudrun.ErrChanged) {
		return fmt.Errorf("%w: %w", errCapacity, err)
	}
	return err
}

// occupied reports whether the slot's job must not be updated: it has not started the
// execution of its last update yet; or it never will, and whoever settles that flow run has
// still to read why in the job.
func (l *Launcher) occupied(ctx context.Context, job cloudrun.Job) (bool, error) {
	if job.Reconciling {
		return true, nil
	}
	id := job.Labels[cloudrun.LabelFlowRun]
	if job.Failure == nil || id == "" {
		return false, nil
	}
	rec, err := l.ledger.Get(ctx, id)
	if err != nil {
		return false, err
	}
	return string(rec.LaunchID) == job.Labels[cloudrun.LabelLaunch] && !rec.Status.Over(), nil
}

// takeSlot takes the slot of the region that has been left alone longest.
func (l *Launcher) takeSlot(ctx context.Context, n cloudrun.JobName) (slot int, err error) {
	slot, ok, err := l.slots.TakeSlot(ctx, place(n), l.cfg.Slots, l.cfg.Now().Add(slotFor))
	if err == nil && !ok {
		err = &flowrun.Error{
			Fault: flowrun.Refused, Act: "take a slot in " + n.Region,
			Err: fmt.Errorf("%w: all %d were given to launches a moment ago", errSlots, l.cfg.Slots),
		}
	}
	return slot, err
}

// keepSlot has a slot left alone for longer. Where the ledger fails the job itself says so again.
func (l *Launcher) keepSlot(ctx context.Context, n cloudrun.JobName, slot int) {
	if err := l.slots.KeepSlot(ctx, place(n), slot, l.cfg.Now().Add(slotBusy)); err != nil {
		l.log.WarnContext(ctx, "a slot that is starting an execution is looked at by the next launch, too", "job", n.String(), "error", err)
	}
}

// again finds out what came of an earlier try in a slot, or repeats it there. made is false,
// and the launch free to go anywhere, where nothing came of it and nothing ever will.
func (l *Launcher) again(ctx context.Context, p plan) (made bool, err error) {
	x, err := l.cloudRun.Execution(ctx, p.Name.Launched(p.ID))
	switch {
	case err == nil:
		return x.Labels[cloudrun.LabelLaunch] == string(p.ID), nil
	case flowrun.FaultOf(err) != flowrun.NotFound:
		return false, err
	}
	job, err := l.cloudRun.Job(ctx, p.Name)
	missing := err != nil && flowrun.FaultOf(err) == flowrun.NotFound
	switch {
	case err != nil && !missing:
		return false, err
	case job.Labels[cloudrun.LabelLaunch] == string(p.ID):
		return true, nil // it is about to start, or says why it cannot
	case job.Reconciling:
		// Another launch updated the slot after this one had read it: what this one sent can
		// no longer take effect.
		return false, nil
	}
	// It may still be on its way. In the same slot with the same token it starts nothing twice.
	err = l.write(ctx, p, job, missing)
	switch {
	case errors.Is(err, cloudrun.ErrChanged):
		return false, &flowrun.Error{Act: "repeat the update of slot " + p.Name.String(), Err: err} // look once more
	case errors.Is(err, errCapacity):
		// Nobody else touched the slot, so the earlier try may still be on its way.
		return false, &flowrun.Error{Act: "repeat the update of slot " + p.Name.String(), Err: err}
	}
	return err == nil, err
}
