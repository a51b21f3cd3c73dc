package simulate

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// maxTries bounds the runs that go into shrinking one schedule.
const maxTries = 400

// maxTime bounds the time for it.
const maxTime = 3 * time.Minute

// Shrunk is a failing world with as few flow runs and faults as were found to bring it about.
type Shrunk struct {
	World
	Tries int
}

// Shrink looks for the smallest part of a failing world that fails in the same way.
func Shrink(t *testing.T, o Options, failed World) Shrunk {
	t.Helper()
	want := failed.Violations[0].Counter
	best, start := Shrunk{World: failed}, time.Now()
	fails := func(o Options) bool {
		if best.Tries == maxTries || time.Since(start) > maxTime {
			return false
		}
		best.Tries++
		w := Run(t, o)
		if !slices.ContainsFunc(w.Violations, func(v Violation) bool { return v.Counter == want }) {
			return false
		}
		best.World = w
		return true
	}
	var all []string
	for n := range o.FlowRuns {
		all = append(all, fmt.Sprintf("fr-%d", n))
	}
	o.only = set(failed.Schedule)
	flowRuns := func(kept []string) bool {
		without := set(all)
		for _, label := range kept {
			delete(without, label)
		}
		n := o
		n.without = without
		if !fails(n) {
			return false
		}
		o = n
		return true
	}
	strikes := func(kept []string) bool {
		n := o
		n.only = set(kept)
		if !fails(n) {
			return false
		}
		o = n
		return true
	}
	// Mostly it takes what is about the flow run that it happened to, and no other.
	label := failed.Violations[0].FlowRun
	if left := []string{label}; label == "" || !flowRuns(left) {
		smaller(all, flowRuns)
	}
	schedule := best.Schedule
	of := regexp.MustCompile(`\b` + label + `\b`)
	if about := slices.DeleteFunc(slices.Clone(schedule), func(name string) bool { return !of.MatchString(name) }); strikes(about) {
		schedule = about
	}
	smaller(schedule, strikes)
	o.Trace = true
	best.World = Run(t, o)
	return best
}

// smaller tries to leave out parts, large ones first (delta debugging).
func smaller(all []string, holds func(kept []string) bool) {
	for size := (len(all) + 1) / 2; size > 0 && len(all) > 1; {
		left := false
		for from := 0; from < len(all); {
			kept := slices.Concat(all[:from], all[min(from+size, len(all)):])
			if holds(kept) {
				all, left = kept, true
			} else {
				from += size
			}
		}
		if !left || size > 1 {
			size /= 2
		}
	}
}

func set(names []string) map[string]bool {
	s := map[string]bool{}
	for _, n := range names {
		s[n] = true
	}
	return s
}

// String describes the schedule and what happened.
func (s Shrunk) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "shrunk in %d runs to %d flow runs and %d faults:\n", s.Tries, s.FlowRuns, len(s.Schedule))
	about := map[string]bool{}
	for _, v := range s.Violations {
		fmt.Fprintf(&b, "  %s\n", v)
		about[v.FlowRun] = true
	}
	for _, line := range s.Timeline {
		head, _, _ := strings.Cut(strings.TrimSpace(line[min(13, len(line)):]), " ")
		if head == "step" || head == "log" {
			continue
		}
		if head == "FAULT" || s.FlowRuns < 4 || slices.ContainsFunc(s.Violations, func(v Violation) bool { return v.FlowRun == "" || strings.Contains(line, v.FlowRun) }) {
			b.WriteString(line[:min(len(line), 240)] + "\n")
		}
	}
	return b.String()
}
