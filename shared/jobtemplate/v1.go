package jobtemplate

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	launchStageAnnotation = "run.googleapis.com/launch-stage"
	v1Hint                = "take it out of the base job template, or move to a work pool of type cloud-run-v2"
)

// fixedV1 is what the cloud-run worker insists on in a job body.
var fixedV1 = []struct {
	path  []string
	value string
}{
	{[]string{"apiVersion"}, "run.googleapis.com/v1"},
	{[]string{"kind"}, "Job"},
	{[]string{"metadata", "annotations", launchStageAnnotation}, "BETA"},
}

// prepareV1 does to the job body what the cloud-run worker does before it creates the job.
func (p *prepared) prepareV1(env, labels *object, image string) error {
	metadata, _ := dig(p.body, "metadata") // readConfiguration saw to it all
	job, _ := metadata.(*object)
	if err := p.setLabels(job, labels); err != nil {
		return err
	}
	template, _ := dig(p.body, "spec", "template")
	execution, _ := template.(*object)
	if _, ok := execution.get("metadata"); !ok {
		execution.set("metadata", newObject(1))
	}
	metadata, _ = execution.get("metadata")
	below, ok := metadata.(*object)
	if !ok {
		return problem("job_body.spec.template.metadata", "it is "+kind(metadata), "write an object")
	}
	if err := p.setLabels(below, labels); err != nil {
		return err
	}
	containers, _ := dig(execution, "spec", "template", "spec", "containers")
	container, _ := containers.([]any)[0].(*object)
	entries := make([]any, 0, env.len()+2)
	for k, v := range env.all() {
		if k == apiKeyVariable && p.apiKey != nil || k == authStringVariable && p.authString != nil {
			continue
		}
		entries = append(entries, envEntry(k, "value", v))
	}
	for _, s := range [...]struct {
		name   string
		secret *SecretRef
	}{{apiKeyVariable, p.apiKey}, {authStringVariable, p.authString}} {
		if s.secret != nil {
			ref := &object{pairs: []pair{{"name", s.secret.Secret}, {"key", s.secret.Version}}}
			entries = append(entries, envEntry(s.name, "valueFrom", &object{pairs: []pair{{"secretKeyRef", ref}}}))
		}
	}
	container.set("env", entries)
	if err := p.setCommand(container, image); err != nil {
		return err
	}
	if given, ok := job.get("name"); ok {
		p.workerName = str(given)
		if s, ok := given.(string); ok && s != "" && !strings.Contains(s, "{{") {
			p.name = s
		}
		return nil
	}
	p.workerName, p.randomHex = orNone(Slug(p.name, 30))+"-", 32
	return nil
}

// translate returns the job for Cloud Run's v2 API that a prepared body for its v1 API
// describes. What has no counterpart, and is not merely how v1 spells a default, is an error.
func translate(v1 *object, r *Rendered) (*object, error) {
	t := &translator{}
	job, execution, task := newObject(8), newObject(4), newObject(8)
	job.set("template", execution)
	execution.set("template", task)

	metadata := t.below(v1, "job_body", "metadata")
	t.move(metadata, "labels", job, "labels")
	t.annotations(metadata, job, job, task)
	t.rest(metadata, "name")

	spec := t.below(v1, "job_body", "spec")
	template := t.below(spec.o, spec.path, "template")
	t.rest(spec, "template")
	metadata = t.below(template.o, template.path, "metadata")
	t.move(metadata, "labels", execution, "labels")
	t.annotations(metadata, execution, job, task)
	t.rest(metadata, "name")

	spec = t.below(template.o, template.path, "spec")
	t.rest(template, "metadata", "spec")
	t.move(spec, "parallelism", execution, "parallelism")
	t.move(spec, "taskCount", execution, "taskCount")
	inner := t.below(spec.o, spec.path, "template")
	t.rest(spec, "template")
	t.task(t.below(inner.o, inner.path, "spec"), task, r)
	t.rest(inner, "spec")
	t.rest(section{v1, "job_body", nil}, "apiVersion", "kind", "metadata", "spec")
	if t.err != nil {
		return nil, t.err
	}
	return job, nil
}

// translator keeps the first error.
type translator struct{ err error }

// section is an object of the v1 body; done are the keys that were translated.
type section struct {
	o    *object
	path string
	done map[string]bool
}

func (t *translator) fail(path, what string) {
	if t.err == nil {
		t.err = problem(path, what, v1Hint)
	}
}

// below returns a section of a section; null and nothing are empty.
func (t *translator) below(o *object, path, key string) section {
	v, _ := o.get(key)
	below, ok := v.(*object)
	if !ok {
		if v != nil {
			t.fail(path+"."+key, "it is "+kind(v))
		}
		below = newObject(0)
	}
	return section{below, path + "." + key, map[string]bool{}}
}

// take returns the value of a key, which is then dealt with.
func (s section) take(key string) any {
	v, _ := s.o.get(key)
	s.done[key] = true
	return v
}

// move puts the value of a key, unless it is null, where v2 has it.
func (t *translator) move(s section, key string, to *object, name string) {
	if v := s.take(key); v != nil {
		to.set(name, v)
	}
}

// rest refuses keys that nothing was done with, except those named.
func (t *translator) rest(s section, except ...string) {
	for k, v := range s.o.all() {
		if v != nil && !s.done[k] && !slices.Contains(except, k) {
			t.fail(s.path+"."+k, "Cloud Run's v2 API has no such field, or this one is not translated")
		}
	}
}

// task translates a TaskSpec.
func (t *translator) task(s section, task *object, r *Rendered) {
	t.move(s, "serviceAccountName", task, "serviceAccount")
	t.move(s, "maxRetries", task, "maxRetries")
	if v := s.take("timeoutSeconds"); v != nil {
		seconds := wholeSeconds(v)
		if seconds <= 0 {
			t.fail(s.path+".timeoutSeconds", "it is "+kind(v)+", not whole seconds")
		}
		task.set("timeout", duration(seconds))
		r.Timeout = time.Duration(seconds) * time.Second
	} else {
		r.Timeout = 0
	}
	selector := t.below(s.o, s.path, "nodeSelector")
	s.done["nodeSelector"] = true
	if v := selector.take("run.googleapis.com/accelerator"); v != nil {
		task.set("nodeSelector", &object{pairs: []pair{{"accelerator", v}}})
	}
	t.rest(selector)
	for _, list := range [...]struct {
		key  string
		item func(section) *object
	}{{"volumes", t.volume}, {"containers", t.container}} {
		v := s.take(list.key)
		items, ok := v.([]any)
		if v != nil && !ok {
			t.fail(s.path+"."+list.key, "it is "+kind(v))
		}
		have, _ := task.get(list.key) // the volume of an annotation
		translated, _ := have.([]any)
		for i, item := range items {
			o, ok := item.(*object)
			path := fmt.Sprintf("%s.%s[%d]", s.path, list.key, i)
			if !ok {
				t.fail(path, "it is "+kind(item))
				continue
			}
			translated = append(translated, list.item(section{o, path, map[string]bool{}}))
		}
		if len(translated) > 0 {
			task.set(list.key, translated)
		}
	}
	t.rest(s)
	mountAll(task)
}

// mountAll mounts the volume of Cloud SQL instances, which v1 has in an annotation and
// mounts into every container.
func mountAll(task *object) {
	v, _ := task.get("volumes")
	volumes, _ := v.([]any)
	for _, volume := range volumes {
		if o, _ := volume.(*object); o.find("cloudSqlInstance") < 0 {
			continue
		}
		v, _ := task.get("containers")
		containers, _ := v.([]any)
		for _, c := range containers {
			o, _ := c.(*object)
			mounts, _ := o.get("volumeMounts")
			list, _ := mounts.([]any)
			o.set("volumeMounts", slices.Concat(list, []any{&object{pairs: []pair{{"name", "cloudsql"}, {"mountPath", "/cloudsql"}}}}))
		}
	}
}

// same are the fields of a container that v2 has under the same name and in the same form.
var same = []string{"name", "image", "command", "args", "workingDir", "volumeMounts", "ports", "dependsOn"}

func (t *translator) container(s section) *object {
	c := newObject(8)
	for _, key := range same {
		t.move(s, key, c, key)
	}
	s.take("imagePullPolicy") // v1 takes it and does nothing with it
	resources := t.below(s.o, s.path, "resources")
	s.done["resources"] = true
	limits := newObject(2)
	for k, v := range t.below(resources.o, resources.path, "limits").o.all() {
		if v != nil {
			limits.set(k, v)
		}
	}
	if limits.len() > 0 {
		c.set("resources", &object{pairs: []pair{{"limits", limits}}})
	}
	t.rest(resources, "limits", "requests") // v2 has limits only
	list, _ := s.take("env").([]any)
	env := make([]any, 0, len(list))
	for i, e := range list {
		o, _ := e.(*object)
		env = append(env, t.env(section{o, fmt.Sprintf("%s.env[%d]", s.path, i), map[string]bool{}}))
	}
	c.set("env", env)
	t.rest(s)
	return c
}

func (t *translator) env(s section) *object {
	e := newObject(2)
	t.move(s, "name", e, "name")
	t.move(s, "value", e, "value")
	if s.take("valueFrom") != nil {
		from := t.below(s.o, s.path, "valueFrom")
		ref := t.below(from.o, from.path, "secretKeyRef")
		selector := newObject(2)
		t.move(ref, "name", selector, "secret")
		t.move(ref, "key", selector, "version")
		e.set("valueSource", &object{pairs: []pair{{"secretKeyRef", selector}}})
		t.rest(ref)
		t.rest(from, "secretKeyRef")
	}
	t.rest(s)
	return e
}

func (t *translator) volume(s section) *object {
	v := newObject(2)
	t.move(s, "name", v, "name")
	if s.take("emptyDir") != nil {
		from, to := t.below(s.o, s.path, "emptyDir"), newObject(2)
		if medium := from.take("medium"); truthy(medium) {
			to.set("medium", strings.ToUpper(str(medium)))
		}
		t.move(from, "sizeLimit", to, "sizeLimit")
		t.rest(from)
		v.set("emptyDir", to)
	}
	if s.take("secret") != nil {
		from, to := t.below(s.o, s.path, "secret"), newObject(3)
		t.move(from, "secretName", to, "secret")
		t.move(from, "defaultMode", to, "defaultMode")
		t.secretItems(from, to)
		t.rest(from)
		v.set("secret", to)
	}
	if s.take("nfs") != nil {
		from, to := t.below(s.o, s.path, "nfs"), newObject(3)
		t.move(from, "server", to, "server")
		t.move(from, "path", to, "path")
		t.move(from, "readOnly", to, "readOnly")
		t.rest(from)
		v.set("nfs", to)
	}
	if s.take("csi") != nil {
		v.set("gcs", t.bucket(t.below(s.o, s.path, "csi")))
	}
	t.rest(s)
	return v
}

func (t *translator) secretItems(from section, to *object) {
	list, _ := from.take("items").([]any)
	items := make([]any, 0, len(list))
	for i, item := range list {
		o, _ := item.(*object)
		s, translated := section{o, fmt.Sprintf("%s.items[%d]", from.path, i), map[string]bool{}}, newObject(3)
		t.move(s, "key", translated, "version")
		t.move(s, "path", translated, "path")
		t.move(s, "mode", translated, "mode")
		t.rest(s)
		items = append(items, translated)
	}
	if len(items) > 0 {
		to.set("items", items)
	}
}

func (t *translator) bucket(s section) *object {
	gcs := newObject(3)
	if s.take("driver") != "gcsfuse.run.googleapis.com" {
		t.fail(s.path+".driver", "Cloud Run's v2 API has no such volume")
	}
	t.move(s, "readOnly", gcs, "readOnly")
	attributes := t.below(s.o, s.path, "volumeAttributes")
	s.done["volumeAttributes"] = true
	t.move(attributes, "bucketName", gcs, "bucket")
	if options, ok := attributes.take("mountOptions").(string); ok {
		list := []any{}
		for o := range strings.SplitSeq(options, ",") {
			list = append(list, o)
		}
		gcs.set("mountOptions", list)
	}
	t.rest(attributes)
	t.rest(s)
	return gcs
}

func duration(seconds int64) string { return fmt.Sprintf("%ds", seconds) }
