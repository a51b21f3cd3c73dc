package prefect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// webhookBody is the body that an automation sends. It can be rendered by servers of every
// version: one before 3.4.2 sends it as a JSON string, and one before 3.7.1 cannot make JSON of a
// whole event. Names of states may contain quotes, hence the filters.
const webhookBody = `{"id":"{{ event.id }}","event":{{ event.event | tojson }},"occurred":"{{ event.occurred.isoformat() }}",` +
	`"flow_run":"{{ event.resource.id }}","state_type":"{{ event.resource['prefect.state-type'] }}",` +
	`"state_name":{{ event.resource['prefect.state-name'] | tojson }} }`

// webhookStates are the types of states that are told: those that ask for a launch, for its end,
// and those after which a limit may have a free slot.
var webhookStates = []StateType{
	flowrun.StateScheduled, flowrun.StateCancelling,
	flowrun.StateCompleted, flowrun.StateFailed, flowrun.StateCrashed, flowrun.StateCancelled,
}

const noAutomations = "a server of 2.20 has automations if it is started with PREFECT_EXPERIMENTAL_EVENTS=true; without them flow runs still start, after up to a minute"

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

// WebhookSetup says whom Prefect tells about the flow runs of which work pools.
type WebhookSetup struct {
	// BlockName is that of the webhook block: lower-case letters, digits and dashes.
	BlockName string
	// AutomationName is the automation's; one is looked for by it.
	AutomationName string
	// URL is called with every event, and Secret sent as a bearer token.
	URL, Secret string
	WorkPools   []string // names
}

// EnsureWebhook makes Prefect call a URL whenever a flow run of the work pools has to be started or
// stopped, or has ended: it creates a webhook block and an automation, or makes those of that name
// so. An automation that somebody disabled stays disabled.
func (c *Client) EnsureWebhook(ctx context.Context, w WebhookSetup) error {
	const act = "set up the webhook"
	if len(w.WorkPools) == 0 {
		return &flowrun.Error{Fault: flowrun.Permanent, Act: act, Err: errors.New("there is no work pool to watch")}
	}
	for _, pool := range w.WorkPools {
		if strings.HasPrefix(pool, "!") || strings.Contains(pool, "*") {
			return &flowrun.Error{
				Fault: flowrun.Permanent, Act: act, Hint: "rename the work pool",
				Err: fmt.Errorf("work pool %q: a trigger takes ! and * for patterns", pool),
			}
		}
	}
	block, err := c.ensureBlock(ctx, w)
	if err != nil {
		return err
	}
	existing, err := c.automations(ctx, w.AutomationName)
	if err != nil {
		return err
	}
	body := w.automation(block)
	r := request{act: "create automation " + w.AutomationName, method: http.MethodPost, path: "/automations/", body: body, once: true}
	if len(existing) > 0 {
		body["enabled"] = existing[0].Enabled
		r.act, r.method, r.path = "update automation "+w.AutomationName, http.MethodPut, "/automations/"+existing[0].ID
	}
	_, err = c.do(ctx, r, nil)
	return err
}

func (w WebhookSetup) automation(blockID string) map[string]any {
	return map[string]any{
		"name": w.AutomationName, "description": "Tells pushpool about flow runs.", "enabled": true,
		"trigger": map[string]any{
			"type": "event", "posture": "Reactive",
			// By type, since a state may have any name.
			"match":         map[string]any{"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": webhookStates},
			"match_related": map[string]any{"prefect.resource.role": "work-pool", "prefect.resource.name": w.WorkPools},
			"expect":        []string{"prefect.flow-run.*"}, "after": []string{}, "for_each": []string{"prefect.resource.id"},
			"threshold": 1, "within": 0,
		},
		"actions":            []any{map[string]any{"type": "call-webhook", "block_document_id": blockID, "payload": webhookBody}},
		"actions_on_trigger": []any{}, "actions_on_resolve": []any{},
	}
}

// ensureBlock returns the id of the webhook block.
func (c *Client) ensureBlock(ctx context.Context, w WebhookSetup) (string, error) {
	act := "set up webhook block " + w.BlockName
	get := func(path string, answer any) error {
		_, err := c.do(ctx, request{act: act, method: http.MethodGet, path: path}, answer)
		return err
	}
	var blockType struct{ ID string }
	if err := get("/block_types/slug/webhook", &blockType); err != nil {
		return "", err
	}
	var schemas []struct {
		ID     string
		Fields struct{ Properties map[string]any }
	}
	if _, err := c.do(ctx, request{act: act, method: http.MethodPost, path: "/block_schemas/filter", body: map[string]any{
		"block_schemas": map[string]any{"block_type_id": anyOf([]string{blockType.ID})}, "limit": 1, // the newest
	}}, &schemas); err != nil {
		return "", err
	}
	if len(schemas) == 0 {
		return "", &flowrun.Error{Fault: flowrun.Permanent, Act: act, Err: errors.New("the server has no schema for webhook blocks")}
	}
	data := map[string]any{
		"method": http.MethodPost, "url": w.URL, "allow_private_urls": true, "verify": true,
		"headers": map[string]any{"Content-Type": "application/json", "Authorization": "Bearer " + w.Secret},
	}
	for field := range data {
		if _, ok := schemas[0].Fields.Properties[field]; !ok {
			delete(data, field) // 2.20 has no verify
		}
	}
	created := BlockDocument{}
	status, err := c.do(ctx, request{act: act, method: http.MethodPost, path: "/block_documents/", body: map[string]any{
		"name": w.BlockName, "block_type_id": blockType.ID, "block_schema_id": schemas[0].ID, "is_anonymous": false, "data": data,
	}}, &created)
	if status != http.StatusConflict {
		return created.ID, err
	}
	var existing BlockDocument
	if err := get("/block_types/slug/webhook/block_documents/name/"+w.BlockName+"?include_secrets=true", &existing); err != nil {
		return "", err
	}
	var have map[string]any
	if err := json.Unmarshal(existing.Data, &have); err == nil && reflect.DeepEqual(have, data) {
		return existing.ID, nil
	}
	_, err = c.do(ctx, request{
		act: act, method: http.MethodPatch, path: "/block_documents/" + existing.ID,
		body: map[string]any{"data": data, "merge_existing_data": false},
	}, nil)
	return existing.ID, err
}

type automation struct {
	ID      string `json:"id"`
	Enabled bool   `json:"enabled"`
}

// automations returns those of a name, of which there may be several.
func (c *Client) automations(ctx context.Context, name string) ([]automation, error) {
	var found []automation
	_, err := c.do(ctx, request{
		act: "look for automation " + name, method: http.MethodPost, path: "/automations/filter",
		body: map[string]any{"automations": map[string]any{"name": anyOf([]string{name})}},
	}, &found)
	var f *flowrun.Error
	if errors.As(err, &f) && f.Fault == flowrun.NotFound {
		f.Fault, f.Hint = flowrun.Permanent, noAutomations
	}
	return found, err
}

// SetAutomationEnabled switches the automations of that name on or off.
func (c *Client) SetAutomationEnabled(ctx context.Context, name string, enabled bool) error {
	found, err := c.automations(ctx, name)
	if err != nil {
		return err
	}
	act := "switch automation " + name
	if len(found) == 0 {
		return &flowrun.Error{Fault: flowrun.NotFound, Act: act, Err: errors.New("there is none of that name")}
	}
	for _, a := range found {
		if _, err := c.do(ctx, request{
			act: act, method: http.MethodPatch, path: "/automations/" + a.ID, body: map[string]any{"enabled": enabled},
		}, nil); err != nil {
			return err
		}
	}
	return nil
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
