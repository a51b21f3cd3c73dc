package connect

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	prefectconnection "github.com/pushpool/pushpool/terraform/modules/prefect_connection"
)

// Server is what is asked of a server before work pools are made.
type Server interface {
	Version(ctx context.Context) (version string, cloud bool, err error)
	WorkerMetadataTemplate(ctx context.Context, workerType string) (map[string]any, error)
}

// Template returns the base job template of an installation's work pools: the one that the
// Terraform module prefect_connection gives them, which is the worker's and has variables that the
// server's copy lacks. A server of 2.x has its own, as its images are of that version. defaults
// are job variables, and win over the installation's.
func Template(ctx context.Context, s Server, cfg operator.Config, defaults map[string]any) (map[string]any, error) {
	version, _, err := s.Version(ctx)
	if err != nil {
		return nil, err
	}
	var template map[string]any
	if strings.HasPrefix(version, "2.") {
		template, err = s.WorkerMetadataTemplate(ctx, poolType)
	} else {
		err = json.Unmarshal(prefectconnection.BaseJobTemplate, &template)
	}
	if err != nil {
		return nil, err
	}
	wanted := map[string]any{"region": cfg.Regions[0]}
	if cfg.FlowServiceAccount != "" {
		wanted["service_account_name"] = cfg.FlowServiceAccount
	}
	maps.Copy(wanted, defaults)
	if err := setDefaults(template, wanted); err != nil {
		return nil, err
	}
	return template, setNetwork(template, cfg)
}

// setDefaults sets the defaults of a base job template's variables.
func setDefaults(template, defaults map[string]any) error {
	properties, ok := at(template, "variables", "properties")
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

// setNetwork puts Direct VPC egress where Prefect's template has a connector.
func setNetwork(template map[string]any, cfg operator.Config) error {
	if cfg.FlowNetwork == "" {
		return nil
	}
	task, ok := at(template, "job_configuration", "job_body", "template", "template")
	if !ok {
		return fmt.Errorf("set FLOW_NETWORK in the base job template of type %s: it has no job_configuration.job_body.template.template", poolType)
	}
	task["vpcAccess"] = map[string]any{
		"egress": "PRIVATE_RANGES_ONLY",
		"networkInterfaces": []any{map[string]any{
			"network": cfg.FlowNetwork, "subnetwork": cfg.FlowSubnetwork, "tags": append([]string{}, cfg.FlowNetworkTags...),
		}},
	}
	return nil
}

func at(object map[string]any, path ...string) (map[string]any, bool) {
	for _, name := range path {
		next, ok := object[name].(map[string]any)
		if !ok {
			return nil, false
		}
		object = next
	}
	return object, true
}
