package jobtemplate

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// The credentials of Prefect's API that a container can need.
const (
	apiKeyVariable     = "PREFECT_API_KEY"
	authStringVariable = "PREFECT_API_AUTH_STRING"
)

var errInClear = errors.New("it would be readable in clear in the job and in audit logs")

// Secrets are the secrets that hold what containers need to reach Prefect's API. A nil one
// is not configured.
type Secrets struct{ APIKey, AuthString *SecretRef }

// Apply replaces what containers have of these credentials in clear by references to the
// secrets: a job's environment can be read by whoever may see the job, and is in audit
// logs. A credential in clear whose secret is not configured is a Permanent error. Apply
// adds nothing to a container that has no such variable.
func (s Secrets) Apply(r *Rendered) error {
	template, _ := r.Body["template"].(map[string]any)
	task, _ := template["template"].(map[string]any)
	containers, _ := task["containers"].([]any)
	for i := range containers {
		container, _ := containers[i].(map[string]any)
		if err := s.apply(container); err != nil {
			return err
		}
	}
	return nil
}

func (s Secrets) apply(container map[string]any) error {
	env, _ := container["env"].([]any)
	for i := range env {
		entry, _ := env[i].(map[string]any)
		name, _ := entry["name"].(string)
		ref, jobVariable := s.APIKey, "prefect_api_key_secret"
		switch strings.ToUpper(name) { // Prefect reads its settings in either case
		case apiKeyVariable:
		case authStringVariable:
			ref, jobVariable = s.AuthString, "prefect_api_auth_string_secret"
		default:
			continue
		}
		if v := entry["value"]; v == nil || v == "" {
			continue
		}
		if ref == nil {
			return &flowrun.Error{
				Fault: flowrun.Permanent, Act: fmt.Sprintf("put %s into the job", name),
				Err:  errInClear,
				Hint: "configure its secret for this installation, or set the job variable " + jobVariable,
			}
		}
		version := ref.Version
		if version == "" {
			version = "latest"
		}
		env[i] = map[string]any{
			"name":        name,
			"valueSource": map[string]any{"secretKeyRef": map[string]any{"secret": ref.Secret, "version": version}},
		}
	}
	return nil
}
