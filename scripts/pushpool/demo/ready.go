package demo

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
)

const (
	// readyFor is how long it is watched, and readyLook how often: Prefect looks itself every 15 s
	// which queues and deployments nobody has asked for.
	readyFor, readyLook = 5 * time.Minute, 5 * time.Second
	// mostReadyCalls bounds what it may cost a minute, for each work pool.
	mostReadyCalls = 3
)

// readyCalls keeps the calls of the functions that reached Prefect.
type readyCalls struct {
	mu    sync.Mutex
	calls []readyCall
}

type readyCall struct {
	at         time.Time
	dispatcher bool
	path       string
}

func (c *readyCalls) add(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, readyCall{time.Now(), strings.Contains(r.UserAgent(), "(dispatcher)"), r.URL.Path})
}

// most returns the most calls that a minute had since a time for showing the pool ready, and
// their paths. While no flow run is due all that the dispatcher asks is for that, and what the
// sweep tells of itself there.
func (c *readyCalls) most(pool string, since time.Time) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var times []time.Time
	var paths, most []string
	for _, call := range c.calls {
		told := strings.HasSuffix(call.path, "/get_scheduled_flow_runs") || strings.HasSuffix(call.path, "/heartbeat")
		if call.at.Before(since) || !strings.Contains(call.path+"/", "/work_pools/"+pool+"/") || !call.dispatcher && !told {
			continue
		}
		times, paths = append(times, call.at), append(paths, call.path)
		for call.at.Sub(times[0]) >= time.Minute {
			times, paths = times[1:], paths[1:]
		}
		if len(paths) > len(most) {
			most = slices.Clone(paths)
		}
	}
	return most
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
	most := d.readyCalls.most(local.WorkPool, start)
	d.say("%d things READY in each of %d looks over %s; for it Prefect had %d calls in the minute that had the most", count, looks, readyFor, len(most))
	if len(most) > mostReadyCalls || len(most) == 0 {
		return figures{}, fmt.Errorf("a minute had %d calls for the work pool, want 1 to %d: %s", len(most), mostReadyCalls, strings.Join(most, ", "))
	}
	return figures{}, nil
}
