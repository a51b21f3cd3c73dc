package simulate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pushpool/pushpool/functions"
	"github.com/pushpool/pushpool/shared/install"
)

// errDead is what calls of an instance come to that was killed: nothing of it goes on.
var errDead = errors.New("the instance was killed")

// instance is a running instance of one function.
type instance struct {
	w        *world
	of       *installation
	name     string
	function string
	handler  http.Handler
	conn     *grpc.ClientConn
	ctx      context.Context // ends when the instance is killed
	cancel   context.CancelFunc
	dead     atomic.Bool
}

// newInstance starts an instance with the installation's present configuration.
func (of *installation) newInstance(function string) *instance {
	of.started++
	i := &instance{w: of.w, of: of, name: fmt.Sprintf("%s/%s-%d", of.name, function, of.started), function: function}
	i.ctx, i.cancel = context.WithCancel(of.w.ctx)
	var err error
	i.conn, err = grpc.NewClient("passthrough:///google",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(i.google))
	if err == nil {
		var made map[string]http.Handler
		made, err = functions.Make(function, install.Surroundings{
			Environ: of.environ(), Log: of.w.log, Memory: &ledgerCalls{Ledger: of.w.variant.ledger(of.ledger), of: i},
			Prefect: prefectCalls{i}, Google: i.conn, Random: of.w.random,
		})
		i.handler = made[function]
	}
	if err != nil {
		panic(fmt.Sprintf("start %s: %v", i.name, err)) // the simulator's own mistake
	}
	of.all = append(of.all, i)
	of.w.closers = append(of.w.closers, func() { _ = i.conn.Close() })
	return i
}

// kill ends the instance between two instructions: nothing it was about to do happens.
func (i *instance) kill() {
	if i.dead.Swap(true) {
		return
	}
	i.w.trace("%s is killed", i.name)
	i.cancel()
	i.of.replace(i)
}

// task is one message, request or sweep on its way through a function.
type task struct {
	name string
	inst *instance

	mu      sync.Mutex
	counts  map[string]int // calls by what they ask for
	calls   int
	flowRun string // the label of the one it is about, once that is known
	faulted bool
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
	t := &task{name: name, inst: i, counts: map[string]int{}}
	w := of.w
	w.deliveries++
	go func() {
		req := httptest.NewRequestWithContext(context.WithValue(i.ctx, taskKey{}, t), method, "/", bytes.NewReader(body))
		for k, v := range header {
			req.Header[k] = v
		}
		rec := httptest.NewRecorder()
		i.handler.ServeHTTP(rec, req)
		w.loop.at(time.Now(), name+"|done", func() {
			status := rec.Code
			if i.dead.Load() {
				status = 0
			}
			if t.faulted {
				w.faulted++
			}
			w.trace("%s: %s answers %d", name, i.name, status)
			done(status)
		})
	}()
}

// fault is what strikes a call.
type fault struct {
	kind   Kind
	name   string // of the call
	before int    // how many calls its message had made before it
}

// begin parks a call of a function until its turn, and tells what strikes it. The error is
// final: the call has no effect.
func (i *instance) begin(ctx context.Context, to service, what, flowRun string) (fault, error) {
	if i.dead.Load() {
		return fault{}, errDead
	}
	w, t := i.w, taskOf(ctx)
	if t == nil || t.inst != i { // a call that several wait for, or that a client batches
		t = i.background()
	}
	if flowRun != "" {
		t.flowRun = flowRun
	} else {
		flowRun = t.flowRun
	}
	var f fault
	f.name, f.before = t.next(what)
	r := w.dice.of("call " + f.name)
	delay := between(r, time.Millisecond, 30*time.Millisecond)
	f.kind = w.choose(r, to, f)
	if f.kind == Stall {
		delay += between(r, 90*time.Second, 150*time.Second)
	}
	if err := w.loop.park(ctx, delay, f.name); err != nil {
		w.strike(f, t, flowRun)
		return f, err
	}
	if i.dead.Load() {
		return f, errDead
	}
	if w.crash != nil && w.crash(f.name, what) {
		i.kill()
		return f, errDead
	}
	w.trace("%s", f.name)
	if f.kind == "" {
		return f, nil
	}
	if !w.strike(f, t, flowRun) {
		f.kind = ""
	}
	if i.dead.Load() {
		return f, errDead
	}
	return f, nil
}

// end is called when the call has taken effect and its answer is on its way.
func (i *instance) end(ctx context.Context, f fault) error {
	switch {
	case i.dead.Load():
		return errDead
	case f.kind == PrefectSlow:
		<-ctx.Done() // the answer comes too late
		return ctx.Err()
	}
	return nil
}

// background is the task of calls that belong to no message.
func (i *instance) background() *task {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
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
	f, err := i.begin(ctx, toPrefect, what, w.flowRunIn(req.URL.Path))
	if err != nil {
		return nil, err
	}
	if f.kind == PrefectDown || time.Now().Before(w.downUntil) {
		if t := taskOf(ctx); t != nil {
			t.faulted = true
		}
		return nil, errors.New("connect: connection refused")
	}
	if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	refuse := func(status int, header ...string) *http.Response {
		rec := httptest.NewRecorder()
		for n := 0; n+1 < len(header); n += 2 {
			rec.Header().Set(header[n], header[n+1])
		}
		rec.Header().Set("Content-Type", "application/json")
		rec.WriteHeader(status)
		_, _ = rec.WriteString(`{"exception_message":"` + http.StatusText(status) + `"}`)
		return rec.Result()
	}
	switch f.kind {
	case Prefect429:
		return refuse(http.StatusTooManyRequests, "Retry-After", "3"), nil
	case Prefect503:
		return refuse(http.StatusServiceUnavailable), nil
	}
	resp := w.callPrefect(actor{install: i.of, task: taskOf(ctx)}, w.variant.request(req))
	if err := i.end(ctx, f); err != nil {
		return nil, err
	}
	if f.kind == Prefect500 {
		return refuse(http.StatusInternalServerError), nil
	}
	return w.variant.response(req, resp), nil
}
