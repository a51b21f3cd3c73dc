package prefect

import (
	"context"
	"net/http"
)

// CreateArtifact saves an artifact of a flow run. After a broken connection it may be there twice.
func (c *Client) CreateArtifact(ctx context.Context, flowRunID string, a Artifact) error {
	_, err := c.do(ctx, request{
		act: "save artifact " + a.Key + " of flow run " + flowRunID, method: http.MethodPost, path: "/artifacts/",
		body: map[string]any{"key": a.Key, "type": a.Type, "data": a.Data, "flow_run_id": flowRunID},
	}, nil)
	return err
}
