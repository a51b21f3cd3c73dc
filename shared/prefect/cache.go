package prefect

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// cache keeps answers for a while. Callers that ask for the same key at the same time share one
// call; failures are not kept. Its values are shared and must not be changed.
type cache[V any] struct {
	age     time.Duration
	flights singleflight.Group

	mu      sync.Mutex
	entries map[string]entry[V]
}

type entry[V any] struct {
	value V
	until time.Time
}

func newCache[V any](age time.Duration) *cache[V] {
	return &cache[V]{age: age, entries: map[string]entry[V]{}}
}

// get returns the value kept for key, or what read returns. read is not cancelled with ctx,
// because others may wait for it too; it keeps ctx's values, and has a deadline of its own.
func (c *cache[V]) get(ctx context.Context, act, key string, read func(context.Context) (V, error)) (V, error) {
	if v, ok := c.kept(key); ok {
		return v, nil
	}
	result := c.flights.DoChan(key, func() (any, error) {
		if v, ok := c.kept(key); ok { // a flight ended between the look above and here
			return v, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxShared)
		defer cancel()
		asked := time.Now()
		v, err := read(ctx)
		if err == nil {
			c.keep(key, entry[V]{value: v, until: asked.Add(c.age)})
		}
		return v, err
	})
	select {
	case r := <-result:
		v, _ := r.Val.(V)
		return v, r.Err
	case <-ctx.Done():
		var none V
		return none, &flowrun.Error{Act: act, Err: ctx.Err()}
	}
}

// maxShared bounds a call, its repetitions included, that several callers may wait for.
const maxShared = 30 * time.Second

func (c *cache[V]) kept(key string) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	return e.value, ok && time.Now().Before(e.until)
}

func (c *cache[V]) keep(key string, e entry[V]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxCache {
		now := time.Now()
		for k, old := range c.entries {
			if now.After(old.until) || len(c.entries) >= maxCache {
				delete(c.entries, k)
			}
		}
	}
	c.entries[key] = e
}
