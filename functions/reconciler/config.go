package reconciler

import (
	"errors"
	"time"

	"github.com/pushpool/pushpool/shared/install"
)

type config struct {
	install.Common
	install.Core

	// EventGrace leaves an event, some seconds behind an execution's end, or whoever reached a
	// verdict, time to do what the sweep would repair.
	EventGrace time.Duration `env:"EVENT_GRACE" envDefault:"30s" expect:"a duration such as 30s"`
	// KeepJobsFor is how long a job is kept after its execution ended. Its log outlives it.
	KeepJobsFor time.Duration `env:"KEEP_JOBS_FOR" envDefault:"24h" expect:"how long jobs are kept after their execution ended, such as 24h"`
	// Readiness costs two calls to Prefect a minute for each pool.
	Readiness bool `env:"READINESS" envDefault:"true" expect:"true, or false to let Prefect show work queues and deployments as not ready"`
}

const (
	// callsPerLook is what a look asks of Prefect at most: the flow run, its history, a state.
	callsPerLook = 3
	// maxChecks leaves most of Cloud Run's quota, 3,000 reads a minute in a region, to others.
	maxChecks = 150
)

// maxLooks is how many looks fit what this instance may ask of Prefect in a minute.
func (c config) maxLooks() int { return max(1, c.RequestsPerMinute/callsPerLook) }

// Validate returns what is wrong with values that could be read.
func (c config) Validate() error {
	errs := []error{c.Common.Validate(), c.Core.Validate()}
	for name, d := range map[string]time.Duration{"EVENT_GRACE": c.EventGrace, "KEEP_JOBS_FOR": c.KeepJobsFor} {
		if d < 0 {
			errs = append(errs, install.Invalid[config](name, d.String()))
		}
	}
	return errors.Join(errs...)
}
