package launch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/quota"
)

// Budget grants writes to Cloud Run, so that all instances together stay within its quotas.
type Budget interface {
	// Launch grants a launch in a region a time of its own; see quota.Budget.
	Launch(ctx context.Context, region string, a quota.Ask) (at time.Time, ok bool, err error)
	// Closed is until when the region is known to refuse launches, and why.
	Closed(region string) (until time.Time, reason string)
	Refused(ctx context.Context, region, reason string) error
	Accepted(ctx context.Context, region string) error
}

// turnFor is how long a granted time may be used after it has come. Many that come later
// still, after an outage, are not to be launched all at once.
const turnFor = 30 * time.Second

// errCapacity marks a job that Cloud Run definitely refused to create now.
var errCapacity = errors.New("no capacity")

// noRoom is why a launch cannot be made now, and the time that is kept for it.
type noRoom struct {
	region string
	at     time.Time
	since  time.Time // the flow run waits for capacity
	err    error
}

func (e *noRoom) Error() string { return e.err.Error() }
func (e *noRoom) Unwrap() error { return e.err }

// place makes the job in the first region that takes it now: the one where its time has
// come, the region of its template, or those that it may overflow into, in their order. A
// region is left only where nothing was tried, or where Cloud Run refused for certain.
func (l *Launcher) place(ctx context.Context, holder string, rec flowrun.Record, p plan) (flowrun.Record, cloudrun.JobName, error) {
	p.Overflow = slices.DeleteFunc(slices.Clone(p.Overflow), func(r string) bool { return r == p.Name.Region })
	regions := append([]string{p.Name.Region}, p.Overflow...)
	kept := map[string]time.Time{} // by region: granted, and not used
	if waited, ok := rec.Waited(); ok && slices.Contains(regions, waited.Region) {
		kept[waited.Region] = waited.SlotAt
		if l.turn(waited.SlotAt) {
			regions = slices.Insert(slices.DeleteFunc(regions, func(r string) bool { return r == waited.Region }), 0, waited.Region)
		}
	}
	var refused error
	free := map[string]time.Time{}
	for _, region := range regions {
		p.Name.Region = region
		at, ok, err := l.granted(ctx, p, kept)
		if err != nil {
			return rec, p.Name, err
		}
		if free[region] = at; !ok {
			continue
		}
		var made cloudrun.JobName
		if p.Mode == ModeSlots {
			rec, made, err = l.inSlot(ctx, holder, rec, p)
		} else {
			rec, made, err = l.inJob(ctx, holder, rec, p)
		}
		l.tell(ctx, made, err)
		switch {
		case errors.Is(err, errCapacity):
			delete(kept, region)
		case !errors.Is(err, errSlots):
			return rec, made, err
		}
		refused = err
		if free[region], _ = l.budget.Closed(place(p.Name)); free[region].IsZero() {
			free[region] = l.cfg.Now()
		}
	}
	p.Name.Region = slices.MinFunc(regions, func(a, b string) int { return free[a].Compare(free[b]) })
	return rec, p.Name, l.noRoom(ctx, rec, p, refused, kept[p.Name.Region])
}

// inJob creates a job for the launch.
func (l *Launcher) inJob(ctx context.Context, holder string, rec flowrun.Record, p plan) (flowrun.Record, cloudrun.JobName, error) {
	rec, err := l.attempted(ctx, holder, rec, p.Launch)
	if err != nil {
		return rec, p.Name, err
	}
	return rec, p.Name, l.create(ctx, rec.LaunchID, p.Launch)
}

func place(n cloudrun.JobName) string { return quota.Region(n.Project, n.Region) }

// turn reports whether a time that was kept for a launch is now.
func (l *Launcher) turn(at time.Time) bool {
	since := l.cfg.Now().Sub(at)
	return since > -2*time.Second && since < turnFor
}

// granted waits until the launch may be made in the plan's region, if that is soon; else ok
// is false and at an estimate. kept has the time that was granted before, and then the one
// that is.
func (l *Launcher) granted(ctx context.Context, p plan, kept map[string]time.Time) (at time.Time, ok bool, err error) {
	now, region := l.cfg.Now(), place(p.Name)
	if closed, _ := l.budget.Closed(region); l.turn(kept[p.Name.Region]) && !closed.After(now) {
		return now, true, nil
	}
	at, ok, err = l.budget.Launch(ctx, region, p.ask(now.Add(l.cfg.InPlace), kept[p.Name.Region]))
	delete(kept, p.Name.Region)
	if err != nil || !ok {
		return at, ok, err
	}
	kept[p.Name.Region] = at
	timer := time.NewTimer(at.Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return at, false, fmt.Errorf("wait for a launch in %s: %w", region, context.Cause(ctx))
	}
	// Others may have been refused while this one waited: it need not be refused, too.
	closed, _ := l.budget.Closed(region)
	return closed, !closed.After(l.cfg.Now()), nil
}

func (p plan) ask(latest, unused time.Time) quota.Ask {
	return quota.Ask{NewJob: p.Mode != ModeSlots, Latest: latest, Unused: unused}
}

// tell has the budget know what Cloud Run made of a write.
func (l *Launcher) tell(ctx context.Context, n cloudrun.JobName, err error) {
	told := error(nil)
	switch {
	case errors.Is(err, errCapacity):
		told = l.budget.Refused(ctx, place(n), err.Error())
	case err == nil:
		told = l.budget.Accepted(ctx, place(n))
	}
	if told != nil {
		l.log.WarnContext(ctx, "other instances do not know yet what Cloud Run answered; they find out by themselves",
			slog.String("region", n.Region), slog.Any("error", told))
	}
}

// noRoom keeps a time for the launch in the plan's region, and gives an unused one back. Where
// that is later than the flow run may wait, the error is Permanent.
func (l *Launcher) noRoom(ctx context.Context, rec flowrun.Record, p plan, refused error, unused time.Time) error {
	region := place(p.Name)
	_, reason := l.budget.Closed(region)
	switch {
	case refused != nil:
	case reason != "":
		refused = &flowrun.Error{Fault: flowrun.Refused, Act: "launch in " + p.Name.Region, Err: errors.New(reason)}
	default:
		refused = &flowrun.Error{
			Fault: flowrun.Refused, Act: "launch in " + strings.Join(append([]string{p.Name.Region}, p.Overflow...), ", "),
			Err: errors.New("more flow runs wait than Cloud Run's quota of writes allows in a minute"),
		}
	}
	since, err := l.waitingSince(ctx, rec, p.flowRun)
	if err != nil {
		return err
	}
	at, ok, err := l.budget.Launch(ctx, region, p.ask(since.Add(l.cfg.CapacityWait), unused))
	if err != nil {
		return err
	}
	if !ok {
		return &flowrun.Error{
			Fault: flowrun.Permanent, Act: fmt.Sprintf("wait for capacity since %s", since.UTC().Format(time.RFC3339)), Err: refused,
			Hint: fmt.Sprintf("the limit is %s; raise Cloud Run's quota, let the flow run overflow into further regions, or raise the limit", l.cfg.CapacityWait),
		}
	}
	return &noRoom{region: p.Name.Region, at: at, since: since, err: refused}
}

// waitingSince is when the flow run began to wait for capacity: now, if it does not yet. A
// ledger that was lost since is made good by Prefect's history.
func (l *Launcher) waitingSince(ctx context.Context, rec flowrun.Record, fr prefect.FlowRun) (time.Time, error) {
	since := l.cfg.Now()
	if waited, ok := rec.Waited(); ok {
		return waited.WaitingSince, nil
	}
	if fr.StateName != flowrun.AwaitingCapacity && fr.StateType != flowrun.StatePending {
		return since, nil
	}
	states, err := l.flowRuns.FlowRunStates(ctx, fr.ID)
	if err != nil {
		return since, err
	}
	for _, st := range slices.Backward(states) {
		switch st.Name {
		case flowrun.AwaitingCapacity:
			since = st.Timestamp
		case "Pending", "Late", prefect.AwaitingSlot:
		default:
			return since, nil
		}
	}
	return since, nil
}
