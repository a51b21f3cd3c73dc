package prefect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Deployment is a deployment as Prefect gives it. Numbers in its maps are json.Number.
type Deployment struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	FlowID        string `json:"flow_id"`
	Paused        bool   `json:"paused"`
	Status        string `json:"status"` // READY or NOT_READY
	WorkPoolName  string `json:"work_pool_name"`
	WorkQueueName string `json:"work_queue_name"`
	// JobVariables are what a server of 2.20 calls infra_overrides.
	JobVariables json.RawMessage `json:"job_variables"`
	Parameters   map[string]any  `json:"parameters"`
	Tags         []string        `json:"tags"`
	Entrypoint   string          `json:"entrypoint"`
	Path         string          `json:"path"`
	Version      string          `json:"version"`
	// ConcurrencyLimit is deprecated by Prefect and set together with GlobalConcurrencyLimit; see Limited.
	ConcurrencyLimit       *int `json:"concurrency_limit"`
	GlobalConcurrencyLimit *struct {
		Limit       int `json:"limit"`
		ActiveSlots int `json:"active_slots"`
	} `json:"global_concurrency_limit"`
	ConcurrencyOptions *struct {
		CollisionStrategy string `json:"collision_strategy"`
	} `json:"concurrency_options"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
}

// Limited reports whether the deployment has a concurrency limit, which Prefect enforces when
// PENDING is proposed.
func (d Deployment) Limited() bool {
	return d.ConcurrencyLimit != nil || d.GlobalConcurrencyLimit != nil
}

// CancelsNew reports whether a flow run that finds no slot is cancelled, and does not wait.
func (d Deployment) CancelsNew() bool {
	return d.ConcurrencyOptions != nil && d.ConcurrencyOptions.CollisionStrategy == "CANCEL_NEW"
}

// deploymentAnswer also takes the field's name of 2.20.
type deploymentAnswer struct {
	Deployment
	InfraOverrides json.RawMessage `json:"infra_overrides"`
}

// Deployment reads a deployment.
func (c *Client) Deployment(ctx context.Context, id string) (Deployment, error) {
	r, err := byID("read deployment "+id, "deployments", id)
	if err != nil {
		return Deployment{}, err
	}
	return c.deployment(ctx, r)
}

// FindDeployment reads a deployment by its id, or by a name "FLOW/DEPLOYMENT".
func (c *Client) FindDeployment(ctx context.Context, nameOrID string) (Deployment, error) {
	if uuid.Validate(nameOrID) == nil {
		return c.Deployment(ctx, nameOrID)
	}
	return c.DeploymentByName(ctx, nameOrID)
}

// DeploymentByName reads the deployment of a name "FLOW/DEPLOYMENT".
func (c *Client) DeploymentByName(ctx context.Context, name string) (Deployment, error) {
	act := "read deployment " + name
	flow, deployment, ok := strings.Cut(name, "/")
	if !ok || flow == "" || deployment == "" {
		return Deployment{}, &flowrun.Error{
			Fault: flowrun.Permanent, Act: act, Hint: `write "FLOW/DEPLOYMENT"`, Err: errors.New("this is no name of a deployment"),
		}
	}
	return c.deployment(ctx, request{act: act, method: http.MethodGet, path: "/deployments/name/" + url.PathEscape(flow) + "/" + url.PathEscape(deployment)})
}

func (c *Client) deployment(ctx context.Context, r request) (Deployment, error) {
	var a deploymentAnswer
	_, err := c.do(ctx, r, &a)
	return a.whole(), err
}

func (a deploymentAnswer) whole() Deployment {
	if a.JobVariables == nil {
		a.JobVariables = a.InfraOverrides
	}
	return a.Deployment
}

// Flow is a flow as Prefect gives it.
type Flow struct {
	ID      string         `json:"id"`
	Name    string         `json:"name"`
	Tags    []string       `json:"tags"`
	Labels  map[string]any `json:"labels"` // 3.x
	Created time.Time      `json:"created"`
	Updated time.Time      `json:"updated"`
}

// Flow reads a flow. The answer may be 10 minutes old, is shared, and must not be changed.
func (c *Client) Flow(ctx context.Context, id string) (Flow, error) {
	r, err := byID("read flow "+id, "flows", id)
	if err != nil {
		return Flow{}, err
	}
	return cached[Flow](ctx, c, c.flows, id, r)
}

// WorkPool is a work pool as Prefect gives it. BaseJobTemplate is kept as JSON: the order of its
// keys shows in some jobs.
type WorkPool struct {
	ID              string          `json:"id"`
	Name            string          `json:"name"`
	Type            string          `json:"type"`
	BaseJobTemplate json.RawMessage `json:"base_job_template"`
	IsPaused        bool            `json:"is_paused"`
	// ConcurrencyLimit is nil where there is none.
	ConcurrencyLimit *int `json:"concurrency_limit"`
	// ActiveSlots are taken by flow runs PENDING or RUNNING; nil where there is no limit.
	ActiveSlots *int `json:"active_slots"`
	// Status is READY, NOT_READY or PAUSED.
	Status         string    `json:"status"`
	DefaultQueueID string    `json:"default_queue_id"`
	Created        time.Time `json:"created"`
	Updated        time.Time `json:"updated"`
}

// WorkPool reads a work pool. The answer may be 10 s old, is shared, and must not be changed.
func (c *Client) WorkPool(ctx context.Context, name string) (WorkPool, error) {
	return cached[WorkPool](ctx, c, c.pools, name, readPool(name))
}

// WorkQueue is a queue of a work pool.
type WorkQueue struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Priority: 1 is the highest.
	Priority int  `json:"priority"`
	IsPaused bool `json:"is_paused"`
	// ConcurrencyLimit is nil where there is none.
	ConcurrencyLimit *int `json:"concurrency_limit"`
	// ActiveSlots are taken by flow runs PENDING or RUNNING; nil where there is no limit.
	ActiveSlots *int `json:"active_slots"`
	// Status is READY, NOT_READY or PAUSED.
	Status     string     `json:"status"`
	LastPolled *time.Time `json:"last_polled"`
}

// WorkQueues returns the queues of a work pool. The answer may be 10 s old, is shared, and must
// not be changed.
func (c *Client) WorkQueues(ctx context.Context, pool string) ([]WorkQueue, error) {
	return c.queues.get(ctx, "list the queues of work pool "+pool, pool, func(ctx context.Context) ([]WorkQueue, error) {
		return c.workQueues(ctx, pool)
	})
}

func (c *Client) workQueues(ctx context.Context, pool string) ([]WorkQueue, error) {
	r := request{act: "list the queues of work pool " + pool, method: http.MethodPost, path: poolPath(pool) + "/queues/filter"}
	return pages[WorkQueue](ctx, c, r, map[string]any{})
}

// maxPages bounds a list, so that a server which ignores the offset is not asked for ever.
const maxPages = 100

// pages returns all that a filter finds, page by page.
func pages[V any](ctx context.Context, c *Client, r request, filter map[string]any) ([]V, error) {
	var all []V
	for range maxPages {
		filter["limit"], filter["offset"] = MaxPage, len(all)
		r.body = filter
		var page []V
		if _, err := c.do(ctx, r, &page); err != nil {
			return nil, err
		}
		if all = append(all, page...); len(page) < MaxPage {
			return all, nil
		}
	}
	return nil, &flowrun.Error{Fault: flowrun.Permanent, Act: r.act, Err: fmt.Errorf("there are more than %d", maxPages*MaxPage)}
}

// Heartbeat tells Prefect that a worker of that name serves the work pool, which makes the pool
// READY. Prefect holds the worker for online until three times the interval passed.
func (c *Client) Heartbeat(ctx context.Context, pool, workerName string, every time.Duration) error {
	_, err := c.do(ctx, request{
		act: "send a heartbeat to work pool " + pool, method: http.MethodPost, path: poolPath(pool) + "/workers/heartbeat",
		body: map[string]any{"name": workerName, "heartbeat_interval_seconds": int(max(1, every.Seconds()))},
	}, nil)
	return err
}

func readPool(name string) request {
	return request{act: "read work pool " + name, method: http.MethodGet, path: poolPath(name)}
}

// RenewLease holds a concurrency lease, the slot of a deployment's limit for one, for that
// long from now: 60 s to a day. Fault NotFound where the lease is lost. Servers since 3.4 have it.
func (c *Client) RenewLease(ctx context.Context, id string, lease time.Duration) error {
	r, err := byID("renew concurrency lease "+id, "v2/concurrency_limits/leases", id)
	if err != nil {
		return err
	}
	r.method, r.path = http.MethodPost, r.path+"/renew"
	r.body = map[string]any{"lease_duration": lease.Seconds()}
	_, err = c.do(ctx, r, nil)
	return err
}

func poolPath(name string) string { return "/work_pools/" + url.PathEscape(name) }

// BlockDocument is a block document with its secrets.
type BlockDocument struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Data      json.RawMessage `json:"data"`
	BlockType struct {
		Slug string `json:"slug"`
	} `json:"block_type"`
}

// BlockDocument reads a block document by the slug of its type and its name. The answer may be
// 10 s old, is shared, and must not be changed.
func (c *Client) BlockDocument(ctx context.Context, typeSlug, name string) (BlockDocument, error) {
	key := url.PathEscape(typeSlug) + "/block_documents/name/" + url.PathEscape(name)
	return cached[BlockDocument](ctx, c, c.blocks, key, request{
		act: "read block document " + typeSlug + "/" + name, method: http.MethodGet,
		path: "/block_types/slug/" + key + "?include_secrets=true",
	})
}

// BlockDocumentByID reads a block document by its id, as BlockDocument does.
func (c *Client) BlockDocumentByID(ctx context.Context, id string) (BlockDocument, error) {
	r, err := byID("read block document "+id, "block_documents", id)
	if err != nil {
		return BlockDocument{}, err
	}
	r.path += "?include_secrets=true"
	return cached[BlockDocument](ctx, c, c.blocks, id, r)
}

type variable struct {
	Value json.RawMessage `json:"value"`
	found bool
}

// Variable reads a variable: any JSON value (of 2.20: a string). The answer may be 10 s old, is
// shared, and must not be changed.
func (c *Client) Variable(ctx context.Context, name string) (value json.RawMessage, found bool, err error) {
	r := request{act: "read variable " + name, method: http.MethodGet, path: "/variables/name/" + url.PathEscape(name)}
	v, err := c.variables.get(ctx, r.act, name, func(ctx context.Context) (v variable, err error) {
		_, err = c.do(ctx, r, &v)
		v.found = err == nil
		if err != nil && flowrun.FaultOf(err) == flowrun.NotFound {
			err = nil
		}
		return v, err
	})
	return v.Value, v.found, err
}

// cached makes a call whose answer is kept under key.
func cached[V any](ctx context.Context, c *Client, in *cache[V], key string, r request) (V, error) {
	return in.get(ctx, r.act, key, func(ctx context.Context) (v V, err error) {
		_, err = c.do(ctx, r, &v)
		return v, err
	})
}
