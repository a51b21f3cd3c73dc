// gax draws its back-off from the global source, which has to be seeded for a run to repeat.
//
//go:debug randseednop=0

package simulate

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

var (
	seed     = flag.Uint64("seed", 4, "the seed of the first world; the next has the next")
	flowRuns = flag.Int("flow-runs", 100, "how many flow runs there are in all worlds together")
	report   = flag.String("report", "", "a file that receives the summary")
	first    = flag.Bool("until-failure", false, "end with the first world that fails, and do not explain it")
	shrink   = flag.Bool("shrink", true, "look for the fewest faults that bring a failure about")
	verbose  = flag.Bool("timeline", false, "print the timeline of the first world")
)

// maxExplained is how many failed worlds are shrunk and shown in full.
const maxExplained = 1

// worldSize is how many flow runs a world has.
const worldSize = 100

func TestMain(m *testing.M) {
	flag.Parse()
	Repeatable()
	os.Exit(m.Run())
}

// TestNothingIsLostWhateverBreaks is the simulation: scripts/simulate runs it with its own numbers.
func TestNothingIsLostWhateverBreaks(t *testing.T) {
	start := time.Now()
	s, failed := Summary{Seed: *seed}, 0
	for n := uint64(0); s.FlowRuns < *flowRuns; n++ {
		o := Options{Seed: *seed + n, FlowRuns: min(worldSize, *flowRuns-s.FlowRuns), Trace: *verbose && n == 0}
		w := Run(t, o)
		s.Add(w)
		for _, line := range w.Timeline {
			fmt.Println(line)
		}
		if len(w.Violations) > 0 && *first {
			t.Error(w.Violations[0])
			break
		}
		if len(w.Violations) > 0 {
			failed++
			if failed > maxExplained {
				t.Errorf("seed %d failed too: %v", o.Seed, w.Violations[0])
				continue
			}
			t.Errorf("repeat with: scripts/simulate --seed %d --flow-runs %d", o.Seed, o.FlowRuns)
			explain(t, o, w)
		}
	}
	s.Wall = time.Since(start).Seconds()
	t.Logf("%d steps, %d deliveries, %d of %d faults between two calls of one message", s.steps, s.all, s.between, s.Faults)
	if *report != "" {
		if err := write(*report, s); err != nil {
			t.Error(err)
		}
	}
}

func write(file string, s Summary) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o600)
}

// explain prints what went wrong, the fewest faults that bring it about, and what happened then.
func explain(t *testing.T, o Options, w World) {
	t.Helper()
	for _, v := range w.Violations {
		t.Errorf("seed %d: %s", o.Seed, v)
	}
	if *shrink {
		t.Log(Shrink(t, o, w))
	}
}

// TestARunRepeatsExactly holds that the same seed brings about the same steps at the same
// times, and the same log lines of the functions.
func TestARunRepeatsExactly(t *testing.T) {
	o := Options{Seed: *seed, FlowRuns: 50, Trace: true}
	first, second := Run(t, o), Run(t, o)
	for n, line := range first.Timeline {
		if n == len(second.Timeline) || line != second.Timeline[n] {
			t.Fatalf("seed %d, line %d of %d, then of %d:\n%s\n%s", o.Seed, n, len(first.Timeline), len(second.Timeline), line, slices.Concat(second.Timeline, []string{"nothing"})[n])
		}
	}
	if other := Run(t, Options{Seed: o.Seed + 1, FlowRuns: 50}); other.Hash == first.Hash || first.Hash != second.Hash {
		t.Errorf("seed %d: %x, again %x, another seed: %x", o.Seed, first.Hash, second.Hash, other.Hash)
	}
}

// TestACalmWorldIsAtRest holds that without faults every flow run ends as its container does.
func TestACalmWorldIsAtRest(t *testing.T) {
	w := Run(t, Options{Seed: *seed, FlowRuns: worldSize, Calm: true})
	for _, v := range w.Violations {
		t.Error(v)
	}
	if w.Faulted > 0 || w.FlowRuns != worldSize {
		t.Errorf("%d faults, %d flow runs", w.Faulted, w.FlowRuns)
	}
}
