package webhook

import (
	"errors"
	"strings"

	"github.com/pushpool/pushpool/shared/install"
)

// minSecret is the shortest secret that is taken: 16 random bytes in base64.
const minSecret = 22

type config struct {
	install.Common
	Secrets install.Secret `env:"WEBHOOK_SECRETS,notEmpty" expect:"the secrets that Prefect may send, of 22 characters or more, separated by commas; several while one is replaced"`
}

func (c config) secrets() []string { return strings.Split(string(c.Secrets), ",") }

// Validate returns what is wrong with values that could be read.
func (c config) Validate() error {
	errs := []error{c.Common.Validate()}
	for _, s := range c.secrets() {
		if len(s) < minSecret || strings.TrimSpace(s) != s {
			errs = append(errs, install.Invalid[config]("WEBHOOK_SECRETS", "one of them is too short, or has space around it"))
		}
	}
	return errors.Join(errs...)
}
