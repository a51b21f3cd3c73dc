package bench

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// process measures the dispatcher alone in a process, as it is deployed: how soon it listens,
// and what memory it takes. Prefect answers late, so that all requests are under way at once.
func process(ctx context.Context, b *bench) error {
	var slow atomic.Bool
	s, err := b.start(ctx, func(o *local.Options) {
		o.Embedded = true
		o.OnPrefectCall = func(*http.Request) {
			if slow.Load() {
				time.Sleep(time.Second)
			}
		}
	})
	if err != nil {
		return err
	}
	defer s.Close()
	s.Functions.Stop() // the messages are this benchmark's own
	port, err := local.FreePort(ctx)
	if err != nil {
		return err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	dispatcher := s.Functions.Only("dispatcher", addr)
	defer dispatcher.Stop()
	const starts = 20
	var listening []time.Duration
	for i := range starts {
		begin := time.Now()
		if err := dispatcher.Start(ctx); err != nil {
			return err
		}
		listening = append(listening, time.Since(begin))
		if i < starts-1 {
			dispatcher.Stop()
		}
	}
	b.spread("process started → listening", listening)
	idle, err := resident(ctx, dispatcher.Pid())
	if err != nil {
		return err
	}
	b.figure("resident, nothing handled yet", "MiB", idle)

	const atOnce = 80
	if err := s.push(ctx, dispatcher, 1); err != nil { // its clients are made
		return err
	}
	if idle, err = resident(ctx, dispatcher.Pid()); err != nil {
		return err
	}
	b.figure("resident, idle after a dispatch", "MiB", idle)
	slow.Store(true)
	done := make(chan error, 1)
	go func() { done <- s.push(ctx, dispatcher, atOnce) }()
	most, err := residentUntil(ctx, dispatcher.Pid(), done)
	b.figure(fmt.Sprintf("resident, at most, with %d requests at once", atOnce), "MiB", most)
	return err
}

// residentUntil returns the most memory that a process takes until done has an error or nil.
func residentUntil(ctx context.Context, pid int, done <-chan error) (most float64, err error) {
	for {
		select {
		case err := <-done:
			return most, err
		case <-time.After(20 * time.Millisecond):
			now, err := resident(ctx, pid)
			if err != nil {
				return most, err
			}
			most = max(most, now)
		}
	}
}

// push has the dispatcher dispatch new flow runs, all at once.
func (s *stack) push(ctx context.Context, dispatcher *local.Functions, count int) error {
	bodies := make([][]byte, count)
	for i := range bodies {
		fr, _, err := s.Prefect.CreateFlowRun(ctx, s.guide.ID, prefect.NewFlowRun{})
		if err != nil {
			return err
		}
		bodies[i] = pushBody(fr.ID)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, body := range bodies {
		g.Go(func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, dispatcher.URL("dispatcher"), bytes.NewReader(body))
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusNoContent {
				return fmt.Errorf("the dispatcher answers %s", resp.Status)
			}
			return nil
		})
	}
	return g.Wait()
}

// pushBody is Pub/Sub's push of a dispatch.
func pushBody(flowRunID string) []byte {
	data := base64.StdEncoding.EncodeToString(message.EncodeDispatch(message.Dispatch{FlowRunID: flowRunID}))
	return fmt.Appendf(nil, `{"message":{"data":%q,"messageId":"1","publishTime":%q},"subscription":"projects/local/subscriptions/flow-runs"}`,
		data, time.Now().UTC().Format(time.RFC3339Nano))
}

// resident is the memory that a process takes, in MiB.
func resident(ctx context.Context, pid int) (float64, error) {
	out, err := exec.CommandContext(ctx, "ps", "-o", "rss=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return 0, fmt.Errorf("ask ps for the memory of process %d: %w", pid, err)
	}
	kib, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return kib / 1024, err
}
