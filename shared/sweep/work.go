package sweep

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/settle"
)

// Report counts by kind what a sweep did.
type Report map[Kind]int

func (r Report) add(o Report) {
	for k, n := range o {
		r[k] += n
	}
}

// LogValue implements slog.LogValuer.
func (r Report) LogValue() slog.Value {
	var attrs []slog.Attr
	for _, k := range slices.Sorted(maps.Keys(r)) {
		attrs = append(attrs, slog.Int(string(k), r[k]))
	}
	return slog.GroupValue(attrs...)
}

// work is one part of a sweep. Its calls run at the same time.
type work struct {
	holder string
	group  errgroup.Group

	mu     sync.Mutex
	report Report
	errs   []error
}

func newWork(holder string) *work {
	w := &work{holder: holder, report: Report{}}
	w.group.SetLimit(atOnce)
	return w
}

// start runs a call beside the others. It waits while too many are under way.
func (w *work) start(call func() error) {
	w.group.Go(func() error {
		w.failed(call())
		return nil // one failure does not end the others
	})
}

func (w *work) count(k Kind) { w.counts(k, 1) }

func (w *work) counts(k Kind, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > 0 {
		w.report[k] += n
	}
}

func (w *work) failed(err error) {
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// looked words the end of a look. That somebody else is at the flow run, or that its
// execution is being stopped, is as it should be.
func (w *work) looked(flowRunID string, err error) error {
	switch {
	case errors.Is(err, flowrun.ErrBusy), errors.Is(err, settle.ErrWait):
		w.count(Busy)
		return nil
	case err != nil:
		return fmt.Errorf("look at flow run %s: %w", flowRunID, err)
	}
	return nil
}

// finish waits for the calls under way.
func (w *work) finish() { _ = w.group.Wait() }

// err returns what failed, once all of it has ended.
func (w *work) err() error {
	if n := len(w.errs); n > maxErrors {
		w.errs = append(w.errs[:maxErrors], fmt.Errorf("and %d more errors", n-maxErrors))
	}
	return errors.Join(w.errs...)
}
