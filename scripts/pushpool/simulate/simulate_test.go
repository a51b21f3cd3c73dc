// gax draws its back-off from the global source, which has to be seeded for a run to repeat.
//
//go:debug randseednop=0

package simulate

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	seed      = flag.Uint64("seed", 4, "the seed of the first world; the next has the next")
	flowRuns  = flag.Int("flow-runs", 100, "how many flow runs there are in all worlds together")
	report    = flag.String("report", "", "a file that receives the summary")
	processes = flag.Int("processes", 1, "how many processes share the work")
	shard     = flag.Int("shard", 0, "which part of the worlds is simulated")
	shards    = flag.Int("shards", 1, "how many parts there are")
	first     = flag.Bool("until-failure", false, "end with the first world that fails, and do not explain it")
	shrink    = flag.Bool("shrink", true, "look for the fewest faults that bring a failure about")
	stormOf   = flag.String("storm", "", "kinds of faults that strike most often, with commas between them")
	crowd     = flag.Bool("crowd", false, "have flow runs come within seconds")
	verbose   = flag.Bool("timeline", false, "print the timeline of the first world")
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
	if n := min(*processes, (*flowRuns+worldSize-1)/worldSize); n > 1 { // no more than there are worlds
		s := inProcesses(t, n)
		s.Wall = time.Since(start).Seconds()
		tell(t, s)
		return
	}
	s, failed := Sum{Summary: Summary{Seed: *seed}}, 0
	for n := *shard; n*worldSize < *flowRuns; n += *shards {
		o := Options{Seed: *seed + uint64(n), FlowRuns: min(worldSize, *flowRuns-n*worldSize), Trace: *verbose && n == 0, Storm: kindsOf(*stormOf), Crowd: *crowd}
		w := Run(t, o)
		s.Add(w)
		s.Wall = time.Since(start).Seconds()
		if *report != "" { // each time: a long run may be ended
			write(t, *report, s)
		}
		for _, line := range w.Timeline {
			fmt.Println(line)
		}
		if len(w.Violations) == 0 {
			continue
		}
		if *first {
			t.Error(w.Violations[0])
			break
		}
		if failed++; failed > maxExplained {
			t.Errorf("seed %d failed too: %v", o.Seed, w.Violations[0])
			continue
		}
		t.Errorf("repeat with: scripts/simulate --seed %d --flow-runs %d", o.Seed, o.FlowRuns)
		explain(t, o, w)
	}
	if *shards == 1 && !*first {
		tell(t, s)
	}
}

// kindsOf reads a list of kinds.
func kindsOf(list string) (kinds []Kind) {
	for k := range strings.SplitSeq(list, ",") {
		if k != "" {
			kinds = append(kinds, Kind(k))
		}
	}
	return kinds
}

// tell prints the summary and holds the simulation to having been hard enough.
func tell(t *testing.T, s Sum) {
	t.Helper()
	t.Logf("%d steps, %d deliveries, %d of %d faults between two calls of one message", s.Steps, s.All, s.Between, s.Faults)
	if *report != "" {
		write(t, *report, s.Summary)
	}
	if s.FlowRuns < 1000 || *stormOf != "" {
		return // too few for a share to mean anything, or not meant to be even
	}
	if s.Between*3 < s.Faults {
		t.Errorf("%d of %d faults struck between two calls of one message, which is less than a third", s.Between, s.Faults)
	}
	for kind, n := range s.ByKind {
		if n*100 < s.Faults {
			t.Errorf("%d of %d faults are %s, which is less than 1 %%", n, s.Faults, kind)
		}
	}
}

// inProcesses has a number of processes simulate a part each: ids are drawn from a source that
// a process has once.
func inProcesses(t *testing.T, n int) Sum {
	t.Helper()
	reports := t.TempDir()
	var parts errgroup.Group
	for i := range n {
		parts.Go(func() error {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=0",
				fmt.Sprint("-seed=", *seed), fmt.Sprint("-flow-runs=", *flowRuns), fmt.Sprint("-shard=", i), fmt.Sprint("-shards=", n),
				fmt.Sprint("-shrink=", *shrink), fmt.Sprint("-report=", reports, "/", i))
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("part %d: %w\n%s", i, err, out)
			}
			return nil
		})
	}
	if err := parts.Wait(); err != nil {
		t.Error(err)
	}
	all := Sum{Summary: Summary{Seed: *seed}}
	for i := range n {
		data, err := os.ReadFile(fmt.Sprint(reports, "/", i))
		var s Sum
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		if err != nil {
			t.Error(err)
		}
		all.Join(s)
	}
	return all
}

func write(t *testing.T, file string, summary any) {
	t.Helper()
	data, err := json.Marshal(summary)
	if err == nil {
		err = os.WriteFile(file, append(data, '\n'), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
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
