package webhook

import (
	"net/http"

	"github.com/pushpool/pushpool/shared/install"
)

// New returns the function. The error names everything that is wrong with its configuration.
func New(s install.Surroundings) (http.Handler, error) {
	cfg, err := install.Parse[config](s.Environ)
	if err != nil {
		return nil, err
	}
	return newWebhook(install.NewTopic(s, cfg.Common, cfg.FlowRuns), cfg.secrets(), s.Logger(cfg.Common)), nil
}
