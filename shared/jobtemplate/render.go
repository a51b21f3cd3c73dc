package jobtemplate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Lookup reads blocks and variables from Prefect. What a block or a variable holds is JSON
// as Input describes it.
type Lookup interface {
	// BlockDocument returns the data of a block, its secrets in clear. An error with fault
	// NotFound says that there is none.
	BlockDocument(ctx context.Context, typeSlug, name string) (data any, err error)
	// BlockDocumentByID is BlockDocument for a block's id.
	BlockDocumentByID(ctx context.Context, id string) (data any, err error)
	// Variable returns a variable's value; found is false where there is none.
	Variable(ctx context.Context, name string) (value any, found bool, err error)
}

// Input is what a launch's job is made from.
//
// A field of type any holds JSON: a json.RawMessage as Prefect sent it, a Document read from
// one, a map[string]any decoded with UseNumber (1 and 1.0 give different text), or nil. Only
// the first two keep the order of keys, which shows where an object is put into text, where
// two labels become one, and which labels are dropped beyond 64; a map is taken in
// alphabetical order. Nothing given is changed.
type Input struct {
	// PoolType is the work pool's type: cloud-run-v2 or cloud-run, with or without :push.
	PoolType        string
	BaseJobTemplate any

	DeploymentJobVariables any
	FlowRunJobVariables    any

	FlowRun FlowRun
	Flow    Flow
	// Deployment is nil for a flow run without one.
	Deployment *Deployment
	WorkPool   WorkPool
	Worker     Worker

	// Settings are put into the container's environment first: job variables can override
	// them, and remove them with null. Whoever wants Secrets to be used names the variables
	// that they are for, with any value.
	Settings []Setting
	// Environment is what {{ $NAME }} in a template can name. Flows can read all of it.
	Environment map[string]string
	// DefaultProject is Rendered.Project where no credentials are given.
	DefaultProject string
	// ReservedLabels is for how many labels of the launcher there has to be room.
	ReservedLabels int
	// DefaultImage is the image where the template has none.
	DefaultImage string
}

// Setting is a setting of Prefect as an environment variable.
type Setting struct{ Name, Value string }

// FlowRun is the flow run to launch.
type FlowRun struct {
	ID, Name, FlowID string
	DeploymentID     string // empty without a deployment
	// Fields is the flow run as Prefect's API shows it, as JSON or as something that
	// encoding/json makes it of. It is read only if the job's name has a placeholder
	// {{ ctx.flow_run.… }}.
	Fields any
}

// Flow is the flow run's flow. Fields is for {{ ctx.flow.… }}, like FlowRun's.
type Flow struct {
	ID, Name string
	Fields   any
}

// Deployment is the flow run's deployment.
type Deployment struct {
	ID, Name string
	Updated  time.Time // zero if unknown
}

// WorkPool is the flow run's work pool.
type WorkPool struct{ ID, Name string }

// Worker is what stands for Prefect's worker in labels and environment.
type Worker struct {
	ID             string // Prefect Cloud only; empty for none
	Name           string
	PrefectVersion string
}

// Rendered is a job ready for the last steps: secrets, labels of the launcher, creation.
type Rendered struct {
	// Name is what the job's name is made of: the job variable `name`, or the flow run's name.
	Name    string
	Region  string
	Project string // of the credentials given, or Input.DefaultProject
	// ServiceAccountKey: the credentials hold the key of a service account. Whoever creates
	// the job with another identity has to refuse it, or the key does nothing.
	ServiceAccountKey bool
	// KeepJob: the job is not to be deleted when its execution has ended.
	KeepJob bool
	// Timeout is the task's; zero if the job does not state one.
	Timeout time.Duration
	// Options are the job variables whose names begin with OptionPrefix, by name, merged and
	// resolved as any other, in JSON decoded with UseNumber. Null, which takes a default back,
	// is left out.
	Options map[string]any
	// Body is the job for Cloud Run's v2 API, as JSON decoded with UseNumber.
	Body map[string]any
}

// OptionPrefix begins the names of the job variables that are for the launcher and not for
// the job. Prefect takes job variables that a template does not declare.
const OptionPrefix = "pushpool_"

// Render resolves the template as a worker of the pool's type does, and returns the job. An
// error is Permanent, except one of Lookup, which keeps its fault (NotFound is Permanent).
func Render(ctx context.Context, in Input, lookup Lookup) (Rendered, error) {
	r, err := render(ctx, in, lookup)
	if err != nil {
		return Rendered{}, fmt.Errorf("render the job of work pool %q: %w", in.WorkPool.Name, err)
	}
	return r, nil
}

func render(ctx context.Context, in Input, lookup Lookup) (Rendered, error) {
	p, err := prepare(ctx, in, lookup)
	if err != nil {
		return Rendered{}, err
	}
	r := Rendered{
		Name: p.name, Region: p.region, Project: p.project, ServiceAccountKey: p.accountKey, KeepJob: p.keepJob,
		Timeout: time.Duration(p.timeout) * time.Second, Options: p.options,
	}
	body := p.body
	if p.v1 {
		if body, err = translate(body, &r); err != nil {
			return Rendered{}, err
		}
	}
	r.Body, _ = plain(body).(map[string]any)
	return r, nil
}

// prepared is what a worker of the pool's type would create a job from.
type prepared struct {
	configuration
	v1             bool
	reservedLabels int
	// workerName is the job's name at the worker, which appends randomHex random hexadecimal
	// digits. Only a v1 body holds it, and loses it in translation: ours is JobID's.
	workerName string
	randomHex  int
	options    map[string]any
}

func prepare(ctx context.Context, in Input, lookup Lookup) (prepared, error) {
	p := prepared{reservedLabels: in.ReservedLabels}
	switch strings.TrimSuffix(in.PoolType, ":push") {
	case "cloud-run-v2":
	case "cloud-run":
		p.v1 = true
	default:
		return p, problem(fmt.Sprintf("work pool type %q", in.PoolType), "it is not one of Cloud Run's", "use a work pool of type cloud-run-v2")
	}
	values, left, err := jobVariables(in.DeploymentJobVariables, in.FlowRunJobVariables)
	if err != nil {
		return p, err
	}
	r := &resolver{ctx: ctx, lookup: lookup, environment: in.Environment}
	populated, values, err := r.populate(in.BaseJobTemplate, values)
	if err != nil {
		return p, err
	}
	if p.options, err = r.options(values); err != nil {
		return p, err
	}
	if p.configuration, err = readConfiguration(populated, p.v1, in.DefaultProject); err != nil {
		return p, err
	}
	if p.name, err = r.jobName(p.name, in, left); err != nil {
		return p, err
	}
	env, labels := environment(in, p.env), labels(in, p.labels)
	if p.v1 {
		err = p.prepareV1(env, labels, in.DefaultImage)
	} else {
		err = p.prepareV2(env, labels, in.DefaultImage)
	}
	return p, err
}

// problem is an error that only a change of the template, a job variable or a block mends.
func problem(where, what, todo string) error {
	return &flowrun.Error{Fault: flowrun.Permanent, Act: "resolve " + where, Err: errors.New(what), Hint: todo}
}
