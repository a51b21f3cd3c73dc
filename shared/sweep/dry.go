package sweep

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
)

// NewDryActs returns Acts that let nothing through.
func NewDryActs(log *slog.Logger) *Acts { return &Acts{log: log, dry: true} }

// DryRun returns what a sweep would do now, also while another is under way. The sweeper's
// acts must be dry, and its ledger a DryLedger.
func (s *Sweeper) DryRun(ctx context.Context) ([]Act, error) {
	_, err := s.sweep(ctx, "dry", 1)
	return s.acts.take(), err
}

// DryLedger returns a ledger that starts as the one given and changes in memory only.
func DryLedger(l ledger.Ledger) ledger.Ledger {
	return &dryLedger{Ledger: l, records: map[string]flowrun.Record{}}
}

type dryLedger struct {
	ledger.Ledger

	mu      sync.Mutex
	records map[string]flowrun.Record
}

var errDry = errors.New("nothing is written in a dry run")

func (d *dryLedger) Get(ctx context.Context, id string) (flowrun.Record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r, ok := d.records[id]; ok {
		return r, nil
	}
	return d.Ledger.Get(ctx, id)
}

func (d *dryLedger) Update(ctx context.Context, id string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error) {
	before, err := d.Get(ctx, id)
	if err != nil {
		return before, err
	}
	after, err := change(before)
	if err != nil {
		return before, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records[id] = after
	return after, nil
}

func (d *dryLedger) UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error) {
	return unwritten(ctx, d.Ledger.UpdatePool, name, change)
}

func (d *dryLedger) UpdateRegion(ctx context.Context, name string, change func(flowrun.Region) (flowrun.Region, error)) (flowrun.Region, error) {
	return unwritten(ctx, d.Ledger.UpdateRegion, name, change)
}

// unwritten returns what an update would write.
func unwritten[T any](ctx context.Context, update func(context.Context, string, func(T) (T, error)) (T, error), name string, change func(T) (T, error)) (after T, err error) {
	_, failed := update(ctx, name, func(before T) (T, error) {
		if after, err = change(before); err != nil {
			after = before
		}
		return before, errDry
	})
	if !errors.Is(failed, errDry) {
		return after, failed
	}
	return after, err
}
