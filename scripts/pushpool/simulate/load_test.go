package simulate

import (
	"flag"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// loadSize divides the loads: 1 is the whole of them, which takes minutes.
var loadSize = flag.Int("load-divisor", 4, "what the sizes of loads and quotas are divided by; 1 for the sizes of the bars")

// carried holds that every flow run of a load was launched once and completed.
func carried(t *testing.T, count int, l Load, most time.Duration) Carried {
	t.Helper()
	c := RunLoad(t, Options{Seed: *seed, FlowRuns: count, Calm: true, Load: &l}, most)
	for _, v := range c.Violations {
		t.Error(v)
	}
	if c.Final[flowrun.StateCompleted] != count || len(c.Launched) != count {
		t.Errorf("of %d flow runs there were %d launches, %d had not ended, and they are %v", count, len(c.Launched), c.Waiting, c.Final)
	}
	return c
}

// TestALoadGoesAtTheSpeedOfTheQuota holds that run requests that come all at once are launched
// once each, by two instances together at the whole quota, and that none is refused.
func TestALoadGoesAtTheSpeedOfTheQuota(t *testing.T) {
	count, writes := 1000 / *loadSize, 180
	c := carried(t, count, Load{Mode: "job", WritesPerMinute: writes, MaxJobs: 1000, MaxExecutions: 1000}, 20*time.Minute)
	if c.Refused > 0 {
		t.Errorf("Cloud Run refused %d launches", c.Refused)
	}
	for from := c.Launched[0]; ; from = from.Add(time.Minute) {
		n, after := 0, 0
		for _, at := range c.Launched {
			switch {
			case at.Before(from):
			case at.Before(from.Add(time.Minute)):
				n++
			default:
				after++
			}
		}
		if after <= writes && from != c.Launched[0] || after == 0 {
			break
		}
		t.Logf("%d launches in the minute that begins %s after the first, %d wait after it", n, from.Sub(c.Launched[0]), after)
		if n < writes*95/100 || n > writes {
			t.Errorf("%d launches in a minute of a quota of %d", n, writes)
		}
	}
}

// TestALoadThatIsRefusedIsLaunchedSoonAfter holds that a minute of 429 ends no flow run, costs few
// calls, and delays none by more than half a minute.
func TestALoadThatIsRefusedIsLaunchedSoonAfter(t *testing.T) {
	c := carried(t, 50, Load{Mode: "job", WritesPerMinute: 180, MaxJobs: 1000, RefusedFor: time.Minute}, 10*time.Minute)
	if len(c.Launched) == 0 {
		return
	}
	first, last := c.Launched[0].Sub(c.Opens), c.Launched[len(c.Launched)-1].Sub(c.Opens)
	t.Logf("%d refused launches of 50 flow runs; the first launch %s after the end of it, the last %s", c.Refused, first, last)
	if last > 30*time.Second {
		t.Errorf("the last flow run was launched %s after Cloud Run took launches again", last)
	}
}

// TestASustainedLoadDoesNotStop holds that more flow runs than there may be jobs go on at half
// the quota of writes, the other half being deletions, and that slots are as fast as the quota.
func TestASustainedLoadDoesNotStop(t *testing.T) {
	for name, tt := range map[string]struct{ count, jobs, writes int }{
		"a new project":         {3000, 1000, 180},
		"the smallest quota":    {480, 200, 60},
		"many writes, few jobs": {750, 250, 180}, // as four times the writes of a new project
	} {
		if tt.count > 1000 && *loadSize > 1 {
			continue
		}
		t.Run(name, func(t *testing.T) { sustained(t, tt.count, tt.jobs, tt.writes) })
	}
}

// sustained holds it with so many flow runs, jobs that there may be, and writes in a minute.
func sustained(t *testing.T, count, jobs, writes int) {
	rates := map[string]float64{}
	for _, mode := range []string{"job", "slots"} {
		c := carried(t, count, Load{Mode: mode, WritesPerMinute: writes, MaxJobs: jobs}, time.Hour)
		if len(c.Launched) < count/2 {
			return
		}
		half := c.Launched[len(c.Launched)/2:]
		rates[mode] = float64(len(half)-1) / half[len(half)-1].Sub(half[0]).Minutes()
		pause := time.Duration(0)
		for i := 1; i < len(c.Launched); i++ {
			pause = max(pause, c.Launched[i].Sub(c.Launched[i-1]))
		}
		t.Logf("%s: %.1f launches a minute in the second half, %d refused, the longest pause %s, %d jobs at most", mode, rates[mode], c.Refused, pause, c.Jobs)
		if pause > 10*time.Second || c.Jobs > jobs {
			t.Errorf("%s: a pause of %s, %d jobs of %d", mode, pause, c.Jobs, jobs)
		}
	}
	if rates["job"] < 0.44*float64(writes) || rates["slots"] < 1.9*rates["job"] {
		t.Errorf("launches a minute: %v", rates)
	}
}
