package bench

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// finalize measures how long after an audit entry was delivered Prefect has the state that
// follows from it, and what the finalizer itself takes: the time in which no call of its is out.
func finalize(ctx context.Context, b *bench) error {
	s, err := b.start(ctx, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	entries := make(chan []byte, 10)
	w := &teller{}
	handlers, end, err := s.inProcess("", cloudruntest.Options{
		Run:     func(context.Context, cloudruntest.Execution, []string, []string) (int, int) { return 7, 0 },
		Publish: func(_ context.Context, entry []byte) error { entries <- entry; return nil },
	}, w, w.google)
	if err != nil {
		return err
	}
	defer end()
	// deliver delivers a message until it is acknowledged, as Pub/Sub does: a server on SQLite is too busy now and then.
	deliver := func(function string, body []byte) error {
		for {
			answer := httptest.NewRecorder()
			handlers[function].ServeHTTP(answer, httptest.NewRequestWithContext(ctx, http.MethodPost, "/", bytes.NewReader(body)))
			if answer.Code < http.StatusMultipleChoices {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	const warmUp, count = 5, 60
	for _, state := range []flowrun.StateType{flowrun.StatePending, flowrun.StateRunning} {
		var told, own, trips []time.Duration
		for i := range warmUp + count {
			fr, _, err := s.Prefect.CreateFlowRun(ctx, s.guide.ID, prefect.NewFlowRun{})
			if err != nil {
				return err
			}
			other, err := s.foreign(ctx)
			if err != nil {
				return err
			}
			if err := deliver("dispatcher", pushBody(fr.ID)); err != nil {
				return err
			}
			var entry []byte
			select {
			case entry = <-entries:
			case <-time.After(time.Minute):
				return errors.New("no execution ended within a minute")
			}
			if state == flowrun.StateRunning {
				if _, err := s.Prefect.SetState(ctx, fr.ID, prefect.Proposal{Type: state}); err != nil {
					return err
				}
			}
			trip, err := s.roundTrip(ctx, other)
			if err != nil {
				return err
			}
			w.begin()
			begin := time.Now()
			if err := deliver("finalizer", fmt.Appendf(nil, `{"message":{"data":%q,"messageId":"1"},"subscription":"s"}`, base64.StdEncoding.EncodeToString(entry))); err != nil {
				return err
			}
			done := time.Now()
			at := w.told.Load()
			if at == nil {
				return fmt.Errorf("the finalizer told Prefect nothing of flow run %s", fr.ID)
			}
			if i < warmUp {
				continue
			}
			told, trips = append(told, at.Sub(begin)), append(trips, trip)
			own = append(own, done.Sub(begin)-w.waited(begin, done))
		}
		median := b.spread("entry delivered → state in Prefect, of "+string(state), told)
		trip := b.spread("one set_state round trip beside "+string(state), trips)
		b.figure("entry delivered → state in Prefect, of "+string(state)+", in set_state round trips", "ratio", median.Seconds()/trip.Seconds())
		b.spread("an entry of "+string(state)+" without a call being out", own)
	}
	return nil
}

// teller notes when a state was told.
type teller struct {
	watch
	told atomic.Pointer[time.Time]
}

func (w *teller) begin() {
	w.reset()
	w.told.Store(nil)
}

// RoundTrip implements http.RoundTripper.
func (w *teller) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.watch.RoundTrip(r)
	if strings.HasSuffix(r.URL.Path, "/set_state") {
		now := time.Now()
		w.told.Store(&now)
	}
	return resp, err
}

func (w *teller) google(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	from := time.Now()
	err := invoke(ctx, method, req, reply, cc, opts...)
	w.add(span{from, time.Now()})
	return err
}
