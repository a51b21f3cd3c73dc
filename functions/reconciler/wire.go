package reconciler

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/lifecycle"
	"github.com/pushpool/pushpool/shared/lookahead"
	"github.com/pushpool/pushpool/shared/quota"
	"github.com/pushpool/pushpool/shared/settle"
	"github.com/pushpool/pushpool/shared/sweep"
)

// New returns the function. The error names everything that is wrong with its configuration.
func New(s install.Surroundings) (http.Handler, error) {
	cfg, err := install.Parse[config](s.Environ)
	if err != nil {
		return nil, err
	}
	log := s.Logger(cfg.Common)
	sweeper := install.NewLazy(func(ctx context.Context) (*sweep.Sweeper, error) {
		return newSweeper(ctx, s, cfg, sweep.NewActs(log), func(l ledger.Ledger) ledger.Ledger { return l }, log)
	})
	return endpoint(func(ctx context.Context) (sweep.Report, error) {
		r, err := sweeper.Get(ctx)
		if err != nil {
			return nil, err
		}
		ctx, told := lifecycle.Beside(ctx)
		defer told()
		return r.Sweep(ctx)
	}, log), nil
}

// DryRun returns what a sweep would do now. It changes nothing.
func DryRun(ctx context.Context, s install.Surroundings) ([]sweep.Act, error) {
	cfg, err := install.Parse[config](s.Environ)
	if err != nil {
		return nil, err
	}
	log := s.Logger(cfg.Common)
	acts := sweep.NewDryActs(log)
	sweeper, err := newSweeper(ctx, s, cfg, acts, func(l ledger.Ledger) ledger.Ledger { return sweep.DryLedger(l) }, log)
	if err != nil {
		return nil, err
	}
	return sweeper.DryRun(ctx)
}

// newSweeper makes a sweeper whose every change goes through acts.
func newSweeper(ctx context.Context, s install.Surroundings, cfg config, acts *sweep.Acts, over func(ledger.Ledger) ledger.Ledger, log *slog.Logger) (*sweep.Sweeper, error) {
	c, err := install.NewClients(ctx, s, cfg.Common, cfg.Core, log)
	if err != nil {
		return nil, err
	}
	records, cloudRun, messages := over(c.Ledger), acts.CloudRun(c.CloudRun), acts.Messages(c.Messages)
	settler := settle.New(acts.Prefect(c.Prefect), acts.CloudRun(install.Spending{Client: c.CloudRun, Budget: c.Budget, Log: log}), records, messages, log, acts.Settling(c.SettleConfig))
	writes := quota.New(records, flowrun.Quota{Writes: cfg.WritesPerMinute, Jobs: cfg.MaxJobs}, time.Now)
	ahead := lookahead.New(c.Prefect, records, messages, cfg.LookAhead, time.Now)
	return sweep.New(c.Prefect, acts.Pools(c.Prefect), ahead, cloudRun, writes, records, settler, messages, acts, log, sweep.Config{
		WorkPools: cfg.WorkPools, Projects: c.SettleConfig.Projects, Regions: cfg.Regions, Name: cfg.Name,
		EventGrace: cfg.EventGrace, CancelGrace: cfg.CancelGrace, MaxLooks: cfg.maxLooks(), MaxChecks: maxChecks,
		Readiness: cfg.Readiness, KeepJobsFor: cfg.KeepJobsFor, MaxDeletes: cfg.WritesPerMinute / 2, Now: time.Now,
	}), nil
}
