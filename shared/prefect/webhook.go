package prefect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

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

// WebhookSetup says whom Prefect tells about the flow runs of which work pools.
type WebhookSetup struct {
	// BlockName is that of the webhook block: lower-case letters, digits and dashes.
	BlockName string
	// AutomationName is the automation's; one is looked for by it.
	AutomationName string
	// URL is called with every event, and Secret sent as a bearer token. An empty secret is neither
	// sent nor compared.
	URL, Secret string
	WorkPools   []string // names
}

// Change is what making Prefect call a URL changes, or would change.
type Change struct {
	// Object is what is changed: "webhook block pushpool".
	Object string `json:"object"`
	// Act is what is done to it: create, update, or none where it is as it should be.
	Act string `json:"act"`
	// Fields are the names of those that an update changes; never values, which may be secret.
	Fields []string `json:"fields,omitempty"`
	// Note says what a person should know of it.
	Note string `json:"note,omitempty"`
}

// EnsureWebhook makes Prefect call a URL whenever a flow run of the work pools has to be started or
// stopped, or has ended: it creates a webhook block and an automation, or makes those of that name
// so. An automation that somebody disabled stays disabled.
func (c *Client) EnsureWebhook(ctx context.Context, w WebhookSetup) error {
	_, err := c.ConnectWebhook(ctx, w, false)
	return err
}

// ConnectWebhook is EnsureWebhook that tells what it changes. With dry it changes nothing.
func (c *Client) ConnectWebhook(ctx context.Context, w WebhookSetup, dry bool) ([]Change, error) {
	const act = "set up the webhook"
	if len(w.WorkPools) == 0 {
		return nil, &flowrun.Error{Fault: flowrun.Permanent, Act: act, Err: errors.New("there is no work pool to watch")}
	}
	for _, pool := range w.WorkPools {
		if strings.HasPrefix(pool, "!") || strings.Contains(pool, "*") {
			return nil, &flowrun.Error{
				Fault: flowrun.Permanent, Act: act, Hint: "rename the work pool",
				Err: fmt.Errorf("work pool %q: a trigger takes ! and * for patterns", pool),
			}
		}
	}
	block, blockChange, err := c.ensureBlock(ctx, w, dry)
	if err != nil {
		return nil, err
	}
	change := Change{Object: "automation " + w.AutomationName, Act: changeCreate}
	existing, err := c.automations(ctx, w.AutomationName)
	if err != nil {
		return nil, err
	}
	body := w.automation(block)
	r := request{act: "create " + change.Object, method: http.MethodPost, path: "/automations/", body: body, once: true}
	if len(existing) > 0 {
		enabled, _ := existing[0]["enabled"].(bool)
		body["enabled"] = enabled
		if change.Fields, err = differences(body, existing[0]); err != nil {
			return nil, err
		}
		change.Act = changeUpdate
		if len(change.Fields) == 0 {
			change.Act = changeNone
		}
		if !enabled {
			change.Note = "it is switched off and stays so: nothing is told until somebody switches it on"
		}
		r.act, r.method, r.path = "update "+change.Object, http.MethodPut, fmt.Sprintf("/automations/%v", existing[0]["id"])
	}
	if !dry && change.Act != changeNone {
		_, err = c.do(ctx, r, nil)
	}
	return []Change{blockChange, change}, err
}

// What a Change does.
const (
	changeCreate = "create"
	changeUpdate = "update"
	changeNone   = "none"
)

// differences returns the names of the fields at the top of want that have is not like. What
// have has beside them does not count: servers add fields of their own, at every depth.
func differences(want, have map[string]any) ([]string, error) {
	data, err := json.Marshal(want)
	if err != nil {
		return nil, err
	}
	var plain map[string]any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&plain); err != nil {
		return nil, err
	}
	var fields []string
	for _, name := range slices.Sorted(maps.Keys(plain)) {
		if !contains(have[name], plain[name]) {
			fields = append(fields, name)
		}
	}
	return fields, nil
}

// contains reports whether have has what want has, and perhaps more. A server may show a
// single value as a list of one.
func contains(have, want any) bool {
	if list, ok := have.([]any); ok && len(list) == 1 {
		if _, both := want.([]any); !both {
			have = list[0]
		}
	}
	switch want := want.(type) {
	case map[string]any:
		have, ok := have.(map[string]any)
		for name, value := range want {
			ok = ok && contains(have[name], value)
		}
		return ok
	case []any:
		have, ok := have.([]any)
		if !ok || len(have) != len(want) {
			return false
		}
		for _, value := range want { // sets, as servers take them for
			if !slices.ContainsFunc(have, func(h any) bool { return contains(h, value) }) {
				return false
			}
		}
		return true
	case json.Number:
		h, ok := have.(json.Number)
		a, aerr := want.Float64()
		b, berr := h.Float64()
		return ok && aerr == nil && berr == nil && a == b
	}
	return reflect.DeepEqual(have, want)
}

func (w WebhookSetup) automation(blockID string) map[string]any {
	return map[string]any{
		"name": w.AutomationName, "description": "Tells " + w.AutomationName + " about flow runs.", "enabled": true,
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

// ensureBlock returns the id of the webhook block, empty where it is yet to be created.
func (c *Client) ensureBlock(ctx context.Context, w WebhookSetup, dry bool) (id string, change Change, err error) {
	change = Change{Object: "webhook block " + w.BlockName, Act: changeCreate}
	act := "set up " + change.Object
	get := func(path string, answer any) error {
		_, err := c.do(ctx, request{act: act, method: http.MethodGet, path: path}, answer)
		return err
	}
	var blockType struct{ ID string }
	if err := get("/block_types/slug/webhook", &blockType); err != nil {
		return "", change, err
	}
	var schemas []struct {
		ID     string
		Fields struct{ Properties map[string]any }
	}
	if _, err := c.do(ctx, request{act: act, method: http.MethodPost, path: "/block_schemas/filter", body: map[string]any{
		"block_schemas": map[string]any{"block_type_id": anyOf([]string{blockType.ID})}, "limit": 1, // the newest
	}}, &schemas); err != nil {
		return "", change, err
	}
	if len(schemas) == 0 {
		return "", change, &flowrun.Error{Fault: flowrun.Permanent, Act: act, Err: errors.New("the server has no schema for webhook blocks")}
	}
	headers := map[string]any{"Content-Type": "application/json"}
	if w.Secret != "" {
		headers["Authorization"] = "Bearer " + w.Secret
	}
	data := map[string]any{"method": http.MethodPost, "url": w.URL, "allow_private_urls": true, "verify": true, "headers": headers}
	for field := range data {
		if _, ok := schemas[0].Fields.Properties[field]; !ok {
			delete(data, field) // 2.20 has no verify
		}
	}
	var existing BlockDocument
	err = get("/block_types/slug/webhook/block_documents/name/"+w.BlockName+"?include_secrets=true", &existing)
	switch {
	case err != nil && flowrun.FaultOf(err) != flowrun.NotFound:
		return "", change, err
	case err != nil && dry:
		return "", change, nil
	case err != nil:
		_, err = c.do(ctx, request{act: act, method: http.MethodPost, path: "/block_documents/", body: map[string]any{
			"name": w.BlockName, "block_type_id": blockType.ID, "block_schema_id": schemas[0].ID, "is_anonymous": false, "data": data,
		}}, &existing)
		return existing.ID, change, err
	}
	change.Act = changeUpdate
	var have map[string]any
	if err := json.Unmarshal(existing.Data, &have); err == nil {
		if change.Fields, err = differences(data, have); err != nil {
			return "", change, err
		}
		if len(change.Fields) == 0 && len(have) == len(data) {
			change.Act = changeNone
		}
	}
	if dry || change.Act == changeNone {
		return existing.ID, change, nil
	}
	_, err = c.do(ctx, request{
		act: act, method: http.MethodPatch, path: "/block_documents/" + existing.ID,
		body: map[string]any{"data": data, "merge_existing_data": false},
	}, nil)
	return existing.ID, change, err
}

// automations returns those of a name, of which there may be several.
func (c *Client) automations(ctx context.Context, name string) ([]map[string]any, error) {
	var found []map[string]any
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
			act: act, method: http.MethodPatch, path: fmt.Sprintf("/automations/%v", a["id"]), body: map[string]any{"enabled": enabled},
		}, nil); err != nil {
			return err
		}
	}
	return nil
}
