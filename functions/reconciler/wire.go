package reconciler

import (
	"context"
	"net/http"
	"time"

	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/lifecycle"
	"github.com/pushpool/pushpool/shared/lookahead"
)

// New returns the function. The error names everything that is wrong with its configuration.
func New(s install.Surroundings) (http.Handler, error) {
	cfg, err := install.Parse[config](s.Environ)
	if err != nil {
		return nil, err
	}
	log := s.Logger(cfg.Common)
	reconciler := install.NewLazy(func(ctx context.Context) (*Reconciler, error) {
		c, err := install.NewClients(ctx, s, cfg.Common, cfg.Core, log)
		if err != nil {
			return nil, err
		}
		return newReconciler(c.Prefect, c.Ledger, c.Settler, lookahead.New(c.Prefect, c.Ledger, c.Messages, cfg.LookAhead, time.Now), options{
			pools: cfg.WorkPools, worker: "pushpool " + cfg.Name,
			lookAtMost: cfg.LookAtMost, unreportedAfter: cfg.UnreportedAfter, maxLooks: cfg.maxLooks(), now: time.Now,
		}), nil
	})
	return endpoint(func(ctx context.Context) (report, error) {
		r, err := reconciler.Get(ctx)
		if err != nil {
			return report{}, err
		}
		ctx, told := lifecycle.Beside(ctx)
		defer told()
		return r.sweep(ctx)
	}, log), nil
}
