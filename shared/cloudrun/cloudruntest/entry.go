package cloudruntest

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// projectNumber is the namespace of everything in the v1 API.
const projectNumber = "100000000001"

type object = map[string]any

// completionEntry is the LogEntry that tells the end of an execution: /Jobs.RunJob with
// the execution as the v1 API shows it. The caller holds s.mu.
func completionEntry(x *execution) []byte {
	p := x.proto
	outcome := object{"message": fmt.Sprintf("Execution %s has completed successfully.", x.id)}
	severity := "INFO"
	if x.end.code != codes.OK {
		severity = "ERROR"
		text := fmt.Sprintf("Execution %s has failed to complete, %d/%d tasks were a success.", x.id, p.GetSucceededCount(), p.GetTaskCount())
		if x.state == Cancelled { // assumed, no capture is known
			text = fmt.Sprintf("Execution %s was cancelled.", x.id)
		}
		outcome = object{"code": int(x.end.code), "message": text}
	}
	e := logEntry(x.job, "/Jobs.RunJob", "executions/"+x.id, severity, outcome, v1Execution(x))
	e["labels"] = object{"run.googleapis.com/execution_name": x.id}
	return encode(e)
}

// creationEntry is the LogEntry that tells that a job can never start its execution. The
// caller holds s.mu.
func creationEntry(j *job) []byte {
	c := j.proto.GetTerminalCondition()
	method := "/Jobs.CreateJob"
	if j.proto.GetGeneration() > 1 {
		method = "/Jobs.UpdateJob"
	}
	return encode(logEntry(j, method, "jobs/"+j.id, "ERROR",
		object{"code": int(failureCode(c)), "message": c.GetMessage()}, v1Job(j)))
}

// failureCode is the code of an operation that ended in the condition.
func failureCode(c *runpb.Condition) codes.Code {
	if c.GetReason() == runpb.Condition_CONTAINER_MISSING {
		return codes.NotFound
	}
	return codes.FailedPrecondition
}

func encode(e object) []byte {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // there are only maps, lists, strings and numbers
	}
	return b
}

func logEntry(j *job, method, resource, severity string, outcome, response object) object {
	return object{
		"insertId": "-" + uuid.NewString()[:8],
		"logName":  "projects/" + j.project + "/logs/cloudaudit.googleapis.com%2Fsystem_event",
		"protoPayload": object{
			"@type":        "type.googleapis.com/google.cloud.audit.AuditLog",
			"methodName":   method,
			"resourceName": "namespaces/" + j.project + "/" + resource,
			"response":     response,
			"serviceName":  "run.googleapis.com",
			"status":       outcome,
		},
		"receiveTimestamp": stamp(now()),
		"resource": object{
			"labels": object{"job_name": j.id, "location": j.region, "project_id": j.project},
			"type":   "cloud_run_job",
		},
		"severity":  severity,
		"timestamp": stamp(now()),
	}
}

func stamp(t *timestamppb.Timestamp) string {
	return t.AsTime().Format("2006-01-02T15:04:05.000000Z07:00")
}

func v1Execution(x *execution) object {
	p, j := x.proto, x.job
	labels := object{
		"cloud.googleapis.com/location": j.region, "run.googleapis.com/job": j.id,
		"run.googleapis.com/jobGeneration":      strconv.FormatInt(j.proto.GetGeneration(), 10),
		"run.googleapis.com/jobResourceVersion": strconv.FormatInt(at(j.proto.GetUpdateTime()).UnixMicro(), 10),
		"run.googleapis.com/jobUid":             j.proto.GetUid(),
	}
	for key, value := range p.GetLabels() {
		labels[key] = value
	}
	st := object{
		"completionTime": stamp(p.GetCompletionTime()), "conditions": v1Conditions(x.end.v1, p.GetConditions()),
		"logUri": p.GetLogUri(), "observedGeneration": p.GetObservedGeneration(),
	}
	if p.GetStartTime() != nil {
		st["startTime"] = stamp(p.GetStartTime())
	}
	// Counters of zero are left out.
	for name, n := range map[string]int32{
		"succeededCount": p.GetSucceededCount(), "failedCount": p.GetFailedCount(),
		"cancelledCount": p.GetCancelledCount(), "retriedCount": p.GetRetriedCount(),
	} {
		if n > 0 {
			st[name] = n
		}
	}
	meta := v1Metadata("executions", x.id, p.GetUid(), labels, p.GetAnnotations(), p.GetCreateTime())
	meta["ownerReferences"] = []object{{
		"apiVersion": "serving.knative.dev/v1", "blockOwnerDeletion": true, "controller": true, "kind": "Job",
		"name": j.id, "uid": j.proto.GetUid(),
	}}
	return object{
		"@type": "type.googleapis.com/google.cloud.run.v1.Execution", "apiVersion": "run.googleapis.com/v1", "kind": "Execution",
		"metadata": meta,
		"spec": object{
			"parallelism": p.GetParallelism(), "taskCount": p.GetTaskCount(),
			"template": object{"spec": v1TaskSpec(j.id, p.GetTemplate())},
		},
		"status": st,
	}
}

func v1Job(j *job) object {
	p, t := j.proto, j.proto.GetTemplate()
	labels := object{"cloud.googleapis.com/location": j.region}
	for key, value := range p.GetLabels() {
		labels[key] = value
	}
	c := p.GetTerminalCondition()
	reason := "SecretsAccessCheckFailed"
	if c.GetReason() == runpb.Condition_CONTAINER_MISSING {
		reason = "ContainerMissing"
	}
	return object{
		"@type": "type.googleapis.com/google.cloud.run.v1.Job", "apiVersion": "run.googleapis.com/v1", "kind": "Job",
		"metadata": v1Metadata("jobs", j.id, p.GetUid(), labels, p.GetAnnotations(), p.GetCreateTime()),
		"spec": object{"template": object{
			"metadata": object{"labels": t.GetLabels()},
			"spec": object{
				"parallelism": t.GetParallelism(), "taskCount": t.GetTaskCount(),
				"template": object{"spec": v1TaskSpec(j.id, t.GetTemplate())},
			},
		}},
		"status": object{"conditions": v1Conditions(reason, []*runpb.Condition{c}), "observedGeneration": p.GetObservedGeneration()},
	}
}

func v1Metadata(kind, name, uid string, labels object, annotations map[string]string, created *timestamppb.Timestamp) object {
	all := map[string]string{
		"run.googleapis.com/creator": creator, "run.googleapis.com/execution-environment": "gen2",
		"run.googleapis.com/lastModifier": creator, "run.googleapis.com/operation-id": uuid.NewString(),
	}
	maps.Copy(all, annotations)
	return object{
		"annotations": all, "creationTimestamp": stamp(created), "generation": 1, "labels": labels,
		"name": name, "namespace": projectNumber, "resourceVersion": "AA" + strconv.FormatInt(time.Now().UnixNano(), 36),
		"selfLink": "/apis/run.googleapis.com/v1/namespaces/" + projectNumber + "/" + kind + "/" + name, "uid": uid,
	}
}

func v1TaskSpec(job string, t *runpb.TaskTemplate) object {
	c := t.GetContainers()[0]
	container := object{"image": c.GetImage(), "name": c.GetName(), "resources": object{"limits": c.GetResources().GetLimits()}}
	if c.GetName() == "" {
		container["name"] = job + "-1"
	}
	if len(c.GetCommand()) > 0 {
		container["command"] = c.GetCommand()
	}
	if len(c.GetArgs()) > 0 {
		container["args"] = c.GetArgs()
	}
	if c.GetWorkingDir() != "" {
		container["workingDir"] = c.GetWorkingDir()
	}
	var env []object
	for _, v := range c.GetEnv() {
		if ref := v.GetValueSource().GetSecretKeyRef(); ref != nil {
			env = append(env, object{"name": v.GetName(), "valueFrom": object{"secretKeyRef": object{"key": ref.GetVersion(), "name": ref.GetSecret()}}})
			continue
		}
		env = append(env, object{"name": v.GetName(), "value": v.GetValue()})
	}
	if env != nil {
		container["env"] = env
	}
	return object{
		"containers": []object{container}, "maxRetries": t.GetMaxRetries(), "serviceAccountName": t.GetServiceAccount(),
		"timeoutSeconds": strconv.FormatInt(t.GetTimeout().GetSeconds(), 10),
	}
}

// v1Conditions gives the reason to the condition that tells the end.
func v1Conditions(reason string, conditions []*runpb.Condition) []object {
	var out []object
	for _, c := range conditions {
		v := object{"type": c.GetType(), "lastTransitionTime": stamp(c.GetLastTransitionTime()), "status": "Unknown"}
		switch c.GetState() {
		case runpb.Condition_CONDITION_SUCCEEDED:
			v["status"] = "True"
		case runpb.Condition_CONDITION_FAILED:
			v["status"] = "False"
			v["message"] = c.GetMessage()
			if reason != "" {
				v["reason"] = reason
			}
		default:
		}
		if c.GetType() == "Retry" {
			v["message"], v["reason"], v["severity"] = c.GetMessage(), "ImmediateRetry", "Info"
		}
		out = append(out, v)
	}
	return out
}
