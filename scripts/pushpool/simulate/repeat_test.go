//go:build !race

// The race detector has goroutines run in random order.

package simulate

import (
	"slices"
	"testing"
)

// TestARunRepeatsExactly holds that the same seed brings about the same steps at the same
// times, and the same log lines of the functions.
func TestARunRepeatsExactly(t *testing.T) {
	o := Options{Seed: *seed, FlowRuns: 50, Trace: true}
	var first, second World
	for range 3 { // on a busy machine a goroutine that ran for 10 ms may have been interrupted
		if first, second = Run(t, o), Run(t, o); slices.Equal(first.Timeline, second.Timeline) {
			break
		}
	}
	for n, line := range first.Timeline {
		if n == len(second.Timeline) || line != second.Timeline[n] {
			t.Fatalf("seed %d, line %d of %d, then of %d:\n%s\n%s", o.Seed, n, len(first.Timeline), len(second.Timeline), line, slices.Concat(second.Timeline, []string{"nothing"})[n])
		}
	}
	if other := Run(t, Options{Seed: o.Seed + 1, FlowRuns: 50}); other.Hash == first.Hash || first.Hash != second.Hash {
		t.Errorf("seed %d: %x, again %x, another seed: %x", o.Seed, first.Hash, second.Hash, other.Hash)
	}
}
