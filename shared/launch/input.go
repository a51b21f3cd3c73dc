package launch

import (
	"context"
	"encoding/json"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
)

// prefectVersion is the version whose worker is reproduced: the value of the label
// prefect.io/version that it puts on jobs.
const prefectVersion = "3.8.8"

// input is what a flow run's job is made from, in jobtemplate's words.
func input(cfg Config, o *origin, template any, fr prefect.FlowRun) jobtemplate.Input {
	in := jobtemplate.Input{
		PoolType:            o.pool.Type,
		BaseJobTemplate:     template,
		FlowRunJobVariables: fr.JobVariables,
		FlowRun:             jobtemplate.FlowRun{ID: fr.ID, Name: fr.Name, FlowID: fr.FlowID, DeploymentID: fr.DeploymentID, Fields: fr},
		Flow:                jobtemplate.Flow{ID: o.flow.ID, Name: o.flow.Name, Fields: o.flow},
		WorkPool:            jobtemplate.WorkPool{ID: o.pool.ID, Name: o.pool.Name},
		Worker:              jobtemplate.Worker{Name: cfg.Name, PrefectVersion: prefectVersion},
		Settings:            cfg.Settings,
		DefaultProject:      cfg.Projects[0],
		DefaultImage:        cfg.DefaultImage,
		Environment:         cfg.TemplateEnvironment,
		ReservedLabels:      len(ourLabels(cfg, fr.ID, "", flowrun.Retries{})),
	}
	if d := o.deployment; d != nil {
		in.DeploymentJobVariables = d.JobVariables
		in.Deployment = &jobtemplate.Deployment{ID: d.ID, Name: d.Name, Updated: d.Updated}
	}
	return in
}

// Blocks is what resolving a template asks of Prefect.
type Blocks interface {
	BlockDocument(ctx context.Context, typeSlug, name string) (prefect.BlockDocument, error)
	BlockDocumentByID(ctx context.Context, id string) (prefect.BlockDocument, error)
	Variable(ctx context.Context, name string) (value json.RawMessage, found bool, err error)
}

// Lookup gives a template access to Prefect's blocks and variables.
func Lookup(b Blocks) jobtemplate.Lookup { return lookup{b} }

type lookup struct{ blocks Blocks }

func (l lookup) BlockDocument(ctx context.Context, typeSlug, name string) (any, error) {
	d, err := l.blocks.BlockDocument(ctx, typeSlug, name)
	return d.Data, err
}

func (l lookup) BlockDocumentByID(ctx context.Context, id string) (any, error) {
	d, err := l.blocks.BlockDocumentByID(ctx, id)
	return d.Data, err
}

func (l lookup) Variable(ctx context.Context, name string) (any, bool, error) {
	return l.blocks.Variable(ctx, name)
}
