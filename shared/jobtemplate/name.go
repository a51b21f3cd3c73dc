package jobtemplate

import (
	"strings"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// JobID returns the id of a launch's job: pp-, the name's slug cut to 30, and 13 characters
// of the launch id, at most 47 in all. It is the same for every try of one launch.
func JobID(name string, launch flowrun.LaunchID) string {
	id := "pp-"
	if slug := Slug(name, 30); slug != "" {
		id += slug + "-"
	}
	return id + launch.Suffix()
}

// jobName resolves {{ ctx.flow.… }} and {{ ctx.flow_run.… }} in the configuration's name.
func (r *resolver) jobName(name string, in Input, jobVariables *object) (string, error) {
	if !strings.Contains(name, "{{") {
		if name == "" {
			return in.FlowRun.Name, nil
		}
		return name, nil
	}
	ctx, err := contextOf(in, jobVariables)
	if err != nil {
		return "", err
	}
	v, err := r.apply(name, ctx)
	if err != nil {
		return "", err
	}
	switch t := v.(type) {
	case missing:
		return name, nil // as Prefect does, which leaves a whole placeholder that names nothing
	case string:
		if t != "" {
			return t, nil
		}
	}
	if truthy(v) {
		return "", problem("`name`", "it is "+kind(v), "name something that is text, or put text beside the placeholder")
	}
	return in.FlowRun.Name, nil
}

// What Prefect's client makes of a flow run and a flow whose fields are not all known, in
// its order.
const (
	flowRunFields = `{"id":null,"created":null,"updated":null,"name":null,"flow_id":null,"state_id":null,"deployment_id":null,` +
		`"deployment_version":null,"work_queue_name":null,"flow_version":null,"parameters":{},"idempotency_key":null,"context":{},` +
		`"empirical_policy":{"max_retries":0,"retry_delay_seconds":0.0,"retries":null,"retry_delay":null,"pause_keys":[],` +
		`"resuming":false,"retry_type":null},"tags":[],"labels":{},"parent_task_run_id":null,"run_count":0,` +
		`"expected_start_time":null,"next_scheduled_start_time":null,"start_time":null,"end_time":null,"total_run_time":0.0,` +
		`"estimated_run_time":0.0,"estimated_start_time_delta":0.0,"auto_scheduled":false,"infrastructure_document_id":null,` +
		`"infrastructure_pid":null,"created_by":null,"work_queue_id":null,"work_pool_id":null,"work_pool_name":null,"state":null,` +
		`"job_variables":null,"state_type":null,"state_name":null}`
	flowFields = `{"id":null,"created":null,"updated":null,"name":null,"tags":[],"labels":{}}`
)

// contextOf returns what {{ ctx.… }} can name.
func contextOf(in Input, jobVariables *object) (*object, error) {
	flowRun, err := fields(flowRunFields, "the flow run", in.FlowRun.Fields, in.FlowRun.ID, in.FlowRun.Name)
	if err != nil {
		return nil, err
	}
	flow, err := fields(flowFields, "the flow", in.Flow.Fields, in.Flow.ID, in.Flow.Name)
	if err != nil {
		return nil, err
	}
	for _, p := range [...]pair{{"flow_id", in.FlowRun.FlowID}, {"deployment_id", in.FlowRun.DeploymentID}} {
		if p.value != "" {
			flowRun.set(p.key, p.value)
		}
	}
	flowRun.set("job_variables", jobVariables)
	ctx := newObject(2)
	ctx.set("flow", flow)
	ctx.set("flow_run", flowRun)
	values := newObject(1)
	values.set("ctx", ctx)
	return values, nil
}

func fields(defaults, what string, given any, id, name string) (*object, error) {
	v, err := decode([]byte(defaults), 0)
	if err != nil {
		return nil, err
	}
	over, err := asObject(what, given)
	if err != nil {
		return nil, err
	}
	o := v.(*object) //nolint:forcetypeassert // the constants above are objects
	for i, p := range o.pairs {
		if v, ok := over.get(p.key); ok {
			o.pairs[i].value = v
		}
	}
	o.set("id", id)
	o.set("name", name)
	return o, nil
}
