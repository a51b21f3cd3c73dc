package dispatcher

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/launch"
)

type config struct {
	install.Common
	install.Subscriber
	install.Core

	// Containers may reach Prefect by another address than the functions do.
	ContainerAPIURL string `env:"CONTAINER_PREFECT_API_URL" expect:"the URL of Prefect's API as flows reach it, if it is not PREFECT_API_URL"`
	APIKeySecret    string `env:"CONTAINER_PREFECT_API_KEY_SECRET" expect:"the secret with the API key for flows, SECRET or SECRET:VERSION"`
	AuthSecret      string `env:"CONTAINER_PREFECT_API_AUTH_STRING_SECRET" expect:"the secret with the auth string for flows, SECRET or SECRET:VERSION"`
	// Nobody has the environment of a worker, and the functions' own is none of a flow's business.
	TemplateEnvironment map[string]string `env:"TEMPLATE_ENVIRONMENT" expect:"a JSON object of names and values: what {{ $NAME }} in a base job template stands for, as the worker's own environment does; flows can read it"`

	DefaultImage string `env:"DEFAULT_IMAGE" envDefault:"docker.io/prefecthq/prefect:3-latest" expect:"the image of flow runs whose deployment names none"`

	FastStart bool `env:"FAST_START" envDefault:"false" expect:"true or false: whether flows start with python -m prefect.engine where the job variable pushpool_fast_start says nothing"`

	OverflowRegions []string      `env:"OVERFLOW_REGIONS" expect:"which of REGIONS a flow run may be launched in, in their order, when its own has no capacity, separated by commas"`
	CapacityWait    time.Duration `env:"CAPACITY_WAIT" envDefault:"24h" expect:"how long in all a flow run may wait for Cloud Run's capacity, such as 24h"`
	LaunchMode      string        `env:"LAUNCH_MODE" envDefault:"job" expect:"job, or slots for launches by updating a fixed set of jobs, where the job variable pushpool_launch_mode says nothing"`
	Slots           int           `env:"SLOTS" envDefault:"40" expect:"how many jobs launch mode slots has in a region, 1 to 100; a slot takes a launch in ten seconds"`
	EarlyRead       time.Duration `env:"EARLY_READ" envDefault:"30s" expect:"how long a message about an unknown flow run is delivered again, such as 30s"`

	// The policy; what is not set allows everything.
	PolicyImages          []string      `env:"POLICY_IMAGES" expect:"patterns of the images that may run, separated by commas: * is any text without a slash, ** any text"`
	PolicyServiceAccounts []string      `env:"POLICY_SERVICE_ACCOUNTS" expect:"patterns of the service accounts that flow runs may have, separated by commas"`
	PolicyCPU             string        `env:"POLICY_MAX_CPU" expect:"the most CPUs of a task, such as 4 or 500m"`
	PolicyMemory          string        `env:"POLICY_MAX_MEMORY" expect:"the most memory of a task, such as 8Gi"`
	PolicyTimeout         time.Duration `env:"POLICY_MAX_TIMEOUT" expect:"the longest time-out of a task, such as 1h"`
}

// Validate returns what is wrong with values that could be read.
func (c config) Validate() error {
	errs := []error{c.Common.Validate(), c.Subscriber.Validate(), c.Core.Validate()}
	for _, r := range c.OverflowRegions {
		if !slices.Contains(c.Regions, r) {
			errs = append(errs, install.Invalid[config]("OVERFLOW_REGIONS", fmt.Sprintf("%q is not among REGIONS", r)))
		}
	}
	if c.CapacityWait <= 0 {
		errs = append(errs, install.Invalid[config]("CAPACITY_WAIT", c.CapacityWait.String()))
	}
	if c.LaunchMode != string(launch.ModeJob) && c.LaunchMode != string(launch.ModeSlots) {
		errs = append(errs, install.Invalid[config]("LAUNCH_MODE", fmt.Sprintf("%q", c.LaunchMode)))
	}
	if c.Slots < 1 || c.Slots > cloudrun.MaxSlots {
		errs = append(errs, install.Invalid[config]("SLOTS", fmt.Sprint(c.Slots)))
	}
	if _, ok := cloudrun.ParseCPU(c.PolicyCPU); c.PolicyCPU != "" && !ok {
		errs = append(errs, install.Invalid[config]("POLICY_MAX_CPU", fmt.Sprintf("%q", c.PolicyCPU)))
	}
	if _, ok := cloudrun.ParseMemory(c.PolicyMemory); c.PolicyMemory != "" && !ok {
		errs = append(errs, install.Invalid[config]("POLICY_MAX_MEMORY", fmt.Sprintf("%q", c.PolicyMemory)))
	}
	if c.PolicyTimeout < 0 {
		errs = append(errs, install.Invalid[config]("POLICY_MAX_TIMEOUT", c.PolicyTimeout.String()))
	}
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

func (c config) policy() cloudrun.Policy {
	cpu, _ := cloudrun.ParseCPU(c.PolicyCPU) // Validate has read them
	memory, _ := cloudrun.ParseMemory(c.PolicyMemory)
	return cloudrun.Policy{Images: c.PolicyImages, ServiceAccounts: c.PolicyServiceAccounts, MilliCPU: cpu, Memory: memory, Timeout: c.PolicyTimeout}
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
