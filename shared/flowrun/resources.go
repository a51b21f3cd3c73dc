package flowrun

import "time"

// Resources are what one task of an execution has.
type Resources struct {
	MilliCPU    int64 `firestore:"milliCPU"`    // 1000 are one vCPU
	MemoryBytes int64 `firestore:"memoryBytes"` // of all its containers
}

// List prices of Cloud Run jobs in US dollars, of the cheaper regions (tier 1), without
// discounts and free amounts, GPUs and network
// (https://cloud.google.com/run/pricing, as of November 2026).
const (
	dollarsPerVCPUSecond = 0.000018
	dollarsPerGiBSecond  = 0.000002
)

// Usage is what an execution used, and an estimate of what that costs at list price.
type Usage struct {
	VCPUSeconds, GiBSeconds, Dollars float64
}

// Used returns the usage of one task that ran for the duration.
func (r Resources) Used(d time.Duration) Usage {
	u := Usage{
		VCPUSeconds: float64(r.MilliCPU) / 1000 * d.Seconds(),
		GiBSeconds:  float64(r.MemoryBytes) / (1 << 30) * d.Seconds(),
	}
	u.Dollars = u.VCPUSeconds*dollarsPerVCPUSecond + u.GiBSeconds*dollarsPerGiBSecond
	return u
}

// memoryOf is the most memory that so much CPU may have on Cloud Run
// (https://cloud.google.com/run/docs/configuring/jobs/memory-limits).
func memoryOf(milliCPU int64) int64 {
	const gib = 1 << 30
	for _, row := range []struct{ milliCPU, most int64 }{
		{8000, 32 * gib}, {6000, 24 * gib}, {4000, 16 * gib}, {2000, 8 * gib},
	} {
		if milliCPU >= row.milliCPU {
			return row.most
		}
	}
	return 4 * gib
}

// Grown returns the memory of a task's next launch after it ran out: twice as much, at most
// the limit and what Cloud Run gives to its CPU. ok is false where that is not more.
func (r Resources) Grown(limit int64) (bytes int64, ok bool) {
	bytes = min(2*r.MemoryBytes, limit, memoryOf(r.MilliCPU))
	return bytes, r.MemoryBytes > 0 && bytes > r.MemoryBytes
}
