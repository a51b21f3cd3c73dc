package quota_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/quota"
)

// slowLedger takes as long as a database does, and counts.
type slowLedger struct {
	*ledger.Memory
	updates atomic.Int32
	fail    atomic.Bool
}

var errDown = errors.New("the ledger cannot be reached")

func (l *slowLedger) UpdateRegion(ctx context.Context, name string, change func(flowrun.Region) (flowrun.Region, error)) (flowrun.Region, error) {
	l.updates.Add(1)
	time.Sleep(20 * time.Millisecond)
	if l.fail.Load() {
		return flowrun.Region{}, errDown
	}
	return l.Memory.UpdateRegion(ctx, name, change)
}

const region = "project/region"

var limits = flowrun.Quota{Writes: 180, Jobs: 1000}

// TestInstancesShareTheQuota holds that two instances with hundreds of launches at once get
// times that together are within the quota, for a few transactions of each.
func TestInstancesShareTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &slowLedger{Memory: ledger.NewMemory()}
		start := time.Now()
		var mu sync.Mutex
		var granted []time.Time
		var g errgroup.Group
		for range 2 {
			b := quota.New(l, limits, time.Now)
			for range 200 {
				g.Go(func() error {
					at, ok, err := b.Launch(t.Context(), region, quota.Ask{NewJob: true})
					if err == nil && !ok {
						err = errors.New("nothing was granted")
					}
					mu.Lock()
					defer mu.Unlock()
					granted = append(granted, at)
					return err
				})
			}
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if n := l.updates.Load(); n > 8 {
			t.Errorf("%d transactions for 400 launches of two instances", n)
		}
		slices.SortFunc(granted, time.Time.Compare)
		if len(slices.CompactFunc(slices.Clone(granted), time.Time.Equal)) != len(granted) {
			t.Error("two launches have the same time")
		}
		if n := slices.IndexFunc(granted, func(at time.Time) bool { return at.After(start.Add(time.Minute)) }); n > 180 || n < 171 {
			t.Errorf("%d launches in the first minute", n)
		}
	})
}

// TestInstancesShareTheReads holds that all instances together make no more reads in a minute
// than the quota, for a few transactions, and that a ledger that fails keeps nobody from reading.
func TestInstancesShareTheReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &slowLedger{Memory: ledger.NewMemory()}
		instances := []*quota.Budget{quota.New(l, flowrun.Quota{Reads: 250}, time.Now), quota.New(l, flowrun.Quota{Reads: 250}, time.Now)}
		read := func() (made int) {
			var n atomic.Int32
			var g errgroup.Group
			for i := range 400 {
				g.Go(func() error {
					err := instances[i%2].Read(t.Context(), region)
					if err == nil {
						n.Add(1)
					} else if flowrun.FaultOf(err) != flowrun.Refused {
						return err
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			return int(n.Load())
		}
		minute := func() { time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute))) }
		minute()
		if made, asked := read(), l.updates.Load(); made != 250 || asked > 8 {
			t.Errorf("%d reads in a minute, for %d transactions", made, asked)
		}
		minute()
		if made := read(); made != 250 {
			t.Errorf("%d reads in the next minute", made)
		}
		l.fail.Store(true)
		minute()
		if made := read(); made != 400 {
			t.Errorf("%d reads while the ledger cannot be asked", made)
		}
	})
}

// TestAFailingLedgerIsTold holds that nobody is left waiting, and that the next ask works.
func TestAFailingLedgerIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &slowLedger{Memory: ledger.NewMemory()}
		b := quota.New(l, limits, time.Now)
		l.fail.Store(true)
		var g errgroup.Group
		var failed atomic.Int32
		for range 10 {
			g.Go(func() error {
				if _, _, err := b.Launch(t.Context(), region, quota.Ask{NewJob: true}); errors.Is(err, errDown) {
					failed.Add(1)
				}
				return nil
			})
		}
		_ = g.Wait()
		if failed.Load() != 10 {
			t.Errorf("%d of 10 were told", failed.Load())
		}
		l.fail.Store(false)
		if _, ok, err := b.Launch(t.Context(), region, quota.Ask{NewJob: true}); err != nil || !ok {
			t.Errorf("then: %t, %v", ok, err)
		}
	})
}

// TestALaunchThatEndsDoesNotTakeTheOthersAlong holds that a caller's end is its own.
func TestALaunchThatEndsDoesNotTakeTheOthersAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := quota.New(&slowLedger{Memory: ledger.NewMemory()}, limits, time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		var g errgroup.Group
		g.Go(func() error {
			if _, _, err := b.Launch(ctx, region, quota.Ask{NewJob: true}); !errors.Is(err, context.Canceled) {
				t.Errorf("the one that ended: %v", err)
			}
			return nil
		})
		synctest.Wait()
		g.Go(func() error {
			_, _, err := b.Launch(t.Context(), region, quota.Ask{NewJob: true})
			return err
		})
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestARefusalIsKnownToAllWhoAsk holds that what one instance is refused another one is not
// granted, and that a success opens the region for both and costs nothing otherwise.
func TestARefusalIsKnownToAllWhoAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &slowLedger{Memory: ledger.NewMemory()}
		a, b := quota.New(l, limits, time.Now), quota.New(l, limits, time.Now)
		if err := a.Refused(t.Context(), region, "quota exceeded"); err != nil {
			t.Fatal(err)
		}
		until, reason := a.Closed(region)
		if !until.After(time.Now()) || reason != "quota exceeded" {
			t.Errorf("closed until %s for %q", until, reason)
		}
		at, ok, err := b.Launch(t.Context(), region, quota.Ask{NewJob: true, Latest: time.Now().Add(time.Second)})
		if err != nil || ok || at.Before(until) {
			t.Errorf("the other was granted %s, %t, %v", at, ok, err)
		}
		if known, _ := b.Closed(region); known != until {
			t.Errorf("the other knows %s, want %s", known, until)
		}
		if err := b.Accepted(t.Context(), region); err != nil {
			t.Fatal(err)
		}
		before := l.updates.Load()
		if err := b.Accepted(t.Context(), region); err != nil || l.updates.Load() != before {
			t.Errorf("a success of an open region asked the ledger, %v", err)
		}
		if _, ok, err := a.Launch(t.Context(), region, quota.Ask{NewJob: true, Latest: time.Now().Add(time.Second)}); !ok || err != nil {
			t.Errorf("after it was opened: %t, %v", ok, err)
		}
	})
}

// TestDeletionsWaitForTheirTimes holds the reconciler's share where nothing is launched.
func TestDeletionsWaitForTheirTimes(t *testing.T) {
	b := quota.New(ledger.NewMemory(), limits, time.Now)
	until := time.Now().Add(30 * time.Second)
	granted, err := b.Deletions(t.Context(), region, 100, until)
	if err != nil || len(granted) < 40 || len(granted) > 48 || granted[len(granted)-1].After(until) {
		t.Errorf("%d deletions in half a minute, %v", len(granted), err)
	}
	if !b.NearCap(600) || b.NearCap(599) {
		t.Error("near the cap begins at 600 of 1000 jobs")
	}
}
