// Package sweep finds what no event told, and repairs it.
//
// It lists flow runs in Prefect and jobs in Cloud Run, a page at a time, joins them with what
// is open in the ledger, and looks closer only where the three do not agree. So it costs few
// calls however many flow runs are under way, and an instance that starts anew knows all that
// the one before it did.
package sweep

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/lookahead"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

const (
	// Timeout bounds a sweep. It is below the Scheduler's interval, so that sweeps do not pile up.
	Timeout = 55 * time.Second
	// leaveTimeout bounds giving back the lease, after the sweep's own time may be over.
	leaveTimeout = 4 * time.Second
	// heartbeatEvery tells Prefect to hold the pool for served for three days; one is sent each half of it.
	heartbeatEvery = 24 * time.Hour
	// atOnce bounds what is done at the same time for one pool: one after the other,
	// hundreds of calls would not fit a sweep.
	atOnce = 16
	// maxErrors bounds the errors that the sweep's line names.
	maxErrors = 10
)

// Prefect is what the sweep reads in Prefect.
type Prefect interface {
	FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error)
}

// Ahead has what is due dispatched; *lookahead.Ahead is one.
type Ahead interface {
	Look(ctx context.Context, pool string, start func(send func() error)) (lookahead.Done, error)
}

// Pools is what keeps pools, queues, deployments and their slots as Prefect expects it of a worker.
type Pools interface {
	Heartbeat(ctx context.Context, pool, workerName string, every time.Duration) error
	ScheduledFlowRuns(ctx context.Context, pool string, before time.Time, limit int) ([]prefect.FlowRun, error)
	RenewLease(ctx context.Context, id string, lease time.Duration) error
}

// CloudRun is what the sweep asks of Cloud Run.
type CloudRun interface {
	Jobs(ctx context.Context, project, region string) iter.Seq2[cloudrun.Job, error]
	DeleteJob(ctx context.Context, name cloudrun.JobName) error
}

// Ledger is what the sweep asks of the ledger.
type Ledger interface {
	Open(ctx context.Context) ([]flowrun.Record, error)
	Get(ctx context.Context, flowRunID string) (flowrun.Record, error)
	UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error)
	UpdateSweep(ctx context.Context, change func(flowrun.Sweep) (flowrun.Sweep, error)) (flowrun.Sweep, error)
}

// Settler settles flow runs; *settle.Settler is one.
type Settler interface {
	Agrees(fr prefect.FlowRun, rec flowrun.Record) bool
	Check(ctx context.Context, holder string, fr prefect.FlowRun, rec flowrun.Record) error
	Look(ctx context.Context, holder, flowRunID string) error
	Stray(ctx context.Context, holder, flowRunID string, name cloudrun.ExecutionName) error
}

// Messages sends what the sweep finds to the dispatcher.
type Messages interface {
	Dispatch(ctx context.Context, flowRunID string) error
	DispatchAt(ctx context.Context, flowRunID string, at time.Time, cause string) error
	Wake(ctx context.Context, w message.Wake) error
	WakeAt(ctx context.Context, w message.Wake, at time.Time, cause string) error
}

// Writes is Cloud Run's write quota, kept for all instances together; *quota.Budget is it.
// A region is PROJECT/REGION.
type Writes interface {
	// Counted tells how many jobs a region has.
	Counted(ctx context.Context, region string, jobs int) error
	// NearCap reports whether that is nearly as many as its quota allows.
	NearCap(jobs int) bool
	// Deletions grants at most n deletions until a time, each at a time of its own.
	Deletions(ctx context.Context, region string, n int, until time.Time) ([]time.Time, error)
}

// Config holds the limits of a sweep.
type Config struct {
	WorkPools []string
	// Projects and Regions are those that jobs may run in.
	Projects, Regions []string
	// Name is the installation's, as the label of its jobs has it.
	Name string
	// EventGrace leaves an event, or whoever reached a verdict, time to do what the sweep
	// would repair.
	EventGrace time.Duration
	// CancelGrace is how long an execution may be alive after its flow run ended.
	CancelGrace time.Duration
	// MaxLooks and MaxChecks bound the flow runs of one sweep, of all pools together, that are
	// looked at and, more cheaply, whose execution is read. The rest takes its turn in the next.
	MaxLooks, MaxChecks int
	// Readiness keeps queues and deployments READY in Prefect.
	Readiness bool
	// KeepJobsFor is how long a job is kept after its execution ended, unless there are too many.
	KeepJobsFor time.Duration
	// MaxDeletes bounds the jobs of a region that one sweep deletes: half of its quota of writes in a minute.
	MaxDeletes int
	Now        func() time.Time
}

// Sweeper sweeps an installation's work pools.
type Sweeper struct {
	prefect  Prefect
	pools    Pools
	ahead    Ahead
	cloudRun CloudRun
	writes   Writes
	ledger   Ledger
	settler  Settler
	messages Messages
	acts     *Acts
	log      *slog.Logger
	cfg      Config
}

// New returns a sweeper. What goes through acts is counted in its reports, so pools,
// cloudRun, messages, and what ahead and the settler were made of, should be its own.
func New(p Prefect, pools Pools, a Ahead, c CloudRun, writes Writes, l Ledger, s Settler, m Messages, acts *Acts, log *slog.Logger, cfg Config) *Sweeper {
	return &Sweeper{prefect: p, pools: pools, ahead: a, cloudRun: c, writes: writes, ledger: l, settler: s, messages: m, acts: acts, log: log, cfg: cfg}
}

// Sweep sweeps once, unless another sweep is at it: then the report is empty. All pools are
// swept at the same time: what fails or hangs for one does not keep the others from being
// swept.
func (s *Sweeper) Sweep(ctx context.Context) (Report, error) {
	holder := "reconciler/" + uuid.NewString()
	granted := false
	state, err := s.ledger.UpdateSweep(ctx, func(state flowrun.Sweep) (flowrun.Sweep, error) {
		state, granted = state.Begin(holder, s.cfg.Now().Add(Timeout), s.cfg.Now())
		return state, nil
	})
	if err != nil || !granted {
		return Report{}, err
	}
	s.acts.take()
	report, err := s.sweep(ctx, holder, state.Count)
	for _, a := range s.acts.take() {
		report[a.Kind]++
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	_, lerr := s.ledger.UpdateSweep(ctx, func(state flowrun.Sweep) (flowrun.Sweep, error) { return state.End(holder), nil })
	return report, errors.Join(err, lerr)
}

// sweep is the count-th one of the installation.
func (s *Sweeper) sweep(ctx context.Context, holder string, count int) (Report, error) {
	var parts sync.WaitGroup
	works := make([]*work, len(s.cfg.WorkPools)+1)
	var seen *sight
	surveyed := make(chan struct{})
	parts.Go(func() {
		defer close(surveyed)
		seen = s.survey(ctx)
	})
	for i, pool := range s.cfg.WorkPools {
		w := newWork(holder)
		works[i] = w
		parts.Go(func() {
			defer w.finish()
			w.start(func() error { return s.ready(ctx, pool) })
			w.start(func() error {
				done, err := s.ahead.Look(ctx, pool, w.start) // acts count what it sends
				w.counts(Overdue, done.Overdue)
				return err
			})
			<-surveyed
			w.failed(s.underWay(ctx, pool, seen, count, w))
		})
	}
	// What is open in pools that are no longer served, and what is nobody's.
	rest := newWork(holder)
	works[len(s.cfg.WorkPools)] = rest
	parts.Wait()
	rest.failed(errors.Join(seen.failed...))
	rest.failed(s.leftOver(ctx, seen, count, rest))
	rest.finish()
	report, errs := Report{}, []error(nil)
	for _, w := range works {
		errs = append(errs, w.err())
		report.add(w.report)
	}
	return report, errors.Join(errs...)
}

// leftOver is about what no pool's part is about, and about jobs.
func (s *Sweeper) leftOver(ctx context.Context, seen *sight, count int, w *work) error {
	if seen.open == nil {
		return nil // without the ledger it is not known whose anything is
	}
	if err := s.settleOpen(ctx, "", nil, seen, count, w); err != nil {
		return err
	}
	w.finish()
	s.strays(ctx, seen, count, w)
	return s.cleanUp(ctx, seen, w)
}
