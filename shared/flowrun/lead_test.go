package flowrun_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

func TestLearnALead(t *testing.T) {
	const s = time.Second
	for rule, tt := range map[string]struct {
		lead            time.Duration
		claimed, starts time.Duration // after it was due
		want            time.Duration
	}{
		"the first start is learned from at once":                {0, 0, 6 * s, 6250 * time.Millisecond},
		"a flow run that nobody expected tells as much":          {4 * s, 3 * s, 11 * s, 8250 * time.Millisecond},
		"launched early and late all the same: longer":           {4 * s, -4 * s, 3 * s, 7250 * time.Millisecond},
		"launched early and on time: a little shorter":           {4 * s, -4 * s, 100 * time.Millisecond, 3980 * time.Millisecond},
		"launched late and fast: a little shorter":               {4 * s, s, 2 * s, 3980 * time.Millisecond},
		"a start that lasts for ever does not count for more":    {4 * s, 0, time.Hour, flowrun.MaxLead},
		"at the longest lead, late again: nothing to be learned": {flowrun.MaxLead, -flowrun.MaxLead, 9 * s, flowrun.MaxLead},
		"RUNNING before it was claimed is another launch's":      {4 * s, 0, -s, 4 * s},
	} {
		t.Run(rule, func(t *testing.T) {
			got := flowrun.Lead(tt.lead).Learn(now, now.Add(tt.claimed), now.Add(tt.starts))
			if time.Duration(got) != tt.want {
				t.Errorf("%s, want %s", time.Duration(got), tt.want)
			}
		})
	}
	for _, unknown := range [][3]time.Time{{{}, now, now.Add(s)}, {now, {}, now.Add(s)}, {now, now, {}}} {
		if got := flowrun.Lead(s).Learn(unknown[0], unknown[1], unknown[2]); got != flowrun.Lead(s) {
			t.Errorf("learned %s from %v", time.Duration(got), unknown)
		}
	}
}

func TestALeadIsNeverTooLong(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l flowrun.Lead
		for range rapid.IntRange(1, 50).Draw(t, "starts") {
			claimed := now.Add(time.Duration(rapid.IntRange(-40, 40).Draw(t, "claimed")) * time.Second)
			l = l.Learn(now, claimed, claimed.Add(time.Duration(rapid.IntRange(-5, 100).Draw(t, "start"))*time.Second))
			before := now.Sub(l.Before(now))
			if l < 0 || time.Duration(l) > flowrun.MaxLead || before < time.Duration(l) || before-time.Duration(l) >= time.Second || before%time.Second != 0 {
				t.Fatalf("lead %s, launched %s before", time.Duration(l), before)
			}
		}
	})
}

// Once the lead is learned, 95 % of the flow runs start within a second of their time, whatever
// their containers take; with the rare slow start and a change of the image as well.
func TestFlowRunsStartOnTime(t *testing.T) {
	uniform := func(from, to float64) func(*rand.Rand, int) float64 {
		return func(r *rand.Rand, _ int) float64 { return from + r.Float64()*(to-from) }
	}
	for name, start := range map[string]func(r *rand.Rand, n int) float64{ // seconds
		"2 to 20 s":            uniform(2, 20),
		"2 to 3 s":             uniform(2, 3),
		"15 to 20 s":           uniform(15, 20),
		"around 8 s":           func(r *rand.Rand, _ int) float64 { return min(20, max(2, 8+2*r.NormFloat64())) },
		"mostly 4 s, some 18":  func(r *rand.Rand, n int) float64 { return 4 + r.Float64() + 13*float64(btoi(n%12 == 0)) },
		"a faster image later": func(r *rand.Rand, n int) float64 { return 3 + r.Float64() + 12*float64(btoi(n < 500)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			var lead flowrun.Lead
			var off []time.Duration
			var idle time.Duration
			for n := range 2000 {
				due := now.Add(time.Duration(n) * time.Minute)
				// The timer fires a little late, and the claim takes its time.
				claimed := lead.Before(due).Add(time.Duration(r.IntN(400)) * time.Millisecond)
				ready := claimed.Add(time.Duration(start(r, n) * float64(time.Second)))
				running := ready
				if ready.Before(due) {
					running = due.Add(time.Duration(r.IntN(200)) * time.Millisecond)
					idle += due.Sub(ready)
				}
				if n >= 20 {
					off = append(off, running.Sub(due))
				}
				lead = lead.Learn(due, claimed, running)
			}
			slices.Sort(off)
			p95 := off[len(off)*95/100]
			t.Logf("|RUNNING - due| p50 %s, p95 %s, max %s; waiting in the container %s on average",
				off[len(off)/2], p95, off[len(off)-1], (idle / 2000).Round(time.Millisecond))
			if p95 >= time.Second {
				t.Errorf("p95 of |RUNNING - due| is %s", p95)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
