package reconciler

import (
	"errors"
	"time"

	"github.com/pushpool/pushpool/shared/install"
)

type config struct {
	install.Common
	install.Core

	// LookAtMost bounds the growing interval at which a launched flow run is looked at.
	LookAtMost time.Duration `env:"LOOK_AT_MOST" envDefault:"5m" expect:"the longest interval between two looks at one execution, such as 5m"`
	// UnreportedAfter leaves whoever reached a verdict time to report it.
	UnreportedAfter time.Duration `env:"UNREPORTED_AFTER" envDefault:"30s" expect:"a duration such as 30s"`
}

// callsPerLook is what a look asks of Prefect at most: the flow run, its history, a state.
const callsPerLook = 3

// maxLooks shares what this instance may ask of Prefect in a minute out among the pools.
func (c config) maxLooks() int {
	return max(1, c.RequestsPerMinute/callsPerLook/len(c.WorkPools))
}

// Validate returns what is wrong with values that could be read.
func (c config) Validate() error {
	errs := []error{c.Common.Validate(), c.Core.Validate()}
	if c.LookAtMost <= 0 {
		errs = append(errs, install.Invalid[config]("LOOK_AT_MOST", c.LookAtMost.String()))
	}
	return errors.Join(errs...)
}
