package prefect_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pushpool/pushpool/shared/prefect"
)

// TestCache holds for how long an answer of each kind is used again, and that failures are not.
func TestCache(t *testing.T) {
	for kind, tt := range map[string]struct {
		age  time.Duration
		body string // empty: that of a flow run
		read func(context.Context, *prefect.Client) error
	}{
		"flow":        {10 * time.Minute, "", func(ctx context.Context, c *prefect.Client) error { _, err := c.Flow(ctx, id); return err }},
		"work pool":   {10 * time.Second, "", func(ctx context.Context, c *prefect.Client) error { _, err := c.WorkPool(ctx, "etl"); return err }},
		"work queues": {10 * time.Second, "[]", func(ctx context.Context, c *prefect.Client) error { _, err := c.WorkQueues(ctx, "etl"); return err }},
		"block": {10 * time.Second, "", func(ctx context.Context, c *prefect.Client) error {
			_, err := c.BlockDocument(ctx, "secret", "key")
			return err
		}},
		"block by its id": {10 * time.Second, "", func(ctx context.Context, c *prefect.Client) error { _, err := c.BlockDocumentByID(ctx, id); return err }},
		"variable":        {10 * time.Second, "", func(ctx context.Context, c *prefect.Client) error { _, _, err := c.Variable(ctx, "v"); return err }},
	} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				found := flowRunFound
				if tt.body != "" {
					found.body = tt.body
				}
				s := &script{answers: []answer{{status: 500}, found}}
				c := newClient(t, s)
				for _, step := range []struct {
					rule  string
					wait  time.Duration
					calls int
				}{
					{"a failure", 0, 1}, {"is not kept", 0, 2}, {"an answer is", tt.age - time.Second, 2}, {"for its time", time.Second, 3},
				} {
					time.Sleep(step.wait)
					if err := tt.read(t.Context(), c); (err != nil) != (step.rule == "a failure") {
						t.Fatalf("%s: %v", step.rule, err)
					}
					if len(s.calls) != step.calls {
						t.Errorf("%s: %d calls, want %d", step.rule, len(s.calls), step.calls)
					}
				}
			})
		})
	}
}

// TestCacheSharesCalls holds that callers at the same time make one call, which one's cancellation does not end.
func TestCacheSharesCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: []answer{{hang: true}, flowRunFound}} // answered at the second attempt
		c := newClient(t, s)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		errs := make([]error, 5)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				ctx := t.Context()
				if i == 0 {
					ctx = impatient
				}
				_, errs[i] = c.Flow(ctx, id)
			})
			synctest.Wait() // the impatient one makes the call
		}
		wg.Wait()
		if !errors.Is(errs[0], context.DeadlineExceeded) || errors.Join(errs[1:]...) != nil {
			t.Errorf("errors %v, want a passed deadline first and none else", errs)
		}
		if len(s.calls) != 2 {
			t.Errorf("%d calls, want 2", len(s.calls))
		}
	})
}
