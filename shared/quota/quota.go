// Package quota keeps Cloud Run's quotas for all instances together: it grants each write a
// time, from what the ledger says is spoken for.
package quota

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Ledger is what the budget asks of the ledger.
type Ledger interface {
	UpdateRegion(ctx context.Context, name string, change func(flowrun.Region) (flowrun.Region, error)) (flowrun.Region, error)
}

// Budget grants writes to Cloud Run, and reads. It is safe for concurrent use. Callers of one process
// that come at the same time share one update, so that a region's document is not what
// hundreds of launches queue for.
type Budget struct {
	ledger Ledger
	quota  flowrun.Quota
	now    func() time.Time

	mu     sync.Mutex
	queues map[string]*queue
	reads  map[string]*reads
}

// reads are those of one region and minute that the process may still make. Who has put
// something into turn may change them.
type reads struct {
	turn   chan struct{}
	minute int64
	left   int // -1 where the ledger had none left
}

// queue is the asking for one region. Its mu is the budget's.
type queue struct {
	waiting []*request
	busy    bool // somebody is at the ledger and comes back for what waits
	// closed: the region was refusing when it was last read, so a success has to be told.
	closed      bool
	closedUntil time.Time
	reason      string
}

// Ask is what a launch asks for.
type Ask struct {
	// NewJob: it creates a job, for which another will have to be deleted.
	NewJob bool
	// Latest is until when a time is of use; zero: any is.
	Latest time.Time
	// Unused is a time that the flow run was granted before in the region, and did not use. It is given back.
	Unused time.Time
}

type request struct {
	Ask
	granted time.Time
	err     error
	done    chan struct{}
}

// New returns a budget with the quota of every region.
func New(l Ledger, q flowrun.Quota, now func() time.Time) *Budget {
	return &Budget{ledger: l, quota: q, now: now, queues: map[string]*queue{}, reads: map[string]*reads{}}
}

// Region names a region of a project in the ledger.
func Region(project, region string) string { return project + "/" + region }

// Launch grants a launch in the region the next free time, which may be minutes ahead and is
// kept for it. Where that would be after the latest, nothing is granted, ok is false and at an estimate.
func (b *Budget) Launch(ctx context.Context, region string, a Ask) (at time.Time, ok bool, err error) {
	r := &request{Ask: a, done: make(chan struct{})}
	b.mu.Lock()
	q := b.queue(region)
	q.waiting = append(q.waiting, r)
	lead := !q.busy
	q.busy = true
	b.mu.Unlock()
	if lead {
		// Beside the caller, whose answer must not wait for those who come after it.
		go b.serve(context.WithoutCancel(ctx), region, q)
	}
	select {
	case <-r.done:
		return r.granted, a.Latest.IsZero() || !r.granted.After(a.Latest), r.err
	case <-ctx.Done():
		return time.Time{}, false, fmt.Errorf("ask for a launch in %s: %w", region, context.Cause(ctx))
	}
}

func (b *Budget) queue(region string) *queue {
	if b.queues[region] == nil {
		b.queues[region] = &queue{}
	}
	return b.queues[region]
}

// serve asks the ledger for all that wait, until nobody does.
func (b *Budget) serve(ctx context.Context, region string, q *queue) {
	for {
		b.mu.Lock()
		batch := q.waiting
		q.waiting = nil
		if len(batch) == 0 {
			q.busy = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		err := b.update(ctx, region, q, func(r flowrun.Region) flowrun.Region {
			for _, w := range batch {
				if !w.Unused.IsZero() {
					r = r.Returned(w.Unused, w.NewJob)
				}
				r, w.granted = r.Reserve(w.NewJob, w.Latest, b.quota, b.now())
			}
			return r
		})
		for _, w := range batch {
			w.err = err
			close(w.done)
		}
	}
}

func (b *Budget) update(ctx context.Context, region string, q *queue, change func(flowrun.Region) flowrun.Region) error {
	r, err := b.ledger.UpdateRegion(ctx, region, func(r flowrun.Region) (flowrun.Region, error) { return change(r), nil })
	if err != nil {
		return fmt.Errorf("keep the quota of %s: %w", region, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	q.closed, q.closedUntil, q.reason = r.ClosedFor > 0, r.ClosedUntil, r.Reason
	return nil
}

// Closed reports until when the region is known to take no launch, and why. It asks nobody:
// it is for whoever comes with a time granted before.
func (b *Budget) Closed(region string) (until time.Time, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue(region)
	return q.closedUntil, q.reason
}

// Refused tells that Cloud Run refused a launch in the region for now.
func (b *Budget) Refused(ctx context.Context, region, reason string) error {
	return b.change(ctx, region, func(r flowrun.Region) flowrun.Region { return r.Refused(reason, b.now()) })
}

// Accepted tells that Cloud Run took a launch in the region. It costs nothing unless the
// region was refusing.
func (b *Budget) Accepted(ctx context.Context, region string) error {
	b.mu.Lock()
	closed := b.queue(region).closed
	b.mu.Unlock()
	if !closed {
		return nil
	}
	return b.change(ctx, region, flowrun.Region.Accepted)
}

// Spent tells of n writes in the region that cannot wait for a grant, as a cancellation cannot.
func (b *Budget) Spent(ctx context.Context, region string, n int) error {
	return b.change(ctx, region, func(r flowrun.Region) flowrun.Region { return r.Spent(n, b.quota, b.now()) })
}

// readsAtOnce is how many reads a process takes for itself at a time.
const readsAtOnce = 100

// Read grants a read in the region. Where the minute's are used up, the error is Refused. Who
// cannot ask the ledger reads all the same.
func (b *Budget) Read(ctx context.Context, region string) error {
	b.mu.Lock()
	if b.reads[region] == nil {
		b.reads[region] = &reads{turn: make(chan struct{}, 1)}
	}
	own := b.reads[region]
	b.mu.Unlock()
	select {
	case own.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("ask for a read in %s: %w", region, context.Cause(ctx))
	}
	defer func() { <-own.turn }()
	if now := flowrun.Minute(b.now()); own.minute != now {
		own.minute, own.left = now, 0
	}
	if own.left == 0 {
		err := b.change(ctx, region, func(r flowrun.Region) flowrun.Region {
			r, own.left = r.TakeReads(readsAtOnce, b.quota, b.now())
			return r
		})
		if err != nil {
			own.left = 0
			return nil
		}
		if own.left == 0 {
			own.left = -1
		}
	}
	if own.left < 0 {
		return &flowrun.Error{
			Fault: flowrun.Refused, Act: "read from Cloud Run in " + region, Err: errors.New("this minute's quota of reads is used up"),
			Hint: "it is tried again by itself; if this goes on, ask for more quota and raise CLOUD_RUN_READS_PER_MINUTE",
		}
	}
	own.left--
	return nil
}

// TakeSlot takes, until the given time, the one of so many slots of the region that has been
// free for longest. ok is false where none is.
func (b *Budget) TakeSlot(ctx context.Context, region string, of int, until time.Time) (slot int, ok bool, err error) {
	err = b.change(ctx, region, func(r flowrun.Region) flowrun.Region {
		r, slot, ok = r.TakeSlot(of, until, b.now())
		return r
	})
	return slot, ok, err
}

// KeepSlot has a slot of the region left alone until the given time.
func (b *Budget) KeepSlot(ctx context.Context, region string, slot int, until time.Time) error {
	return b.change(ctx, region, func(r flowrun.Region) flowrun.Region { return r.KeepSlot(slot, until) })
}

// Deletions grants at most n deletions of ended jobs between now and until, each at a time
// of its own: as many as launches where the jobs would not fit otherwise, and else in what
// launches leave. Whoever deletes waits for each time.
func (b *Budget) Deletions(ctx context.Context, region string, n int, until time.Time) ([]time.Time, error) {
	var granted []time.Time
	err := b.change(ctx, region, func(r flowrun.Region) flowrun.Region {
		r, granted = r.ReserveDeletions(n, until, b.quota, b.now())
		return r
	})
	return granted, err
}

// Counted tells how many jobs a listing of the region found, whoever made them.
func (b *Budget) Counted(ctx context.Context, region string, jobs int) error {
	return b.change(ctx, region, func(r flowrun.Region) flowrun.Region { return r.Counted(jobs, b.quota, b.now()) })
}

// NearCap reports whether so many jobs are 60 % of what the quota allows: ended ones are
// then deleted, the oldest first, however long they were to be kept.
func (b *Budget) NearCap(jobs int) bool { return jobs >= b.quota.Jobs*60/100 }

func (b *Budget) change(ctx context.Context, region string, change func(flowrun.Region) flowrun.Region) error {
	b.mu.Lock()
	q := b.queue(region)
	b.mu.Unlock()
	return b.update(ctx, region, q, change)
}
