package simulate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pushpool/pushpool/functions"
	"github.com/pushpool/pushpool/shared/install"
)

// errOver is what calls come to once the world has ended.
var errOver = errors.New("the simulation is over")

// instance is a running instance of one function.
type instance struct {
	w        *world
	of       *installation
	name     string
	function string
	handler  http.Handler
	conn     *grpc.ClientConn
	dead     atomic.Bool
	active   []*task // that it has not answered
}

// newInstance starts an instance with the installation's present configuration.
func (of *installation) newInstance(function string) *instance {
	of.started++
	i := &instance{w: of.w, of: of, name: fmt.Sprintf("%s/%s-%d", of.name, function, of.started), function: function}
	var err error
	i.conn, err = grpc.NewClient("passthrough:///google",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(i.google))
	if err == nil {
		var made map[string]http.Handler
		made, err = functions.Make(function, install.Surroundings{
			Environ: of.environ(), Log: of.w.log, Memory: &ledgerCalls{i},
			Prefect: prefectCalls{i}, Google: i.conn, Random: of.w.random,
		})
		i.handler = made[function]
	}
	if err != nil {
		panic(fmt.Sprintf("start %s: %v", i.name, err)) // the simulator's own mistake
	}
	of.w.closers = append(of.w.closers, func() { _ = i.conn.Close() })
	return i
}

// kill ends the instance between two calls. Its goroutines stay where they are for good, as
// those of a process that is gone; whoever called it finds the connection closed.
func (i *instance) kill() {
	if i.dead.Swap(true) {
		return
	}
	i.w.trace("%s is killed", i.name)
	i.of.replace(i)
	for _, t := range i.active {
		i.w.loop.at(time.Now(), t.name+"|done", func() { t.done(0) })
	}
}

// task is one message, request or sweep on its way through a function.
type task struct {
	name  string
	inst  *instance
	began time.Time
	done  func(status int)

	mu      sync.Mutex
	counts  map[string]int // calls by what they ask for
	calls   int
	flowRun string // the label of the one it is about, once that is known
	faulted bool
	listed  time.Time // when Prefect last told it what may start
}

type taskKey struct{}

func taskOf(ctx context.Context) *task {
	t, _ := ctx.Value(taskKey{}).(*task)
	return t
}

// next names the task's next call, the same in every run.
func (t *task) next(what string) (name string, before int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before = t.calls
	t.calls++
	n := t.counts[what]
	t.counts[what]++
	return fmt.Sprintf("%s|%s#%d", t.name, what, n), before
}

// serve lets the function handle a request. done is called with the answer's status, 0 where
// the connection broke.
func (of *installation) serve(function, name string, method string, body []byte, header http.Header, done func(status int)) {
	i := of.instanceOf(function, name)
	w := of.w
	t := &task{name: name, inst: i, began: time.Now(), counts: map[string]int{}}
	t.done = func(status int) {
		if t.faulted {
			w.faulted++
		}
		w.trace("%s: %s answers %d", name, i.name, status)
		done(status)
	}
	i.active = append(i.active, t)
	w.deliveries++
	go func() {
		req := httptest.NewRequestWithContext(context.WithValue(w.ctx, taskKey{}, t), method, "/", bytes.NewReader(body))
		for k, v := range header {
			req.Header[k] = v
		}
		rec := httptest.NewRecorder()
		i.handler.ServeHTTP(rec, req)
		w.loop.at(time.Now(), name+"|done", func() {
			if i.dead.Load() {
				return // too late
			}
			i.active = slices.DeleteFunc(i.active, func(o *task) bool { return o == t })
			t.done(rec.Code)
		})
	}()
}

// fault is what strikes a call.
type fault struct {
	kind   Kind
	name   string // of the call
	before int    // how many calls its message had made before it
	frozen bool   // the caller stands still after it
}

// call lets a call of a function happen when its turn comes: effect, in the loop, with what
// strikes it. Where it returns an error, or dies, the caller never learns what came of it.
func (i *instance) call(ctx context.Context, to service, what, flowRun string, effect func(fault)) error {
	w, t := i.w, taskOf(ctx)
	if t == nil || t.inst != i { // a call that several wait for, or that a client batches
		t = i.background()
	}
	var f fault
	f.name, f.before = t.next(what)
	r := w.dice.of("call " + f.name)
	turn, decided := make(chan struct{}), false
	var arrive func()
	arrive = func() { // in the loop, which decides everything
		if i.dead.Load() || ctx.Err() != nil {
			return // nobody calls any more
		}
		if !decided {
			decided = true
			if flowRun != "" {
				t.flowRun = flowRun
			}
			if w.crash != nil && w.crash(i.function, f.name, what) {
				w.struck(Killed, f.before > 0, t, f.name)
				i.kill()
				return
			}
			if f.kind = w.choose(r, to, f); f.kind == Stall {
				w.struck(Stall, f.before > 0, t, f.name)
				// Not where others of the process share the answer: a process stands still as a whole.
				f.frozen = (r.IntN(2) == 0 || w.storm(Stall)) && !strings.Contains(what, "/work_pools/")
				if !f.frozen {
					w.loop.at(time.Now().Add(w.stall(r)), f.name, arrive)
					return
				}
				if w.storm(Stall) && flowRun != "" && to != toCloudRun {
					w.nextHolder(f, t)
				}
			}
		}
		w.trace("%s", f.name)
		if f.kind != Stall && !w.strike(f, t) {
			f.kind = ""
		}
		if i.dead.Load() {
			return
		}
		f.frozen = f.frozen || f.kind == ForeignWorker && w.storm(f.kind)
		effect(f)
		close(turn)
	}
	w.loop.at(time.Now().Add(between(r, time.Millisecond, 30*time.Millisecond)), f.name, arrive)
	select {
	case <-turn:
		return i.answer(ctx, f)
	case <-ctx.Done():
		return i.unlessDead(ctx.Err())
	case <-w.loop.ended:
		return errOver
	}
}

// stall is a pause that is longer than a lease. In a storm it ends before a message's time does: within
// the lease, or after it; in one of workers, after their flow run's end.
func (w *world) stall(r *rand.Rand) time.Duration {
	switch {
	case w.storm(Stall) && r.IntN(2) == 0:
		return between(r, 20*time.Second, shortLease-11*time.Second)
	case w.storm(Stall):
		return between(r, shortLease+4*time.Second, shortLease+14*time.Second)
	case w.storm(ForeignWorker):
		return between(r, 8*time.Second, 20*time.Second)
	}
	return between(r, 90*time.Second, 150*time.Second)
}

// shortLease is the shortest that can be configured.
const shortLease = 45 * time.Second

// nextHolder has somebody else look at the flow run of one who stands still: at once, which its lease
// forbids, or as soon as that is over. It may have gone on by the time that one does.
func (w *world) nextHolder(f fault, t *task) {
	after, id := time.Duration(0), w.flowRuns[t.flowRun].id
	if w.stall(w.dice.of("frozen "+f.name)) > shortLease {
		after = shortLease
	}
	w.loop.at(time.Now().Add(after), "next holder "+f.name, func() {
		w.pubsub.publish(t.inst.of.name+"-flow-runs", []byte(`{"flow_run_id":"`+id+`"}`), nil)
	})
}

// answer takes the answer of a call to its caller.
func (i *instance) answer(ctx context.Context, f fault) error {
	switch {
	case f.kind == PrefectSlow:
		select {
		case <-ctx.Done(): // it comes too late
			return i.unlessDead(ctx.Err())
		case <-i.w.loop.ended:
			return errOver
		}
	case f.frozen: // between the answer and what follows from it
		return i.unlessDead(i.w.loop.park(context.WithoutCancel(ctx), i.w.stall(i.w.dice.of("frozen "+f.name)), f.name+"|thaws", func() {}))
	}
	return nil
}

// unlessDead returns err, but not to a caller that is gone.
func (i *instance) unlessDead(err error) error {
	if i.dead.Load() {
		<-i.w.loop.ended
		return errOver
	}
	return err
}

// background is the task of calls that belong to no message.
func (i *instance) background() *task {
	i.w.backgroundsMu.Lock()
	defer i.w.backgroundsMu.Unlock()
	t := i.w.backgrounds[i.name]
	if t == nil {
		t = &task{name: i.name, inst: i, counts: map[string]int{}}
		i.w.backgrounds[i.name] = t
	}
	return t
}

// prefectCalls carries an instance's calls to Prefect.
type prefectCalls struct{ of *instance }

func (p prefectCalls) RoundTrip(req *http.Request) (*http.Response, error) {
	i, w := p.of, p.of.w
	ctx := req.Context()
	what := req.Method + " " + w.label(req.URL.Path)
	t := taskOf(ctx)
	var resp *http.Response
	//nolint:bodyclose // the client of the transport closes it
	err := i.call(ctx, toPrefect, what, w.flowRunIn(req.URL.Path), func(f fault) {
		if f.kind == PrefectDown || time.Now().Before(w.downUntil) {
			if t != nil {
				t.faulted = true
			}
			return
		}
		if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.GotConn != nil {
			trace.GotConn(httptrace.GotConnInfo{}) // from here on the call may have been heard
		}
		switch f.kind {
		case Prefect429:
			resp = refuse(http.StatusTooManyRequests, "Retry-After", "3")
			return
		case Prefect503:
			resp = refuse(http.StatusServiceUnavailable)
			return
		}
		resp = w.callPrefect(actor{install: i.of, task: t}, req)
		if t != nil && strings.HasSuffix(req.URL.Path, "/get_scheduled_flow_runs") {
			t.listed = time.Now()
		}
		if f.kind == Prefect500 {
			resp = refuse(http.StatusInternalServerError)
		}
	})
	if err != nil {
		return nil, err
	}
	if resp == nil {
		return nil, errors.New("connect: connection refused")
	}
	return resp, nil
}

// refuse is the answer of a server that does not do what it is asked.
func refuse(status int, header ...string) *http.Response {
	rec := httptest.NewRecorder()
	for n := 0; n+1 < len(header); n += 2 {
		rec.Header().Set(header[n], header[n+1])
	}
	rec.Header().Set("Content-Type", "application/json")
	rec.WriteHeader(status)
	_, _ = rec.WriteString(`{"exception_message":"` + http.StatusText(status) + `"}`)
	return rec.Result()
}
