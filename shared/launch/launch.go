// Package launch takes a SCHEDULED flow run to exactly one execution.
package launch

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// FlowRuns is what launching asks of Prefect about flow runs.
type FlowRuns interface {
	FlowRun(ctx context.Context, id string) (prefect.FlowRun, error)
	SetState(ctx context.Context, flowRunID string, p prefect.Proposal) (prefect.Answer, error)
	UpdateFlowRun(ctx context.Context, id string, fields map[string]any) error
	FlowRunStates(ctx context.Context, flowRunID string) ([]prefect.State, error)
}

// Catalog is what launching asks of Prefect about what a flow run was made from.
type Catalog interface {
	WorkPool(ctx context.Context, name string) (prefect.WorkPool, error)
	Deployment(ctx context.Context, id string) (prefect.Deployment, error)
	Flow(ctx context.Context, id string) (prefect.Flow, error)
}

// Waiting is what launching asks of Prefect about flow runs that wait for a slot.
type Waiting interface {
	Limited(ctx context.Context, pool string) (bool, error)
	ScheduledFlowRuns(ctx context.Context, pool string, before time.Time, limit int) ([]prefect.FlowRun, error)
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
	FreeSlots(ctx context.Context, pool string) (prefect.Slots, error)
}

// CloudRun is what launching asks of Cloud Run.
type CloudRun interface {
	CreateJob(ctx context.Context, l cloudrun.Launch) error
	UpdateJob(ctx context.Context, l cloudrun.Launch, etag string) error
	Execution(ctx context.Context, name cloudrun.ExecutionName) (cloudrun.Execution, error)
	Job(ctx context.Context, name cloudrun.JobName) (cloudrun.Job, error)
}

// Ledger is what launching asks of the ledger.
type Ledger interface {
	Get(ctx context.Context, flowRunID string) (flowrun.Record, error)
	Update(ctx context.Context, flowRunID string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error)
	UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error)
	UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error)
}

// Config holds the limits of launching. Durations are settle.Config's where they have the same name.
type Config struct {
	// Projects are those that a work pool's credentials may name, the installation's own first.
	Projects []string
	// Install is the installation's id, PROJECT/NAME; Name its name alone, which fits a label.
	Install, Name string
	// Regions are those that may be launched in, all if there are none.
	Regions            []string
	Lease, CallTimeout time.Duration
	// LookAhead is how far ahead timers are set; what is due later is found by the sweep.
	LookAhead time.Duration
	// EarlyRead is how long after its publication a message about a flow run that Prefect
	// does not know yet is delivered again: events are published before they are committed.
	EarlyRead time.Duration
	// Slots is how many jobs of launch mode slots there are in a region, at most cloudrun.MaxSlots.
	Slots int
	// InPlace is how long a launch is waited for with the flow run PENDING, some seconds; one
	// that can be made later only goes back to SCHEDULED.
	InPlace time.Duration
	// CapacityWait is how long in all a flow run waits for Cloud Run to have room for it,
	// until it is CRASHED with the reason.
	CapacityWait time.Duration
	// Settings are the PREFECT_… variables that every container gets, PREFECT_API_URL among them.
	Settings []jobtemplate.Setting
	Secrets  jobtemplate.Secrets
	// DefaultImage is run where neither template nor job variables name an image.
	DefaultImage string
	// TemplateEnvironment is what {{ $NAME }} in a base job template stands for; any other name is empty, as an unset one is to a worker.
	TemplateEnvironment map[string]string
	// Policy is what flow runs may ask for.
	Policy cloudrun.Policy
	// Options are those of launches whose job variables say nothing else.
	Options Options
	// Jobs lists those of a region, for a launch whose job's place nobody recorded.
	Jobs func(ctx context.Context, project, region string) iter.Seq2[cloudrun.Job, error]
	// RetryMemory is settle.Config's.
	RetryMemory int64
	Now         func() time.Time
}

// Launcher launches flow runs. It is safe for concurrent use.
type Launcher struct {
	flowRuns FlowRuns
	queue    Waiting
	catalog  Catalog
	lookup   jobtemplate.Lookup
	cloudRun CloudRun
	budget   Budget
	slots    Slots
	ledger   Ledger
	settler  *settle.Settler
	messages settle.Messages
	log      *slog.Logger
	pools    map[string]bool
	cfg      Config

	templates documents
}

// New returns a launcher for the work pools named.
func New(f FlowRuns, w Waiting, c Catalog, lookup jobtemplate.Lookup, cr CloudRun, b Budget, sl Slots, l Ledger, s *settle.Settler, m settle.Messages,
	log *slog.Logger, pools []string, cfg Config,
) *Launcher {
	ours := map[string]bool{}
	for _, p := range pools {
		ours[p] = true
	}
	return &Launcher{
		flowRuns: f, queue: w, catalog: c, lookup: lookup, cloudRun: cr, budget: b, slots: sl, ledger: l, settler: s, messages: m,
		log: log, pools: ours, cfg: cfg,
	}
}

// Dispatch looks at a flow run and does what its state asks for: launch it, set a timer,
// resume an interrupted launch, cancel it, or nothing. published is when the message was
// published that asks for it. holder names the caller's lease and is new for each call.
func (l *Launcher) Dispatch(ctx context.Context, holder, flowRunID string, published time.Time) error {
	fr, err := l.flowRuns.FlowRun(ctx, flowRunID)
	if err != nil {
		if flowrun.FaultOf(err) == flowrun.NotFound && l.cfg.Now().Sub(published) > l.cfg.EarlyRead {
			return nil // deleted
		}
		return err
	}
	return l.act(ctx, holder, fr, nil)
}

// DispatchEvent is Dispatch for an event of Prefect's. Prefect is not asked where the ledger
// shows that somebody answers the very state that the event is about, or did: of a flow run
// that a request made, the event comes while it is being launched.
func (l *Launcher) DispatchEvent(ctx context.Context, holder string, e message.PrefectEvent, published time.Time) error {
	rec, err := l.ledger.Get(ctx, e.FlowRunID)
	if err != nil {
		return err
	}
	answered := rec.Status == flowrun.StatusLaunched || rec.Status == flowrun.StatusClaimed && rec.Leased(holder, l.cfg.Now())
	if answered && rec.LaunchID == flowrun.NewLaunchID(l.cfg.Install, e.FlowRunID, e.ID) {
		return nil
	}
	return l.Dispatch(ctx, holder, e.FlowRunID, published)
}

// DispatchCreated is Dispatch of a flow run of the deployment that Prefect has just returned:
// both are taken as they are.
func (l *Launcher) DispatchCreated(ctx context.Context, holder string, fr prefect.FlowRun, d prefect.Deployment) error {
	return l.act(ctx, holder, fr, &d)
}

// act does what the flow run's state asks for. d is its deployment, if it is known.
func (l *Launcher) act(ctx context.Context, holder string, fr prefect.FlowRun, d *prefect.Deployment) error {
	if !l.pools[fr.WorkPoolName] {
		return nil
	}
	switch fr.StateType {
	case flowrun.StateScheduled:
		return l.scheduled(ctx, holder, fr, d)
	case flowrun.StatePending:
		return acknowledge(l.resume(ctx, holder, fr))
	case flowrun.StateCancelling:
		return l.settler.Look(ctx, holder, fr.ID)
	}
	return nil
}

// scheduled launches the flow run, if it is due and admitted.
func (l *Launcher) scheduled(ctx context.Context, holder string, fr prefect.FlowRun, d *prefect.Deployment) error {
	inLine := fr.StateName == prefect.AwaitingSlot && fr.DeploymentID != ""
	if !isDue(fr, l.cfg.Now()) && !inLine {
		return l.early(ctx, holder, fr, d)
	}
	if fr.RetryType() == prefect.RetryInProcess {
		if gone, err := l.reschedule(ctx, holder, fr); err != nil || !gone {
			return acknowledge(err)
		}
	}
	limited, err := l.queue.Limited(ctx, fr.WorkPoolName)
	switch {
	case err != nil:
		return err
	case inLine:
		return l.wakeDeployment(ctx, holder, fr.DeploymentID)
	case limited:
		return l.wakePool(ctx, holder, fr.WorkPoolName)
	}
	return l.claimOrWait(ctx, holder, fr, d)
}

// claimOrWait claims the flow run, or has it wait in its deployment's line.
func (l *Launcher) claimOrWait(ctx context.Context, holder string, fr prefect.FlowRun, d *prefect.Deployment) error {
	err := acknowledge(l.claim(ctx, holder, fr, d, false))
	if errors.Is(err, errInLine) {
		return l.wakeDeployment(ctx, holder, fr.DeploymentID)
	}
	return err
}

// claim makes the flow run ours in ledger and Prefect, then launches it. d is its deployment,
// if it is known. Unless the caller knows that it is its turn, a flow run of a deployment for
// whose slots others wait gets in line behind them. The error is errInLine for one that waits
// for a slot.
func (l *Launcher) claim(ctx context.Context, holder string, fr prefect.FlowRun, d *prefect.Deployment, itsTurn bool) error {
	var line errgroup.Group
	waits := false
	if !itsTurn && fr.DeploymentID != "" {
		line.Go(func() error {
			d, err := l.deployment(ctx, fr.DeploymentID)
			waits = d.Waits
			return err
		})
	}
	defer line.Wait() //nolint:errcheck // its error is returned below
	if err := l.remember(ctx, holder, fr); err != nil {
		return err
	}
	launchID := flowrun.NewLaunchID(l.cfg.Install, fr.ID, fr.StateID)
	event := flowrun.Scheduled{
		Lease: l.lease(holder), LaunchID: launchID, StateAt: stateAt(fr),
		WorkPool: fr.WorkPoolName, DeploymentID: fr.DeploymentID, RequestedAt: fr.Created, DueAt: fr.Due(),
	}
	rec, err := l.apply(ctx, fr.ID, event)
	if errors.Is(err, flowrun.ErrUnreported) || errors.Is(err, flowrun.ErrUnfinished) {
		// The launch before this one has to be carried to its end first.
		if err := l.settler.Look(ctx, holder, fr.ID); err != nil {
			return err
		}
		event.Lease = l.lease(holder)
		rec, err = l.apply(ctx, fr.ID, event)
		if errors.Is(err, flowrun.ErrUnfinished) {
			return nil // it was not found, and is looked for once more before it is believed gone
		}
	}
	if err != nil {
		return err
	}
	o := l.origin(ctx, fr, d) // by the holder of the lease only
	defer func() { _ = o.wait() }()
	if err = line.Wait(); err == nil && waits {
		return cmp.Or(l.discard(ctx, holder, rec), errInLine)
	}
	if err == nil {
		err = l.propose(ctx, holder, rec, fr, o)
	}
	if err != nil && !errors.Is(err, errInLine) {
		settle.Release(ctx, l.ledger, l.log, holder, fr.ID, err, l.cfg.Now, l.cfg.CallTimeout)
	}
	return err
}

// propose reads the flow run again, now under the lease, and proposes PENDING.
func (l *Launcher) propose(ctx context.Context, holder string, rec flowrun.Record, before prefect.FlowRun, o *origin) error {
	ctx, cancel := l.settler.Fence(ctx, rec)
	defer cancel()
	fr, err := l.fresh(ctx, rec.FlowRunID)
	if err != nil {
		if flowrun.FaultOf(err) == flowrun.NotFound {
			return l.discard(ctx, holder, rec)
		}
		return err
	}
	if fr.StateType != flowrun.StateScheduled || fr.StateID != before.StateID {
		// PENDING would be accepted over FAILED, CRASHED and COMPLETED: never propose it
		// over anything but the state that was seen. What replaced it has its own event.
		if err := l.discard(ctx, holder, rec); err != nil || fr.StateType != flowrun.StateScheduled {
			return err
		}
		return l.messages.Dispatch(ctx, fr.ID) // renamed, to Late for one
	}
	answer, err := l.flowRuns.SetState(ctx, fr.ID, prefect.Proposal{
		Type: flowrun.StatePending, Name: "Pending", Message: "Claimed by pushpool.", TransitionID: string(rec.LaunchID),
		ScheduledTime: l.startAt(fr),
	})
	var deleted errDeleted
	switch {
	case flowrun.FaultOf(err) == flowrun.NotFound && err != nil:
		return l.discard(ctx, holder, rec)
	case err != nil:
		return err
	case answer.Status == prefect.StatusAccept, ours(answer, rec.LaunchID):
		return l.launch(ctx, holder, rec, fr, o, answer.Status != prefect.StatusAccept)
	case answer.Status == prefect.StatusAbort && errors.As(o.wait(), &deleted):
		// Nobody can claim it any more: as Prefect's worker does.
		if _, err := l.flowRuns.SetState(ctx, fr.ID, prefect.Proposal{Type: flowrun.StateCancelled, Message: deleted.Error()}); err != nil {
			return err
		}
		return l.discard(ctx, holder, rec)
	case answer.Status == prefect.StatusWait:
		if err := l.messages.DispatchAt(ctx, fr.ID, l.cfg.Now().Add(answer.Delay), "wait"); err != nil {
			return err
		}
	}
	// Refused: a deployment's limit, or somebody else was faster.
	telemetry.Note(ctx, l.log, fr.ID, "claimed in vain", slog.String("status", string(answer.Status)), slog.String("reason", answer.Reason))
	if err := l.discard(ctx, holder, rec); err != nil {
		return err
	}
	if answer.State != nil && answer.State.Name == prefect.AwaitingSlot {
		return errInLine
	}
	return nil
}

// fresh reads the flow run, again where it stood still so long that another worker may have ended it
// since; not for ever, as a slow server is no other.
func (l *Launcher) fresh(ctx context.Context, id string) (fr prefect.FlowRun, err error) {
	for range 3 {
		began := l.cfg.Now()
		if fr, err = l.flowRuns.FlowRun(ctx, id); err != nil || l.cfg.Now().Sub(began) < prefect.FreshFor {
			break
		}
	}
	return fr, err
}

// deployment reads the deployment's state in the ledger.
func (l *Launcher) deployment(ctx context.Context, id string) (flowrun.Deployment, error) {
	return l.ledger.UpdateDeployment(ctx, id, func(d flowrun.Deployment) (flowrun.Deployment, error) { return d, nil })
}

// startAt is when the flow may start, where that is not the time of the state before: who was
// refused a slot and gets one sooner than Prefect thought would wait in its container else.
func (l *Launcher) startAt(fr prefect.FlowRun) *time.Time {
	now := l.cfg.Now()
	if fr.StateName != prefect.AwaitingSlot || isDue(fr, now) {
		return nil
	}
	return &now
}

// discard gives up a candidate that Prefect did not accept.
func (l *Launcher) discard(ctx context.Context, holder string, rec flowrun.Record) error {
	_, err := l.apply(ctx, rec.FlowRunID, flowrun.Discarded{Holder: holder, LaunchID: rec.LaunchID})
	return err
}

func (l *Launcher) apply(ctx context.Context, flowRunID string, e flowrun.Event) (flowrun.Record, error) {
	return l.ledger.Update(ctx, flowRunID, func(r flowrun.Record) (flowrun.Record, error) {
		return flowrun.Apply(r, e, l.cfg.Now())
	})
}

func (l *Launcher) lease(holder string) flowrun.Lease {
	return flowrun.Lease{Holder: holder, Until: l.cfg.Now().Add(l.cfg.Lease)}
}

// acknowledge drops the errors that leave nothing to do.
func acknowledge(err error) error {
	if errors.Is(err, flowrun.ErrDone) || errors.Is(err, flowrun.ErrLost) {
		return nil
	}
	return err
}

// ours reports whether a refused proposal shows that an earlier try of the same launch was accepted.
func ours(a prefect.Answer, id flowrun.LaunchID) bool {
	return a.Status == prefect.StatusReject && a.State != nil &&
		a.State.Type == flowrun.StatePending && a.State.Details.TransitionID == string(id)
}

func stateAt(fr prefect.FlowRun) time.Time {
	if fr.State == nil {
		return fr.Due()
	}
	return fr.State.Timestamp
}
