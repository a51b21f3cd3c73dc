package simulate

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var crashPoints = flag.String("crash-points", "some", "where to kill: at all calls, at one of each kind, or at some")

// crashWorld is a small installation at rest around it, in which every function has all to do
// that it ever does: each way in which a flow run comes, ends, is cancelled and retried.
func crashWorld() Options {
	return Options{Seed: 77, FlowRuns: 24, Calm: true, scripted: true}
}

// point is a call of a function, and what it is a call of.
type point struct{ function, name, kind string }

// TestEveryCallCanBeTheLast kills a function before each of its calls, and after its last one;
// then once more where it comes to the same call again.
func TestEveryCallCanBeTheLast(t *testing.T) {
	start := time.Now()
	var points []point
	kinds := map[string]int{}
	o := crashWorld()
	o.crash = func(function, name, what string) bool {
		p := point{function, name, function + " " + kindOf(what)}
		points = append(points, p)
		kinds[p.kind]++
		return false
	}
	if w := Run(t, o); len(w.Violations) > 0 {
		t.Fatal(w.Violations[0])
	}
	simulations := 0
	seen := map[string]bool{}
	for n, p := range points {
		first := !seen[p.kind]
		seen[p.kind] = true
		switch *crashPoints {
		case "all":
			if n%*shards != *shard {
				continue
			}
		case "kinds":
			if !first {
				continue
			}
		default:
			if !first || len(seen)%8 != 1 {
				continue
			}
		}
		for _, times := range []int{1, 2} {
			left := times
			o := crashWorld()
			o.crash = func(function, name, what string) bool {
				if left > 0 && (left < times || name == p.name) && function == p.function && function+" "+kindOf(what) == p.kind {
					left--
					return true
				}
				return false
			}
			w := Run(t, o)
			simulations++
			if left == times {
				t.Errorf("%s was not reached again: a run does not repeat", p.name)
			}
			for _, v := range w.Violations {
				t.Errorf("killed %d times at %s: %s", times, p.name, v)
			}
		}
	}
	all := make([]string, 0, len(kinds))
	for kind := range kinds {
		all = append(all, kind)
	}
	slices.Sort(all)
	if *crashPoints == "all" {
		for _, kind := range all {
			fmt.Printf("%6d  %s\n", kinds[kind], kind)
		}
	}
	fmt.Printf("%d crash points of %d kinds, %d simulations with a kill or two, %.0f s\n", len(points), len(kinds), simulations, time.Since(start).Seconds())
	for _, function := range []string{"webhook", "dispatcher", "finalizer", "reconciler"} {
		if !slices.ContainsFunc(all, func(kind string) bool { return strings.HasPrefix(kind, function+" ") }) {
			t.Errorf("%s makes no call in this world", function)
		}
	}
}

// kindOf is what a call is of, without whose it is.
func kindOf(what string) string {
	fields := strings.Fields(what)
	if len(fields) < 2 {
		return what
	}
	switch {
	case strings.HasPrefix(fields[1], "/api/"):
		parts := strings.Split(fields[1], "/")
		for i, p := range parts {
			if strings.HasPrefix(p, "fr-") || p == free || p == limited {
				parts[i] = "*"
			}
		}
		return fields[0] + " " + strings.Join(parts, "/")
	case fields[0] == "ledger":
		return strings.Join(fields[:2], " ")
	}
	return fields[0]
}
