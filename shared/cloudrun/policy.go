package cloudrun

import (
	"fmt"
	"regexp"
	"strconv"
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
	// CPU, in thousandths, and Memory, in bytes, are what all containers of one task together
	// may have; Timeout is of one attempt.
	CPU, Memory int64
	Timeout     time.Duration
}

// Cloud Run's defaults for what a job does not say.
const (
	defaultCPU     = 1000
	defaultMemory  = 512 << 20
	defaultTimeout = 10 * time.Minute
)

// Permits returns the first rule that the job breaks, with its value, as a Permanent error.
// Every container counts, those beside the flow's as well.
func (p Policy) Permits(job *runpb.Job) error {
	task := job.GetTemplate().GetTemplate()
	var cpu, memory int64
	for _, c := range task.GetContainers() {
		if !matches(p.Images, c.GetImage()) {
			return forbidden("image", fmt.Sprintf("%q", c.GetImage()), strings.Join(p.Images, ", "))
		}
		limits := c.GetResources().GetLimits()
		n, err := quantity(limits["cpu"], defaultCPU, 1000)
		if err != nil && p.CPU > 0 {
			return forbidden("cpu", fmt.Sprintf("%q, which cannot be read", limits["cpu"]), fmt.Sprintf("at most %dm", p.CPU))
		}
		m, err := quantity(limits["memory"], defaultMemory, 1)
		if err != nil && p.Memory > 0 {
			return forbidden("memory", fmt.Sprintf("%q, which cannot be read", limits["memory"]), fmt.Sprintf("at most %d MiB", p.Memory>>20))
		}
		cpu, memory = cpu+n, memory+m
	}
	timeout := defaultTimeout
	if task.GetTimeout() != nil {
		timeout = task.GetTimeout().AsDuration()
	}
	switch account := task.GetServiceAccount(); {
	case !matches(p.ServiceAccounts, account):
		if account == "" {
			return forbidden("service account", "none, which is the project's default one", strings.Join(p.ServiceAccounts, ", "))
		}
		return forbidden("service account", fmt.Sprintf("%q", account), strings.Join(p.ServiceAccounts, ", "))
	case p.CPU > 0 && cpu > p.CPU:
		return forbidden("cpu", fmt.Sprintf("%dm in all containers", cpu), fmt.Sprintf("at most %dm", p.CPU))
	case p.Memory > 0 && memory > p.Memory:
		return forbidden("memory", fmt.Sprintf("%d MiB in all containers", memory>>20), fmt.Sprintf("at most %d MiB", p.Memory>>20))
	case p.Timeout > 0 && timeout > p.Timeout:
		return forbidden("timeout", timeout.String(), "at most "+p.Timeout.String())
	}
	return nil
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

// factors are the suffixes of Kubernetes' quantities that Cloud Run takes.
var factors = []struct {
	suffix string
	factor float64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"m", 1e-3},
}

// quantity reads a quantity such as 2, 500m or 4Gi in units of 1/scale.
func quantity(s string, absent int64, scale float64) (int64, error) {
	if s == "" {
		return absent, nil
	}
	for _, f := range factors {
		if number, ok := strings.CutSuffix(s, f.suffix); ok {
			s, scale = number, scale*f.factor
			break
		}
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || v < 0 || v*scale > 1e18 {
		return 0, fmt.Errorf("%q is no quantity", s)
	}
	return int64(v * scale), nil
}

// ParseCPU reads the policy's CPU: a number of CPUs, such as 4 or 500m.
func ParseCPU(s string) (int64, error) { return quantity(s, 0, 1000) }

// ParseMemory reads the policy's memory, such as 8Gi.
func ParseMemory(s string) (int64, error) { return quantity(s, 0, 1) }
