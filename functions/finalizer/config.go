package finalizer

import (
	"errors"

	"github.com/pushpool/pushpool/shared/install"
)

type config struct {
	install.Common
	install.Subscriber
	install.Core
}

// Validate returns what is wrong with values that could be read.
func (c config) Validate() error {
	return errors.Join(c.Common.Validate(), c.Subscriber.Validate(), c.Core.Validate())
}
