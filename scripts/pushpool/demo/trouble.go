package demo

import (
	"context"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
)

// trouble is what goes wrong while flow runs go through, and how often it did.
type trouble struct {
	mu      sync.Mutex
	counted map[string]int
}

func (t *trouble) count(kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counted == nil {
		t.counted = map[string]int{}
	}
	t.counted[kind]++
}

// counts are how often what has gone wrong, by kind.
func (t *trouble) counts() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counted)
}

// begin has messages and calls to Cloud Run go wrong, and f killed by SIGKILL every four to twelve
// seconds and started anew, until end is called.
func (t *trouble) begin(ctx context.Context, s *local.Stack, f *local.Functions) (end func() error) {
	s.OnPush(t.push)
	s.OnCall(t.call)
	ctx, stop := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				failed <- nil
				return
			case <-time.After(4*time.Second + rand.N(8*time.Second)): //nolint:gosec // chance, no secret
			}
			f.Kill()
			t.count("function_killed")
			var err error
			for range 5 { // somebody's connection may have got the port meanwhile
				if err = f.Start(context.WithoutCancel(ctx)); err == nil {
					break
				}
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	return func() error {
		s.OnPush(nil)
		s.OnCall(nil)
		stop()
		return <-failed
	}
}

func (t *trouble) push(deliverytest.Push) deliverytest.Fault {
	switch n := rand.IntN(100); { //nolint:gosec // chance, no secret
	case n < 15:
		t.count("message_duplicated")
		return deliverytest.Fault{Copies: 1}
	case n < 25:
		t.count("push_timeout")
		return deliverytest.Fault{Deaf: true}
	case n < 35:
		t.count("message_delayed")
		return deliverytest.Fault{Delay: rand.N(5 * time.Second)} //nolint:gosec // chance, no secret
	case n < 40:
		t.count("message_lost")
		return deliverytest.Fault{Lose: true}
	}
	return deliverytest.Fault{}
}

func (t *trouble) call(method string, phase cloudruntest.Phase) error {
	if method == "DeleteJob" { // people's as well
		return nil
	}
	switch n := rand.IntN(100); { //nolint:gosec // chance, no secret
	case phase == cloudruntest.Before && n < 10:
		t.count("cloudrun_429")
		return status.Error(codes.ResourceExhausted, "Quota exceeded")
	case phase == cloudruntest.Before && n < 20:
		t.count("cloudrun_503_before")
		return status.Error(codes.Unavailable, "The service is currently unavailable")
	case phase == cloudruntest.After && n < 10:
		t.count("cloudrun_503_after")
		return status.Error(codes.Unavailable, "The service is currently unavailable")
	}
	return nil
}
