package dispatcher

import (
	"cmp"
	"errors"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/jobtemplate"
)

type config struct {
	install.Common
	install.Subscriber
	install.Core

	// Containers may reach Prefect by another address than the functions do.
	ContainerAPIURL string `env:"CONTAINER_PREFECT_API_URL" expect:"the URL of Prefect's API as flows reach it, if it is not PREFECT_API_URL"`
	APIKeySecret    string `env:"CONTAINER_PREFECT_API_KEY_SECRET" expect:"the secret with the API key for flows, SECRET or SECRET:VERSION"`
	AuthSecret      string `env:"CONTAINER_PREFECT_API_AUTH_STRING_SECRET" expect:"the secret with the auth string for flows, SECRET or SECRET:VERSION"`
	DefaultImage    string `env:"DEFAULT_IMAGE" envDefault:"docker.io/prefecthq/prefect:3-latest" expect:"the image of flow runs whose deployment names none"`

	FastStart bool `env:"FAST_START" envDefault:"false" expect:"true or false: whether flows start with python -m prefect.engine where the job variable pushpool_fast_start says nothing"`

	PutBackFor time.Duration `env:"PUT_BACK_FOR" envDefault:"60s" expect:"how long a flow run waits that Cloud Run has no capacity for, such as 60s"`
	EarlyRead  time.Duration `env:"EARLY_READ" envDefault:"30s" expect:"how long a message about an unknown flow run is delivered again, such as 30s"`
}

// Validate returns what is wrong with values that could be read.
func (c config) Validate() error {
	errs := []error{c.Common.Validate(), c.Subscriber.Validate(), c.Core.Validate()}
	if c.APIKey != "" && c.APIKeySecret == "" {
		errs = append(errs, install.Invalid[config]("CONTAINER_PREFECT_API_KEY_SECRET", "not set, although PREFECT_API_KEY is: flows need it too, and never in clear"))
	}
	if c.AuthString != "" && c.AuthSecret == "" {
		errs = append(errs, install.Invalid[config]("CONTAINER_PREFECT_API_AUTH_STRING_SECRET", "not set, although PREFECT_API_AUTH_STRING is: flows need it too, and never in clear"))
	}
	return errors.Join(errs...)
}

// settings are the containers' settings. Secrets are named with a value that
// jobtemplate.Secrets replaces by a reference.
func (c config) settings() []jobtemplate.Setting {
	s := []jobtemplate.Setting{{Name: "PREFECT_API_URL", Value: cmp.Or(c.ContainerAPIURL, c.APIURL)}}
	if c.APIKeySecret != "" {
		s = append(s, jobtemplate.Setting{Name: "PREFECT_API_KEY", Value: "(secret)"})
	}
	if c.AuthSecret != "" {
		s = append(s, jobtemplate.Setting{Name: "PREFECT_API_AUTH_STRING", Value: "(secret)"})
	}
	return s
}

func (c config) secrets() jobtemplate.Secrets {
	return jobtemplate.Secrets{APIKey: secretRef(c.APIKeySecret), AuthString: secretRef(c.AuthSecret)}
}

func secretRef(s string) *jobtemplate.SecretRef {
	if s == "" {
		return nil
	}
	secret, version, _ := strings.Cut(s, ":")
	return &jobtemplate.SecretRef{Secret: secret, Version: cmp.Or(version, "latest")}
}
