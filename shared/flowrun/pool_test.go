package flowrun_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Whoever is refused the admission relies on the holder to ask again. Until somebody has
// begun to ask after that, the pool must remember it, and the holder must not leave.
func TestAPoolNeverLosesThatItHasToBeAskedAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, at, owed := flowrun.Pool{Name: "p", Gate: flowrun.Gate{Waits: true}}, now, false
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			holder := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "holder")
			from := p
			if g, wake := p.Freed(at); rapid.Bool().Draw(t, "freed") {
				held := from.LeaseHolder != "" && at.Before(from.LeaseUntil)
				if p.Gate, owed = g, owed || held; wake != (!held && from.Waits) {
					t.Fatalf("a slot came free and wake is %t", wake)
				}
			} else if rapid.Bool().Draw(t, "admit") {
				var granted bool
				p.Gate, granted = p.Admit(holder, at.Add(time.Minute), at)
				owed = !granted
				if granted && from.LeaseHolder != "" && from.LeaseHolder != holder && at.Before(from.LeaseUntil) {
					t.Fatalf("%s was admitted beside %s", holder, from.LeaseHolder)
				}
				if !granted && p.LeaseHolder != from.LeaseHolder {
					t.Fatalf("%s was refused and took the lease of %s", holder, from.LeaseHolder)
				}
			} else {
				var left bool
				p.Gate, left = p.Leave(holder)
				switch {
				case from.LeaseHolder != holder:
					if diff := cmp.Diff(from, p); diff != "" || !left {
						t.Fatalf("%s, which holds nothing, changed the pool: %s", holder, diff)
					}
				case left && owed:
					t.Fatalf("%s left although it has to ask again", holder)
				case !left && !owed:
					t.Fatalf("%s has to ask again for nobody", holder)
				default:
					owed = false // it left, or begins to ask again
				}
			}
			if p.Again != owed {
				t.Fatalf("again is %t, want %t", p.Again, owed)
			}
		}
	})
}

func TestReleaseGivesTheAdmissionBackWhateverWasAsked(t *testing.T) {
	free := flowrun.Pool{Name: "p", HeartbeatAt: now}
	held := free
	held.LeaseHolder, held.LeaseUntil, held.Again = "a", now.Add(time.Minute), true
	for name, tt := range map[string]struct {
		holder string
		want   flowrun.Pool
	}{
		"the holder's lease is over, and nothing is owed": {"a", free},
		"another's lease is left alone":                   {"b", held},
		"nobody holds it by no name":                      {"", held},
	} {
		t.Run(name, func(t *testing.T) {
			got := held
			got.Gate = got.Release(tt.holder)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOneSweepAtATime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, at := flowrun.Sweep{}, now
		sweeping, until, count := "", time.Time{}, 0
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			holder := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "holder")
			if rapid.Bool().Draw(t, "sweep") {
				var granted bool
				s, granted = s.Begin(holder, at.Add(time.Minute), at)
				if free := sweeping == "" || sweeping == holder || !at.Before(until); granted != free {
					t.Fatalf("granted to %s is %t while %q sweeps until %s", holder, granted, sweeping, until)
				}
				if granted {
					sweeping, until = holder, at.Add(time.Minute)
					count++
				}
			} else {
				s = s.End(holder)
				if sweeping == holder {
					sweeping, until = "", time.Time{}
				}
			}
			want := flowrun.Sweep{LeaseHolder: sweeping, LeaseUntil: until, Count: count}
			if diff := cmp.Diff(want, s); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}
