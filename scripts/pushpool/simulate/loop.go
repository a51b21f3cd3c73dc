package simulate

import (
	"cmp"
	"container/heap"
	"context"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing/synctest"
	"time"
)

// stepsPerCollection: garbage is collected here and nowhere else (see Repeatable), because a
// collection interrupts whoever runs and puts it behind the others.
const stepsPerCollection = 2000

// Repeatable makes the process one that lets goroutines run in the same order every time:
// whoever is woken first. What is left is a goroutine that runs for 10 ms, which is interrupted.
func Repeatable() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
}

// loop lets one thing happen at a time, in the order of time.
type loop struct {
	ended  chan struct{} // closed when the loop runs no more: nobody gets a turn
	bell   chan struct{} // rung when something arrives
	queue  queue
	hash   uint64 // of all that happened so far, to compare two runs
	steps  int
	onStep func(n int)       // is told of each step
	trace  func(name string) // likewise, if set

	mu      sync.Mutex
	arrived []*event
}

// event is something that happens at a time. Names order what happens at the same time, and
// are the same in every run.
type event struct {
	at   time.Time
	name string
	do   func()
}

func newLoop() *loop { return &loop{bell: make(chan struct{}, 1), ended: make(chan struct{})} }

// at has something happen. It may be called by any goroutine.
func (l *loop) at(t time.Time, name string, do func()) {
	l.mu.Lock()
	l.arrived = append(l.arrived, &event{t, name, do})
	l.mu.Unlock()
	select {
	case l.bell <- struct{}{}:
	default:
	}
}

// park blocks the caller until it is its turn, after a delay, or ctx ends. do is what happens
// then: in the loop, as everything that changes the world.
func (l *loop) park(ctx context.Context, delay time.Duration, name string, do func()) error {
	turn := make(chan struct{})
	l.at(time.Now().Add(delay), name, func() {
		if ctx.Err() == nil {
			do()
			close(turn)
		}
	})
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		return errOver
	}
}

// run lets things happen until done says so, which is asked after each.
func (l *loop) run(done func() bool) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		synctest.Wait() // until whoever could go on has parked
		l.admit()
		if done() {
			return
		}
		if len(l.queue) == 0 {
			<-l.bell
			continue
		}
		next := l.queue[0]
		if wait := time.Until(next.at); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-l.bell:
			}
			continue
		}
		heap.Pop(&l.queue)
		if l.steps++; l.steps%stepsPerCollection == 0 {
			runtime.GC()
		}
		for i := range len(next.name) {
			l.hash = (l.hash ^ uint64(next.name[i])) * 1099511628211
		}
		l.onStep(l.steps)
		if l.trace != nil {
			l.trace(next.name)
		}
		l.hash ^= uint64(time.Now().UnixNano())
		next.do()
	}
}

// admit takes in what arrived, in an order that does not depend on who was faster.
func (l *loop) admit() {
	l.mu.Lock()
	arrived := l.arrived
	l.arrived = nil
	l.mu.Unlock()
	slices.SortStableFunc(arrived, func(a, b *event) int { return cmp.Compare(a.name, b.name) })
	for _, e := range arrived {
		heap.Push(&l.queue, e)
	}
}

// queue is a heap of events.
type queue []*event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return cmp.Or(q[i].at.Compare(q[j].at), cmp.Compare(q[i].name, q[j].name)) < 0
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*event)) } //nolint:forcetypeassert // heap's own
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}
