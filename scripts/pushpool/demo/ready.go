package demo

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
)

const (
	// readyFor is how long it is watched, and readyLook how often: Prefect looks itself every 15 s
	// which queues and deployments nobody has asked for.
	readyFor, readyLook = 5 * time.Minute, 5 * time.Second
	// mostReadyCalls bounds what it may cost a minute.
	mostReadyCalls = 3
)

// readyCalls counts what the functions ask of Prefect.
type readyCalls struct {
	mu         sync.Mutex
	ready, all int
}

func (c *readyCalls) add(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all++
	if strings.HasSuffix(r.URL.Path, "/get_scheduled_flow_runs") || strings.HasSuffix(r.URL.Path, "/heartbeat") {
		c.ready++
	}
}

// staysReady watches what Prefect shows of the work pool, its queues and its deployments.
func staysReady(ctx context.Context, d *demo) (figures, error) {
	if d.SweepEvery != time.Minute {
		return figures{}, fmt.Errorf("the sweeps are %s apart, and a minute when deployed: what is shown here depends on it; write --sweep 1m", d.SweepEvery)
	}
	shows := func(ctx context.Context) (map[string]string, error) {
		pool, err := d.Prefect.WorkPool(ctx, local.WorkPool)
		if err != nil {
			return nil, err
		}
		all := map[string]string{"work pool " + pool.Name: pool.Status}
		queues, err := d.Prefect.WorkQueues(ctx, local.WorkPool)
		if err != nil {
			return nil, err
		}
		for _, q := range queues {
			all["work queue "+q.Name] = q.Status
		}
		deployments, err := d.Prefect.Deployments(ctx, local.WorkPool)
		for _, dep := range deployments {
			all["deployment "+dep.Name] = dep.Status
		}
		return all, err
	}
	ready := func(ctx context.Context) (notReady string, count int, err error) {
		all, err := shows(ctx)
		for what, status := range all {
			if status != "READY" {
				notReady = what + " is " + status
			}
		}
		return notReady, len(all), err
	}
	err := until(ctx, "everything is READY", func(ctx context.Context) (bool, error) {
		notReady, _, err := ready(ctx)
		return notReady == "", err
	})
	if err != nil {
		return figures{}, err
	}
	d.readyCalls.mu.Lock()
	d.readyCalls.ready, d.readyCalls.all = 0, 0
	d.readyCalls.mu.Unlock()
	start, looks, count := time.Now(), 0, 0
	for tick := time.NewTicker(readyLook); time.Since(start) < readyFor; looks++ {
		var notReady string
		notReady, count, err = ready(ctx)
		if err != nil || notReady != "" {
			return figures{}, fmt.Errorf("%s after everything was READY: %s (%w)", time.Since(start).Round(time.Second), notReady, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return figures{}, ctx.Err()
		}
	}
	d.readyCalls.mu.Lock()
	defer d.readyCalls.mu.Unlock()
	minutes := readyFor.Minutes()
	perMinute := float64(d.readyCalls.ready) / minutes
	d.say("%d things READY in each of %d looks over %s; %.1f calls a minute for it, of %.1f calls in all", count, looks, readyFor, perMinute, float64(d.readyCalls.all)/minutes)
	if perMinute > mostReadyCalls {
		return figures{}, fmt.Errorf("it takes %.1f calls a minute, more than %d", perMinute, mostReadyCalls)
	}
	return figures{}, nil
}
