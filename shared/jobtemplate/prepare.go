package jobtemplate

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// maxLabels is how many labels Cloud Run takes on a resource.
const maxLabels = 64

// maxLabelLength bounds a label's key and its value.
const maxLabelLength = 63

// environment returns the container's plain environment: settings, then what the worker
// says of the flow run, then the job's own, where null removes.
func environment(in Input, own *object) *object {
	env := newObject(len(in.Settings) + 8 + own.len())
	for _, s := range in.Settings {
		env.set(s.Name, s.Value)
	}
	env.set("PREFECT__FLOW_RUN_ID", in.FlowRun.ID)
	for _, p := range [...]pair{
		{"PREFECT__WORKER_ID", in.Worker.ID},
		{"PREFECT__WORKER_NAME", in.Worker.Name},
		{"PREFECT__FLOW_ID", in.FlowRun.FlowID},
		{"PREFECT__FLOW_NAME", in.Flow.Name},
		{"PREFECT__DEPLOYMENT_ID", in.FlowRun.DeploymentID},
		{"PREFECT__DEPLOYMENT_NAME", deploymentName(in)},
	} {
		if p.value != "" {
			env.set(p.key, p.value)
		}
	}
	all := env.union(own)
	all.pairs = slices.DeleteFunc(all.pairs, func(p pair) bool { return p.value == nil })
	all.index = nil // only walked from here on
	return all
}

func deploymentName(in Input) string {
	if in.Deployment == nil {
		return ""
	}
	return in.Deployment.Name
}

// labels returns the labels that Prefect puts on the job, and the job's own over them.
func labels(in Input, own *object) *object {
	l := newObject(11 + own.len())
	l.set("prefect.io/flow-run-id", in.FlowRun.ID)
	l.set("prefect.io/flow-run-name", in.FlowRun.Name)
	l.set("prefect.io/version", in.Worker.PrefectVersion)
	l.set("prefect.io/work-pool-name", in.WorkPool.Name)
	l.set("prefect.io/work-pool-id", in.WorkPool.ID)
	if in.Worker.Name != "" {
		l.set("prefect.io/worker-name", in.Worker.Name)
	}
	if in.Flow.ID != "" {
		l.set("prefect.io/flow-id", in.Flow.ID)
		l.set("prefect.io/flow-name", in.Flow.Name)
	}
	if d := in.Deployment; d != nil {
		l.set("prefect.io/deployment-id", d.ID)
		l.set("prefect.io/deployment-name", d.Name)
		if !d.Updated.IsZero() {
			l.set("prefect.io/deployment-updated", isoformat(d.Updated))
		}
	}
	return l.union(own)
}

// isoformat writes a time as Python does: microseconds, unless there are none.
func isoformat(t time.Time) string {
	layout := "2006-01-02T15:04:05.000000+00:00"
	if t.Nanosecond()/1000 == 0 {
		layout = "2006-01-02T15:04:05+00:00"
	}
	return t.UTC().Format(layout)
}

// mergeLabels returns labels under those that are there already, cut to what Cloud Run
// takes, and most at most, by dropping the last of labels.
func mergeLabels(labels *object, there any, most int) (*object, error) {
	have, ok := there.(*object)
	if !ok {
		return nil, problem("the labels in job_body", "they are "+kind(there), "write an object of names and values")
	}
	merged := sanitize(labels).union(have)
	excess := merged.len() - most
	kept := newObject(merged.len())
	for _, p := range slices.Backward(merged.pairs) {
		if excess > 0 && have.find(p.key) < 0 {
			excess--
			continue
		}
		kept.set(p.key, p.value)
	}
	return kept, nil
}

// sanitize makes names and values of labels that Google Cloud takes.
func sanitize(labels *object) *object {
	safe := newObject(labels.len())
	for k, v := range labels.all() {
		k = strings.TrimLeft(labelText(k), "0123456789_-")
		if k = k[:min(len(k), maxLabelLength)]; k == "" {
			continue
		}
		value := labelText(v.(string)) //nolint:forcetypeassert // readConfiguration saw to it
		safe.set(k, value[:min(len(value), maxLabelLength)])
	}
	return safe
}

// labelText lower-cases s and replaces every other character by a dash.
func labelText(s string) string {
	var b strings.Builder
	for _, r := range strings.ReplaceAll(s, "\u0130", "i\u0307") { // one of whose lower case is two
		switch {
		case 'A' <= r && r <= 'Z':
			b.WriteByte(byte(r) + 'a' - 'A')
		case r == '\u212a': // the Kelvin sign is an upper case k
			b.WriteByte('k')
		case 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '_' || r == '-':
			b.WriteByte(byte(r))
		default:
			b.WriteByte('-')
		}
	}
	return b.String()
}

// prepareV2 does to the job body what the cloud-run-v2 worker does before it creates the job.
func (p *prepared) prepareV2(env, labels *object, image string) error {
	if err := p.setLabels(p.body, labels); err != nil {
		return err
	}
	template, _ := p.body.get("template") // readConfiguration saw to it all
	execution, _ := template.(*object)
	if err := p.setLabels(execution, labels); err != nil {
		return err
	}
	inner, _ := execution.get("template")
	task, _ := inner.(*object)
	containers, _ := task.get("containers")
	container, _ := containers.([]any)[0].(*object)
	entries, _ := container.get("env")
	list, _ := entries.([]any)
	container.set("env", slices.Concat(list, p.envEntries(env)))
	if err := p.mountCloudSQL(task, container); err != nil {
		return err
	}
	if err := p.setCommand(container, image); err != nil {
		return err
	}
	task.set("timeout", duration(p.timeout))
	if vpc, ok := task.get("vpcAccess"); ok && isUnset(vpc) {
		task.delete("vpcAccess")
	} else if ok && hasNoKeys(vpc) {
		return problem("job_body.template.template.vpcAccess", "it is "+kind(vpc), "write an object")
	}
	p.workerName, p.randomHex = orNone(Slug(p.name, 55))+"-", 7
	return nil
}

// setLabels merges labels into the `labels` of o.
func (p *prepared) setLabels(o, labels *object) error {
	there, ok := o.get("labels")
	if !ok {
		there = newObject(0)
	}
	merged, err := mergeLabels(labels, there, maxLabels-p.reservedLabels)
	if err != nil {
		return err
	}
	o.set("labels", merged)
	return nil
}

// envEntries returns the entries for a container's env: plain, then from secrets. A plain
// credential gives way to a secret one.
func (p *prepared) envEntries(env *object) []any {
	secret := map[string]bool{apiKeyVariable: p.apiKey != nil, authStringVariable: p.authString != nil}
	for _, s := range p.envFromSecrets {
		if s.name == apiKeyVariable || s.name == authStringVariable {
			secret[s.name] = true
		}
	}
	entries := make([]any, 0, env.len()+len(p.envFromSecrets)+2)
	for k, v := range env.all() {
		if !secret[k] {
			entries = append(entries, envEntry(k, "value", v))
		}
	}
	for _, s := range p.envFromSecrets {
		entries = append(entries, secretEntry(s.name, s.secret))
	}
	if p.apiKey != nil {
		entries = append(entries, secretEntry(apiKeyVariable, *p.apiKey))
	}
	if p.authString != nil {
		entries = append(entries, secretEntry(authStringVariable, *p.authString))
	}
	return entries
}

func envEntry(name, key string, value any) *object {
	return &object{pairs: []pair{{"name", name}, {key, value}}}
}

func secretEntry(name string, s SecretRef) *object {
	ref := &object{pairs: []pair{{"secret", s.Secret}, {"version", s.Version}}}
	return envEntry(name, "valueSource", &object{pairs: []pair{{"secretKeyRef", ref}}})
}

func (p *prepared) mountCloudSQL(task, container *object) error {
	if len(p.cloudSQL) == 0 {
		return nil
	}
	instances := &object{pairs: []pair{{"instances", p.cloudSQL}}}
	volume := &object{pairs: []pair{{"name", "cloudsql"}, {"cloudSqlInstance", instances}}}
	if err := appendTo(task, "volumes", volume); err != nil {
		return err
	}
	return appendTo(container, "volumeMounts", &object{pairs: []pair{{"name", "cloudsql"}, {"mountPath", "/cloudsql"}}})
}

func appendTo(o *object, key string, value any) error {
	there, ok := o.get(key)
	list, isList := there.([]any)
	if ok && !isList {
		return problem("`"+key+"` in job_body", "it is "+kind(there), "write an array")
	}
	o.set(key, slices.Concat(list, []any{value}))
	return nil
}

// setCommand completes what the container executes.
func (p *prepared) setCommand(container *object, image string) error {
	command, _ := container.get("command")
	if command == nil {
		command = "prefect flow-run execute"
	}
	args, _ := container.get("args")
	for _, p := range [...]pair{{"command", command}, {"args", args}} {
		text, ok := p.value.(string)
		if !ok {
			continue
		}
		words, err := split(text)
		if err != nil {
			return problem("`"+p.key+"`", err.Error(), "quote it as a shell does, or write an array in the base job template")
		}
		container.set(p.key, words)
	}
	if _, ok := container.get("image"); !ok && image != "" {
		container.set("image", image)
	}
	return nil
}

// isUnset reports whether a vpcAccess says nothing: it is empty, or its connector is null.
func isUnset(vpc any) bool {
	if o, ok := vpc.(*object); ok && o.len() == 1 {
		connector, ok := o.get("connector")
		return ok && connector == nil
	}
	return !truthy(vpc)
}

// hasNoKeys reports whether the worker fails when it looks for the connector in vpc.
func hasNoKeys(vpc any) bool {
	switch v := vpc.(type) {
	case bool, json.Number:
		return true
	case []any:
		return len(v) == 1 && v[0] == "connector"
	}
	return false
}

func orNone(s string) string {
	if s == "" {
		return "None"
	}
	return s
}
