package bench

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pushpool/pushpool/functions"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/prefect"
)

// overhead measures what the dispatcher itself takes of the time from the message to the call
// that creates the job, against a real Prefect server: the time in which no call of its is out.
func overhead(ctx context.Context, b *bench) error {
	s, err := b.start(ctx, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	w := &watch{}
	handlers, end, err := s.inProcess("dispatcher", cloudruntest.Options{
		Run: func(context.Context, cloudruntest.Execution, []string, []string) (int, int) { return 0, 0 },
	}, w, w.unary)
	if err != nil {
		return err
	}
	defer end()
	const warmUp, count = 10, 100
	var whole, own []time.Duration
	for i := range warmUp + count {
		fr, _, err := s.Prefect.CreateFlowRun(ctx, s.guide.ID, prefect.NewFlowRun{})
		if err != nil {
			return err
		}
		body := pushBody(fr.ID)
		w.reset()
		begin := time.Now()
		handlers["dispatcher"].ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, "/", bytes.NewReader(body)))
		sent, waited := w.created(begin)
		if i < warmUp || sent == 0 { // 0: the server was too busy for it, and the message would come again
			continue
		}
		whole, own = append(whole, sent), append(own, sent-waited)
	}
	b.figure("dispatches", "flow runs", float64(len(whole)))
	b.spread("message received → CreateJob sent", whole)
	b.spread("of it without a call to Prefect being out", own)
	return nil
}

// inProcess makes the target's functions, or all where it is empty, in this process and in place of the stack's own,
// with a Cloud Run of their own. What they call goes through calls and google.
func (s *stack) inProcess(target string, o cloudruntest.Options, calls http.RoundTripper, google grpc.UnaryClientInterceptor) (handlers map[string]http.Handler, end func(), err error) {
	s.Functions.Stop()
	emulator, err := cloudruntest.Start(o)
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient(emulator.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(google))
	if err != nil {
		emulator.Close()
		return nil, nil, err
	}
	end = func() {
		_ = conn.Close()
		emulator.Close()
	}
	environ := slices.DeleteFunc(s.Functions.Environ(), func(v string) bool { return strings.HasPrefix(v, "TOPIC_LIFECYCLE=") })
	handlers, err = functions.Make(target, install.Surroundings{
		Environ: environ, Log: io.Discard, Memory: ledger.NewMemory(), Prefect: calls, Google: conn,
	})
	if err != nil {
		end()
		return nil, nil, err
	}
	return handlers, end, nil
}

// watch notes when calls to Prefect were out, and when the call was sent that creates a job.
type watch struct {
	mu   sync.Mutex
	out  []span
	sent time.Time
}

type span struct{ from, to time.Time }

func (w *watch) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out, w.sent = nil, time.Time{}
}

// RoundTrip implements http.RoundTripper. A call is out until its answer has been read.
func (w *watch) RoundTrip(r *http.Request) (*http.Response, error) {
	from := time.Now()
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		w.add(span{from, time.Now()})
		return nil, err
	}
	data, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(data))
	w.add(span{from, time.Now()})
	return resp, err
}

func (w *watch) add(s span) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, s)
}

func (w *watch) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if strings.HasSuffix(method, "/CreateJob") {
		w.mu.Lock()
		w.sent = time.Now()
		w.mu.Unlock()
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// created returns how long after begin the job's creation was sent, and for how much of that a
// call to Prefect, or several at once, were out; 0 where it never was.
func (w *watch) created(begin time.Time) (sent, waited time.Duration) {
	w.mu.Lock()
	at := w.sent
	w.mu.Unlock()
	if at.IsZero() {
		return 0, 0
	}
	return at.Sub(begin), w.waited(begin, at)
}

// waited returns for how much of the time between two moments a call, or several, were out.
func (w *watch) waited(begin, end time.Time) (waited time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortFunc(w.out, func(a, b span) int { return a.from.Compare(b.from) })
	until := begin
	for _, s := range w.out {
		if s.to.After(end) {
			s.to = end
		}
		if s.from.Before(until) {
			s.from = until
		}
		if s.to.After(s.from) {
			waited += s.to.Sub(s.from)
			until = s.to
		}
	}
	return waited
}
