package jobtemplate

import (
	"strings"
)

// annotations translates the annotations of a v1 resource: those that mean something to
// Cloud Run to fields of the v2 job and task, the others to annotations of the v2 resource.
// https://cloud.google.com/run/docs/reference/rest/v1/ObjectMeta
func (t *translator) annotations(metadata section, resource, job, task *object) {
	s := t.below(metadata.o, metadata.path, "annotations")
	metadata.done["annotations"] = true
	own := newObject(0)
	for k, v := range s.o.all() {
		text, ok := v.(string)
		switch {
		case v == nil:
		case !ok:
			t.fail(s.path+"."+k, "it is "+kind(v))
		case k == launchStageAnnotation:
			job.set("launchStage", text)
		case strings.HasPrefix(k, "run.googleapis.com/"):
			t.annotation(s, k, text, job, task)
		case strings.HasSuffix(domain(k), ".knative.dev"), strings.HasSuffix(domain(k), ".googleapis.com"):
			t.fail(s.path+"."+k, "Cloud Run's v2 API takes no such annotation")
		default:
			own.set(k, text)
		}
	}
	if own.len() > 0 {
		resource.set("annotations", own)
	}
}

func domain(key string) string {
	d, _, _ := strings.Cut(key, "/")
	return d
}

func (t *translator) annotation(s section, key, text string, job, task *object) {
	switch strings.TrimPrefix(key, "run.googleapis.com/") {
	case "client-name", "client-version": // of whatever tool wrote the template
	case "binary-authorization":
		policy := &object{pairs: []pair{{"policy", text}}}
		if text == "default" {
			policy = &object{pairs: []pair{{"useDefault", true}}}
		}
		job.set("binaryAuthorization", policy)
	case "vpc-access-connector":
		vpcAccess(task).set("connector", text)
	case "vpc-access-egress":
		vpcAccess(task).set("egress", strings.ToUpper(strings.ReplaceAll(text, "-", "_")))
	case "network-interfaces":
		list, err := decode([]byte(text), 0)
		if err != nil {
			t.fail(s.path+"."+key, "it "+err.Error())
		}
		vpcAccess(task).set("networkInterfaces", list)
	case "execution-environment":
		task.set("executionEnvironment", "EXECUTION_ENVIRONMENT_"+strings.ToUpper(text))
	case "encryption-key":
		task.set("encryptionKey", text)
	case "gpu-zonal-redundancy-disabled":
		task.set("gpuZonalRedundancyDisabled", text == "true")
	case "cloudsql-instances":
		instances := []any{}
		for i := range strings.SplitSeq(text, ",") {
			instances = append(instances, strings.TrimSpace(i))
		}
		source := &object{pairs: []pair{{"instances", instances}}}
		task.set("volumes", []any{&object{pairs: []pair{{"name", "cloudsql"}, {"cloudSqlInstance", source}}}})
	default:
		t.fail(s.path+"."+key, "Cloud Run's v2 API has no such setting, or this one is not translated")
	}
}

func vpcAccess(task *object) *object {
	if v, ok := task.get("vpcAccess"); ok {
		o, _ := v.(*object)
		return o
	}
	o := newObject(2)
	task.set("vpcAccess", o)
	return o
}
