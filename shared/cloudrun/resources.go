package cloudrun

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"

	"cloud.google.com/go/run/apiv2/runpb"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// What a container has that asks for nothing.
const (
	defaultCPU    = "1000m"
	defaultMemory = "512Mi"
)

// Resources returns what one task of the job has.
func Resources(j *runpb.Job) flowrun.Resources { return resources(j.GetTemplate().GetTemplate()) }

func resources(t *runpb.TaskTemplate) flowrun.Resources {
	var sum flowrun.Resources
	for _, c := range t.GetContainers() {
		sum = plus(sum, c.GetResources().GetLimits())
	}
	return sum
}

// plus adds a container's limits. One that cannot be read counts as nothing.
func plus(sum flowrun.Resources, limits map[string]string) flowrun.Resources {
	cpu, memory := first(limits["cpu"], defaultCPU), first(limits["memory"], defaultMemory)
	if n, ok := quantity(cpu); ok {
		sum.MilliCPU += int64(math.Round(n * 1000))
	}
	if n, ok := quantity(memory); ok {
		sum.MemoryBytes += int64(n)
	}
	return sum
}

// GrowMemory gives the job's first container, where the flow runs, twice the memory that many
// times, as far as flowrun.Resources.Grown goes.
func GrowMemory(j *runpb.Job, times int, limit int64) {
	for range times {
		has := Resources(j)
		grown, ok := has.Grown(limit)
		if !ok {
			return
		}
		c := j.GetTemplate().GetTemplate().GetContainers()[0]
		if c.Resources == nil {
			c.Resources = &runpb.ResourceRequirements{}
		}
		limits := maps.Clone(c.Resources.Limits)
		if limits == nil {
			limits = map[string]string{}
		}
		limits["memory"] = Memory(plus(flowrun.Resources{}, limits).MemoryBytes + grown - has.MemoryBytes)
		c.Resources.Limits = limits
	}
}

// Memory writes an amount of memory as Cloud Run does: in whole MiB.
func Memory(bytes int64) string { return fmt.Sprintf("%dMi", bytes>>20) }

var units = map[string]float64{
	"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}

// Quantity reads an amount as Kubernetes writes it (1000m, 0.5, 512Mi, 2Gi).
func quantity(s string) (float64, bool) {
	number := strings.TrimRight(s, "KMGTimk")
	unit, known := units[s[len(number):]]
	n, err := strconv.ParseFloat(number, 64)
	if !known || err != nil || n < 0 || math.IsInf(n, 0) || math.IsNaN(n) {
		return 0, false
	}
	return n * unit, true
}

// ParseMemory reads an amount of memory such as 512Mi or 2Gi, in bytes.
func ParseMemory(s string) (bytes int64, ok bool) {
	n, ok := quantity(s)
	return int64(n), ok && n >= 1<<20 && n <= 1<<50
}
