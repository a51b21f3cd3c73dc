package cloudruntest

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Limits of Cloud Run (https://cloud.google.com/run/quotas and the API's own texts).
const (
	maxJobID      = 63
	maxLabels     = 64
	maxEnv        = 1000
	maxEnvLength  = 32768
	maxTasks      = 10000
	maxRetries    = 10
	maxTimeout    = 7 * 24 * time.Hour
	defaultTime   = 10 * time.Minute
	defaultTries  = 3 // max_retries of a template that says nothing
	missingSuffix = "/missing"
)

var (
	jobID       = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)
	startToken  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	labelKey    = regexp.MustCompile(`^[\p{Ll}\p{Lo}][\p{Ll}\p{Lo}\p{N}_-]{0,62}$`)
	labelValue  = regexp.MustCompile(`^[\p{Ll}\p{Lo}\p{N}_-]{0,63}$`)
	reservedEnv = []string{"CLOUD_RUN_EXECUTION", "CLOUD_RUN_JOB", "CLOUD_RUN_TASK_ATTEMPT", "CLOUD_RUN_TASK_COUNT", "CLOUD_RUN_TASK_INDEX"}
	// reservedSpaces may hold neither labels nor annotations of users.
	reservedSpaces = []string{"run.googleapis.com/", "cloud.googleapis.com/", "serving.knative.dev/", "autoscaling.knative.dev/"}
)

func invalid(field, format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, "Violation in %s: %s", field, fmt.Sprintf(format, args...))
}

// parent splits projects/P/locations/R and refuses regions that do not exist.
func (s *Server) parent(name string) (project, region string, err error) {
	p := strings.Split(name, "/")
	if len(p) != 4 || p[0] != "projects" || p[2] != "locations" || slices.Contains(p, "") {
		return "", "", status.Errorf(codes.InvalidArgument, "Invalid resource parent %q: expected projects/PROJECT/locations/LOCATION.", name)
	}
	if len(s.options.Regions) > 0 && !slices.Contains(s.options.Regions, p[3]) {
		return "", "", status.Errorf(codes.PermissionDenied, "Permission denied on 'locations/%s' (or it may not exist).", p[3])
	}
	return p[1], p[3], nil
}

func checkJobID(id, token string) error {
	if len(id) > maxJobID || !jobID.MatchString(id) {
		return invalid("job.metadata.name", "%q: must use only lowercase alphanumeric characters and dashes, cannot begin or end with a dash, must begin with a letter, and cannot be longer than 63 characters.", id)
	}
	if token == "" {
		return nil
	}
	if !startToken.MatchString(token) {
		return invalid("job.start_execution_token", "%q: must use only lowercase alphanumeric characters and dashes, and cannot begin or end with a dash.", token)
	}
	if len(id)+len(token) >= maxJobID {
		return invalid("job.start_execution_token", "the sum of job name and token length must be fewer than 63 characters, it is %d.", len(id)+len(token))
	}
	return nil
}

// checkJob refuses what Cloud Run would refuse of a job's own fields.
func checkJob(j *runpb.Job) error {
	t := j.GetTemplate()
	task := t.GetTemplate()
	if err := checkLabels("job.labels", j.GetLabels(), j.GetAnnotations()); err != nil {
		return err
	}
	if err := checkLabels("job.template.labels", t.GetLabels(), t.GetAnnotations()); err != nil {
		return err
	}
	switch timeout := task.GetTimeout(); {
	case t.GetTaskCount() < 0 || t.GetTaskCount() > maxTasks:
		return invalid("job.template.task_count", "must be between 1 and %d.", maxTasks)
	case t.GetParallelism() < 0:
		return invalid("job.template.parallelism", "must not be negative.")
	case task.GetMaxRetries() < 0 || task.GetMaxRetries() > maxRetries:
		return invalid("job.template.template.max_retries", "must be between 0 and %d.", maxRetries)
	case timeout != nil && (timeout.AsDuration() <= 0 || timeout.AsDuration() > maxTimeout):
		return invalid("job.template.template.timeout", "must be more than 0s and at most %ds.", int(maxTimeout.Seconds()))
	case task.GetExecutionEnvironment() == runpb.ExecutionEnvironment_EXECUTION_ENVIRONMENT_GEN1:
		return invalid("job.template.template.execution_environment", "'gen1' is not supported on resources of kind Execution.")
	case len(task.GetContainers()) == 0:
		return invalid("job.template.template.containers", "must contain at least one container.")
	case len(task.GetContainers()) > 1:
		return status.Error(codes.Unimplemented, "The emulator runs jobs of one container only.")
	}
	c := task.GetContainers()[0]
	if c.GetImage() == "" {
		return invalid("job.template.template.containers[0].image", "must not be empty.")
	}
	if err := checkEnv(c.GetEnv()); err != nil {
		return err
	}
	return checkResources(c.GetResources().GetLimits())
}

func checkLabels(field string, labels, annotations map[string]string) error {
	for _, space := range reservedSpaces {
		for _, key := range slices.Sorted(maps.Keys(labels)) {
			if strings.HasPrefix(key, space) {
				return invalid(field, "label %q: the namespace is reserved for system labels.", key)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(annotations)) {
			if strings.HasPrefix(key, space) {
				return invalid(field, "annotation %q: the namespace is reserved for system annotations.", key)
			}
		}
	}
	if len(labels) > maxLabels {
		return invalid(field, "%d labels, at most %d are allowed.", len(labels), maxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if !labelKey.MatchString(key) {
			return invalid(field, "label key %q: must start with a lowercase letter and hold at most 63 lowercase letters, digits, underscores and dashes.", key)
		}
		if !labelValue.MatchString(labels[key]) {
			return invalid(field, "value %q of label %s: must hold at most 63 lowercase letters, digits, underscores and dashes.", labels[key], key)
		}
	}
	return nil
}

func checkEnv(env []*runpb.EnvVar) error {
	const field = "job.template.template.containers[0].env"
	if len(env) > maxEnv {
		return invalid(field, "%d variables, at most %d are allowed.", len(env), maxEnv)
	}
	seen := map[string]bool{}
	for _, v := range env {
		switch ref := v.GetValueSource().GetSecretKeyRef(); {
		case v.GetName() == "" || strings.ContainsAny(v.GetName(), "=\x00"):
			return invalid(field, "%q is no name of a variable.", v.GetName())
		case len(v.GetName()) > maxEnvLength || len(v.GetValue()) > maxEnvLength:
			return invalid(field, "name and value of %.40s must be at most %d characters.", v.GetName(), maxEnvLength)
		case seen[v.GetName()]:
			return invalid(field, "the name %s is not unique.", v.GetName())
		case slices.Contains(reservedEnv, v.GetName()):
			return invalid(field, "The following reserved env names were provided: %s. These values are automatically set by the system.", v.GetName())
		case v.GetValueSource() != nil && ref.GetSecret() == "":
			return invalid(field, "%s names no secret.", v.GetName())
		}
		seen[v.GetName()] = true
	}
	return nil
}

// checkResources holds CPU and memory to each other, as
// https://cloud.google.com/run/docs/configuring/jobs/cpu and …/memory-limits state.
func checkResources(limits map[string]string) error {
	const field = "job.template.template.containers[0].resources.limits"
	cpu, err := quantity(limits["cpu"], 1)
	if err != nil || !slices.Contains([]float64{1, 2, 4, 6, 8}, cpu) {
		return invalid(field+".cpu", "Invalid value specified for cpu. %q must be one of 1, 2, 4, 6, 8.", limits["cpu"])
	}
	memory, err := quantity(limits["memory"], 512<<20)
	const gi = 1 << 30
	if err != nil || memory < 512<<20 || memory > 32*gi {
		return invalid(field+".memory", "Invalid value specified for memory. %q must be between 512Mi and 32Gi.", limits["memory"])
	}
	for _, rule := range [...]struct{ memory, cpu float64 }{{24 * gi, 8}, {16 * gi, 6}, {8 * gi, 4}, {4 * gi, 2}} {
		if memory > rule.memory && cpu < rule.cpu {
			return invalid(field+".memory", "Invalid value specified for memory. For %s memory, cpu must be at least %v.", limits["memory"], rule.cpu)
		}
	}
	if least := map[float64]float64{4: 2 * gi, 6: 4 * gi, 8: 4 * gi}[cpu]; memory < least {
		return invalid(field+".cpu", "Invalid value specified for cpu. For %v cpu, memory must be at least %vGi.", cpu, least/gi)
	}
	return nil
}

// quantity reads a Kubernetes quantity, as far as CPU and memory use them.
func quantity(s string, unset float64) (float64, error) {
	if s == "" {
		return unset, nil
	}
	scale := 1.0
	for suffix, factor := range map[string]float64{"m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30} {
		if number, found := strings.CutSuffix(s, suffix); found {
			s, scale = number, factor
			break
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	return n * scale, err
}

// unstartable returns why the job can never start its execution; nil where it can.
func (s *Server) unstartable(project string, j *runpb.Job) *runpb.Condition {
	c := j.GetTemplate().GetTemplate().GetContainers()[0]
	failed := func(reason runpb.Condition_CommonReason, message string) *runpb.Condition {
		return &runpb.Condition{
			Type: "Ready", State: runpb.Condition_CONDITION_FAILED, Severity: runpb.Condition_ERROR,
			Message: message, Reasons: &runpb.Condition_Reason{Reason: reason},
		}
	}
	image, _, _ := strings.Cut(c.GetImage(), "@")
	if dir, last := path.Split(image); strings.Contains(last, ":") {
		last, _, _ = strings.Cut(last, ":")
		image = dir + last
	}
	if strings.HasSuffix(image, missingSuffix) {
		return failed(runpb.Condition_CONTAINER_MISSING, fmt.Sprintf("Image '%s' not found.", c.GetImage()))
	}
	if len(c.GetCommand()) == 0 && len(s.options.Entrypoint) == 0 {
		return failed(runpb.Condition_CONTAINER_MISSING,
			fmt.Sprintf("Image '%s' not found: the container has no command, and the emulator knows no entrypoint of the image.", c.GetImage()))
	}
	for i, v := range c.GetEnv() {
		ref := v.GetValueSource().GetSecretKeyRef()
		if ref == nil {
			continue
		}
		name := path.Base(ref.GetSecret())
		if _, found := s.options.Secrets[name]; !found && !slices.Contains(s.options.DisabledSecrets, name) {
			return failed(runpb.Condition_SECRETS_ACCESS_CHECK_FAILED, fmt.Sprintf(
				"spec.template.spec.template.spec.containers[0].env[%d].value_from.secret_key_ref.name: Secret %s was not found", i, secretVersion(project, ref)))
		}
	}
	return nil
}

func secretVersion(project string, ref *runpb.SecretKeySelector) string {
	version := ref.GetVersion()
	if version == "" {
		version = "latest"
	}
	return fmt.Sprintf("projects/%s/secrets/%s/versions/%s", project, path.Base(ref.GetSecret()), version)
}
