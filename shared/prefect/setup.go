package prefect

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Version returns the server's version, such as 3.8.8. Prefect Cloud tells none.
func (c *Client) Version(ctx context.Context) (version string, cloud bool, err error) {
	if c.base.Hostname() == "api.prefect.cloud" {
		// Any call shows whether the workspace can be reached.
		_, err = c.do(ctx, request{act: "ask Prefect Cloud whether it is there", method: http.MethodGet, path: "/health"}, nil)
		return "", true, err
	}
	_, err = c.do(ctx, request{act: "ask the Prefect server for its version", method: http.MethodGet, path: "/admin/version"}, &version)
	return version, false, err
}

// CreateWorkPool creates a work pool of a type such as cloud-run-v2. One of that name that exists
// stays as it is. Names that begin with "prefect" are Prefect's own (Refused).
func (c *Client) CreateWorkPool(ctx context.Context, name, typ string, template map[string]any) error {
	body := map[string]any{"name": name, "type": typ}
	if template != nil {
		body["base_job_template"] = template
	}
	status, err := c.do(ctx, request{act: "create work pool " + name, method: http.MethodPost, path: "/work_pools/", body: body}, nil)
	if status == http.StatusConflict {
		return nil
	}
	return err
}

// SetWorkPoolPaused pauses a work pool, which keeps its flow runs from starting, or resumes it.
func (c *Client) SetWorkPoolPaused(ctx context.Context, name string, paused bool) error {
	_, err := c.do(ctx, request{
		act: "pause or resume work pool " + name, method: http.MethodPatch, path: poolPath(name), body: map[string]any{"is_paused": paused},
	}, nil)
	return err
}

// WorkerMetadataTemplate returns the base job template that Prefect's user interface gives to a new
// work pool of the type; a copy that only the caller has.
func (c *Client) WorkerMetadataTemplate(ctx context.Context, workerType string) (map[string]any, error) {
	r := request{act: "read the base job template of type " + workerType, method: http.MethodGet, path: "/collections/views/aggregate-worker-metadata"}
	var view map[string]map[string]struct {
		Template map[string]any `json:"default_base_job_configuration"`
	}
	if _, err := c.do(ctx, r, &view); err != nil {
		return nil, err
	}
	for _, collection := range view {
		if worker, ok := collection[workerType]; ok && worker.Template != nil {
			return worker.Template, nil
		}
	}
	return nil, &flowrun.Error{
		Fault: flowrun.NotFound, Act: r.act, Hint: "write a type that the server's collections have, such as cloud-run-v2",
		Err: errors.New("the server has none"),
	}
}

// Artifact is what a flow run left for people to read.
type Artifact struct {
	Key string `json:"key"`
	// Type is markdown, table, link, progress, image or result.
	Type string `json:"type"`
	// Data is a string for markdown. Numbers are json.Number.
	Data    any       `json:"data"`
	Created time.Time `json:"created"`
}

// Logs returns the lines of a flow run's log, oldest first, MaxPage at most.
func (c *Client) Logs(ctx context.Context, flowRunID string) ([]LogLine, error) {
	r, err := byID("read the log of flow run "+flowRunID, "logs", flowRunID)
	if err != nil {
		return nil, err
	}
	r.method, r.path = http.MethodPost, "/logs/filter"
	r.body = map[string]any{"logs": map[string]any{"flow_run_id": anyOf([]string{flowRunID})}, "sort": "TIMESTAMP_ASC", "limit": MaxPage}
	var found []struct {
		Timestamp time.Time `json:"timestamp"`
		Level     int       `json:"level"`
		Message   string    `json:"message"`
	}
	_, err = c.do(ctx, r, &found)
	lines := make([]LogLine, len(found))
	for i, l := range found {
		lines[i] = LogLine{Time: l.Timestamp, Level: l.Level, Message: l.Message}
	}
	return lines, err
}

// Artifacts returns the artifacts of a flow run, oldest first, MaxPage at most.
func (c *Client) Artifacts(ctx context.Context, flowRunID string) ([]Artifact, error) {
	r, err := byID("list the artifacts of flow run "+flowRunID, "artifacts", flowRunID)
	if err != nil {
		return nil, err
	}
	r.method, r.path = http.MethodPost, "/artifacts/filter"
	r.body = map[string]any{"artifacts": map[string]any{"flow_run_id": anyOf([]string{flowRunID})}, "limit": MaxPage}
	var found []Artifact
	_, err = c.do(ctx, r, &found)
	slices.SortStableFunc(found, func(a, b Artifact) int { return a.Created.Compare(b.Created) })
	return found, err
}
