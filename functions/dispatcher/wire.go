package dispatcher

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/lifecycle"
)

// New returns the function. The error names everything that is wrong with its configuration.
func New(s install.Surroundings) (http.Handler, error) {
	cfg, err := install.Parse[config](s.Environ)
	if err != nil {
		return nil, err
	}
	log := s.Logger(cfg.Common)
	dispatcher := install.NewLazy(func(ctx context.Context) (*Dispatcher, error) {
		c, launcher, err := newLauncher(ctx, s, cfg, log)
		if err != nil {
			return nil, err
		}
		return &Dispatcher{launcher: launcher, deployments: c.Prefect, waiting: c.Messages, ledger: c.Ledger, flowRuns: c.Prefect, workPools: cfg.WorkPools, now: time.Now}, nil
	})
	handle := func(ctx context.Context, m delivery.Delivery) error {
		d, err := dispatcher.Get(ctx)
		if err != nil {
			return err
		}
		ctx, told := lifecycle.Beside(ctx)
		defer told()
		return d.Handle(ctx, m)
	}
	return delivery.HTTP(handle, delivery.Options{
		DeadLetter: install.NewTopic(s, cfg.Common, cfg.DeadLetter), MaxAttempts: cfg.MaxAttempts,
		Logger: log, Function: "dispatcher",
	}), nil
}

// NewLauncher returns the launcher that the function works with, for whoever wants to see what
// it would launch.
func NewLauncher(ctx context.Context, s install.Surroundings) (*launch.Launcher, error) {
	cfg, err := install.Parse[config](s.Environ)
	if err != nil {
		return nil, err
	}
	_, launcher, err := newLauncher(ctx, s, cfg, s.Logger(cfg.Common))
	return launcher, err
}

func newLauncher(ctx context.Context, s install.Surroundings, cfg config, log *slog.Logger) (install.Clients, *launch.Launcher, error) {
	c, err := install.NewClients(ctx, s, cfg.Common, cfg.Core, log)
	if err != nil {
		return c, nil, err
	}
	return c, launch.New(c.Prefect, c.Prefect, c.Prefect, launch.Lookup(c.Prefect), c.CloudRun, c.Budget, c.Budget, c.Ledger, c.Settler, c.Messages, log, cfg.WorkPools, launch.Config{
		Projects: install.AllProjects(cfg.Common, cfg.Core), Install: cfg.ID(), Name: cfg.Name, Regions: cfg.Regions,
		Lease: cfg.Lease, CallTimeout: install.CallTimeout, LookAhead: cfg.LookAhead,
		EarlyRead: cfg.EarlyRead, Slots: cfg.Slots, InPlace: 5 * time.Second, CapacityWait: cfg.CapacityWait,
		Settings: cfg.settings(), Secrets: cfg.secrets(), DefaultImage: cfg.DefaultImage, TemplateEnvironment: cfg.TemplateEnvironment, Policy: cfg.policy(),
		Options: launch.Options{
			Mode: launch.Mode(cfg.LaunchMode), FastStart: cfg.FastStart, Overflow: cfg.OverflowRegions, Retries: cfg.Launch(),
		},
		Jobs: c.CloudRun.Jobs, RetryMemory: cfg.Memory(), Now: time.Now,
	}), nil
}
