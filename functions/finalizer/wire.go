package finalizer

import (
	"context"
	"net/http"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/lifecycle"
)

// New returns the function. The error names everything that is wrong with its configuration.
func New(s install.Surroundings) (http.Handler, error) {
	cfg, err := install.Parse[config](s.Environ)
	if err != nil {
		return nil, err
	}
	log := s.Logger(cfg.Common)
	finalizer := install.NewLazy(func(ctx context.Context) (*Finalizer, error) {
		c, err := install.NewClients(ctx, s, cfg.Common, cfg.Core, log)
		if err != nil {
			return nil, err
		}
		return &Finalizer{settler: c.Settler, executions: c.CloudRun, ledger: c.Ledger}, nil
	})
	handle := func(ctx context.Context, m delivery.Delivery) error {
		f, err := finalizer.Get(ctx)
		if err != nil {
			return err
		}
		ctx, told := lifecycle.Beside(ctx)
		defer told()
		return f.Handle(ctx, m)
	}
	return delivery.HTTP(handle, delivery.Options{
		DeadLetter: install.NewTopic(s, cfg.Common, cfg.DeadLetter), MaxAttempts: cfg.MaxAttempts,
		Logger: log, Function: "finalizer",
	}), nil
}
