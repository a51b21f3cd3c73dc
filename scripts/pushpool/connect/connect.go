// Package connect makes a Prefect server work with an installation: work pools, webhook block, automation.
package connect

import (
	"context"
	"fmt"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Prefect is what connecting asks of Prefect.
type Prefect interface {
	WorkPool(ctx context.Context, name string) (prefect.WorkPool, error)
	WorkerMetadataTemplate(ctx context.Context, workerType string) (map[string]any, error)
	CreateWorkPool(ctx context.Context, name, typ string, template map[string]any) error
	ConnectWebhook(ctx context.Context, w prefect.WebhookSetup, dry bool) ([]prefect.Change, error)
}

// poolType is that of the work pools that are created.
const poolType = "cloud-run-v2"

// Plan says what is to be there.
type Plan struct {
	Webhook prefect.WebhookSetup
	// Defaults are job variables of the work pools that are created, with their defaults.
	Defaults map[string]any
	// Dry changes nothing.
	Dry bool
}

// Result is what was changed, or would be.
type Result struct {
	Changes []prefect.Change `json:"changes"`
	// Warnings are what keeps flow runs from starting at once, or at all.
	Warnings []string `json:"warnings,omitempty"`
}

// Run carries out the plan. What is as it should be is left alone, so doing it again changes nothing.
func Run(ctx context.Context, p Prefect, plan Plan) (Result, error) {
	var r Result
	for _, name := range plan.Webhook.WorkPools {
		if err := r.pool(ctx, p, name, plan); err != nil {
			return r, err
		}
	}
	changes, err := p.ConnectWebhook(ctx, plan.Webhook, plan.Dry)
	r.Changes = append(r.Changes, changes...)
	if flowrun.FaultOf(err) == flowrun.Permanent && err != nil {
		// A server without events: everything works, a minute later.
		r.Warnings = append(r.Warnings, err.Error())
		return r, nil
	}
	return r, err
}

func (r *Result) pool(ctx context.Context, p Prefect, name string, plan Plan) error {
	change := prefect.Change{Object: "work pool " + name, Act: "none"}
	pool, err := p.WorkPool(ctx, name)
	switch {
	case err == nil:
		r.Changes = append(r.Changes, change)
		if pool.Type != poolType && pool.Type != "cloud-run" {
			r.Warnings = append(r.Warnings, fmt.Sprintf("work pool %q is of type %s, which pushpool does not launch; create one of type %s and name it in WORK_POOLS", name, pool.Type, poolType))
		}
		if pool.IsPaused {
			r.Warnings = append(r.Warnings, fmt.Sprintf("work pool %q is paused: nothing of it starts until it is resumed (`prefect work-pool resume %s`)", name, name))
		}
		return nil
	case flowrun.FaultOf(err) != flowrun.NotFound:
		return err
	}
	change.Act = "create"
	r.Changes = append(r.Changes, change)
	if plan.Dry {
		return nil
	}
	template, err := p.WorkerMetadataTemplate(ctx, poolType)
	if err != nil {
		return err
	}
	if err := setDefaults(template, plan.Defaults); err != nil {
		return err
	}
	return p.CreateWorkPool(ctx, name, poolType, template)
}

// setDefaults sets the defaults of a base job template's variables.
func setDefaults(template, defaults map[string]any) error {
	variables, _ := template["variables"].(map[string]any)
	properties, ok := variables["properties"].(map[string]any)
	if !ok {
		return fmt.Errorf("set defaults in the base job template of type %s: it has no variables.properties", poolType)
	}
	for name, value := range defaults {
		property, ok := properties[name].(map[string]any)
		if !ok {
			property = map[string]any{"title": name, "description": "An option of pushpool."}
			properties[name] = property
		}
		property["default"] = value
	}
	return nil
}
