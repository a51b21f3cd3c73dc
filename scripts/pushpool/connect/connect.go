// Package connect makes a Prefect server work with an installation: work pools, webhook block, automation.
package connect

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Prefect is what connecting asks of Prefect.
type Prefect interface {
	WorkPool(ctx context.Context, name string) (prefect.WorkPool, error)
	CreateWorkPool(ctx context.Context, name, typ string, template map[string]any) error
	ConnectWebhook(ctx context.Context, w prefect.WebhookSetup, dry bool) ([]prefect.Change, error)
}

// poolType is that of the work pools that are created.
const poolType = "cloud-run-v2"

// Plan says what is to be there.
type Plan struct {
	// Webhook names the work pools, too. Without a URL there is neither block nor automation.
	Webhook prefect.WebhookSetup
	// Template is the base job template of the work pools that are created.
	Template map[string]any
	// ServiceAccount is the one that flows run as; existing work pools that name none are warned of. It may be empty.
	ServiceAccount string
	// Dry changes nothing.
	Dry bool
}

// Result is what was changed, or would be.
type Result struct {
	Changes []prefect.Change `json:"changes"`
	// Warnings are what keeps flow runs from starting at once, or at all.
	Warnings []string `json:"warnings,omitempty"`
}

const withoutWebhook = "WEBHOOK_URL is not set, so Prefect is not made to call a webhook: flow runs that somebody asks for start, and cancellations take effect, " +
	"up to a minute later, when the sweep finds them; scheduled ones start on time. Where the installation has a webhook, write its address (`terraform output webhook_url`)"

// Run carries out the plan. What is as it should be is left alone, so doing it again changes nothing.
func Run(ctx context.Context, p Prefect, plan Plan) (Result, error) {
	var r Result
	for _, name := range plan.Webhook.WorkPools {
		if err := r.pool(ctx, p, name, plan); err != nil {
			return r, err
		}
	}
	if plan.Webhook.URL == "" {
		r.Warnings = append(r.Warnings, withoutWebhook)
		return r, nil
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
		if plan.ServiceAccount != "" && serviceAccount(pool) == "" {
			r.Warnings = append(r.Warnings, fmt.Sprintf("work pool %q names no service account: jobs of deployments that name none run as the default compute identity, which the dispatcher may not act as, so they are not launched; make %s the default of service_account_name in its base job template", name, plan.ServiceAccount))
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
	return p.CreateWorkPool(ctx, name, poolType, plan.Template)
}

// serviceAccount is the default of service_account_name in a work pool's template.
func serviceAccount(pool prefect.WorkPool) string {
	var template struct {
		Variables struct {
			Properties struct {
				Account struct {
					Default string `json:"default"`
				} `json:"service_account_name"`
			} `json:"properties"`
		} `json:"variables"`
	}
	_ = json.Unmarshal(pool.BaseJobTemplate, &template) // what is no template has no service account
	return template.Variables.Properties.Account.Default
}
