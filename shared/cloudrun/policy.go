package cloudrun

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Policy is what an installation lets flow runs ask for: without one, whoever may create a
// flow run may choose its image and its service account. What is zero allows everything.
// Regions are the installation's; GPUs are not limited.
type Policy struct {
	// Images and ServiceAccounts are patterns of which one has to match the whole of it: * is
	// any text without a slash, ** is any text. A job without a service account would get the
	// project's default one, and is refused where there are patterns.
	Images, ServiceAccounts []string
	// MilliCPU and Memory, in bytes, are what all containers of one task together may have;
	// Timeout is of one attempt.
	MilliCPU, Memory int64
	Timeout          time.Duration
}

// defaultTimeout is a task's that sets none.
const defaultTimeout = 10 * time.Minute

// Permits returns the first rule that the job breaks, with its value, as a Permanent error.
// Every container counts, those beside the flow's as well.
func (p Policy) Permits(job *runpb.Job) error {
	task := job.GetTemplate().GetTemplate()
	for _, c := range task.GetContainers() {
		if !matches(p.Images, c.GetImage()) {
			return forbidden("image", fmt.Sprintf("%q", c.GetImage()), strings.Join(p.Images, ", "))
		}
		// What cannot be read would count as nothing.
		for name, most := range map[string]int64{"cpu": p.MilliCPU, "memory": p.Memory} {
			limit, set := c.GetResources().GetLimits()[name]
			if _, ok := quantity(limit); most > 0 && set && !ok {
				return forbidden(name, fmt.Sprintf("%q, which cannot be read", limit), p.most(name))
			}
		}
	}
	timeout := defaultTimeout
	if task.GetTimeout() != nil {
		timeout = task.GetTimeout().AsDuration()
	}
	has := resources(task)
	switch account := task.GetServiceAccount(); {
	case !matches(p.ServiceAccounts, account):
		if account == "" {
			return forbidden("service account", "none, which is the project's default one", strings.Join(p.ServiceAccounts, ", "))
		}
		return forbidden("service account", fmt.Sprintf("%q", account), strings.Join(p.ServiceAccounts, ", "))
	case p.MilliCPU > 0 && has.MilliCPU > p.MilliCPU:
		return forbidden("cpu", fmt.Sprintf("%dm in all containers", has.MilliCPU), p.most("cpu"))
	case p.Memory > 0 && has.MemoryBytes > p.Memory:
		return forbidden("memory", Memory(has.MemoryBytes)+" in all containers", p.most("memory"))
	case p.Timeout > 0 && timeout > p.Timeout:
		return forbidden("timeout", timeout.String(), "at most "+p.Timeout.String())
	}
	return nil
}

func (p Policy) most(name string) string {
	if name == "cpu" {
		return fmt.Sprintf("at most %dm", p.MilliCPU)
	}
	return "at most " + Memory(p.Memory)
}

func forbidden(rule, value, allowed string) error {
	return &flowrun.Error{
		Fault: flowrun.Permanent, Act: "apply this installation's policy", Err: fmt.Errorf("%s: it is %s", rule, value),
		Hint: fmt.Sprintf("allowed: %s; change the job variable or the work pool's base job template, or have the policy changed", allowed),
	}
}

// matches reports whether one of the patterns matches, or there are none.
func matches(patterns []string, s string) bool {
	for _, p := range patterns {
		expression := regexp.QuoteMeta(p)
		expression = strings.ReplaceAll(expression, `\*\*`, `.*`)
		expression = strings.ReplaceAll(expression, `\*`, `[^/]*`)
		if regexp.MustCompile(`^(?s:` + expression + `)$`).MatchString(s) {
			return true
		}
	}
	return len(patterns) == 0
}

// ParseCPU reads a number of CPUs such as 4 or 500m, in thousandths.
func ParseCPU(s string) (milli int64, ok bool) {
	n, ok := quantity(s)
	return int64(math.Round(n * 1000)), ok && n > 0 && n < 1e6
}
