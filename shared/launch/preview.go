package launch

import (
	"context"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Preview is a flow run's job before it is created.
type Preview struct {
	// Launch is what would be created; of the jobs of launch mode slots, the first stands for all.
	Launch cloudrun.Launch
	// Worker is what Prefect's worker would create from the same; its job's name is not known.
	Worker cloudrun.Launch
}

// Preview makes the job of a flow run, which need not exist, and creates nothing. The error is
// the one that a launch would end with.
func (l *Launcher) Preview(ctx context.Context, fr prefect.FlowRun) (Preview, error) {
	o := l.origin(ctx, fr, nil)
	defer func() { _ = o.wait() }()
	if err := o.wait(); err != nil {
		return Preview{}, err
	}
	r, err := jobtemplate.Render(ctx, input(l.cfg, o, l.templates.of(o.pool), fr), l.lookup)
	if err != nil {
		return Preview{}, err
	}
	var p Preview
	if p.Worker.Job, err = r.Job(); err != nil {
		return Preview{}, err
	}
	rec := flowrun.Record{FlowRunID: fr.ID, Launch: flowrun.Launch{LaunchID: flowrun.NewLaunchID(l.cfg.Install, fr.ID, fr.StateID)}}
	made, err := l.render(ctx, rec, fr, o)
	if p.Launch = made.Launch; made.Mode == ModeSlots {
		p.Launch.Name.Job = cloudrun.SlotJob(l.cfg.Name, 0)
	}
	return p, err
}
