package bench

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// bar is what a figure has to hold: at most a value, or at least one.
type bar struct {
	value float64
	least bool
}

func atMost(v float64) bar  { return bar{value: v} }
func atLeast(v float64) bar { return bar{value: v, least: true} }

func (b bar) String() string {
	if b.least {
		return fmt.Sprintf("at least %g", b.value)
	}
	return fmt.Sprintf("at most %g", b.value)
}

func (b bar) holds(v float64) bool {
	if b.least {
		return v >= b.value
	}
	return v <= b.value
}

// bars by benchmark and figure; docs/benchmarks.md says them in words.
var bars = map[string]map[string]bar{
	"dispatch": {"webhook called → CreateJob accepted, in set_state round trips": atMost(6)},
	"calls": {
		"calls to Prefect for a flow run of 2 s, created in Prefect, from its event to its end, max":     atMost(most),
		"calls to Prefect for a flow run of 2 s, asked for on the topic, from its event to its end, max": atMost(most),
		"calls to Prefect for a flow run of 150 s, created in Prefect, from its event to its end, max":   atMost(most),
		"calls to Cloud Run for a flow run of 2 s, created in Prefect, the sweep's among them":           atMost(2),
		"calls to Cloud Run for a flow run of 2 s, asked for on the topic, the sweep's among them":       atMost(2),
	},
	"burst": {
		"SQLite: accepted": atLeast(burstCount),
		"SQLite: crashed":  atMost(0),
		"SQLite: executions beyond one for each flow run":       atMost(0),
		"SQLite: flow run created → CreateJob accepted max":     atMost(20),
		"PostgreSQL: accepted":                                  atLeast(burstCount),
		"PostgreSQL: crashed":                                   atMost(0),
		"PostgreSQL: executions beyond one for each flow run":   atMost(0),
		"PostgreSQL: flow run created → CreateJob accepted max": atMost(8),
		// Eight clients outrun what the server's automations can tell.
		"PostgreSQL, eight at once: accepted":                                atLeast(burstCount),
		"PostgreSQL, eight at once: crashed":                                 atMost(0),
		"PostgreSQL, eight at once: executions beyond one for each flow run": atMost(0),
	},
	"overhead": {"of it without a call to Prefect being out p50": atMost(0.005)},
	"finalize": {
		"entry delivered → state in Prefect, of PENDING, in set_state round trips": atMost(4),
		"entry delivered → state in Prefect, of RUNNING, in set_state round trips": atMost(4),
		"an entry of PENDING without a call being out p50":                         atMost(0.003),
		"an entry of RUNNING without a call being out p50":                         atMost(0.003),
	},
	"look-ahead": {
		"10000 flow runs due soon: resident, at most":                                     atMost(128),
		"10000 flow runs due soon: processor time for each, compared with 1000 flow runs": atMost(1.2),
	},
	"process": {
		"process started → listening p50":             atMost(0.150),
		"resident, nothing handled yet":               atMost(64),
		"resident, idle after a dispatch":             atMost(64),
		"resident, at most, with 80 requests at once": atMost(128),
	},
	"throttle": {
		"launched":                 atLeast(throttleCount),
		"crashed":                  atMost(0),
		"429 ends → last launched": atMost(30),
	},
	"requests": {
		"launched": atLeast(requestsCount),
		"crashed":  atMost(0),
		"executions beyond one for each flow run":    atMost(0),
		"the slowest of these minutes, of the quota": atLeast(0.95),
	},
	"sustained": {
		"emulator: job, of the quota of writes":               atLeast(0.44),
		"emulator: job, longest pause between two launches":   atMost(10),
		"emulator: slots, longest pause between two launches": atMost(10),
		"emulator: slots, compared with job":                  atLeast(1.9),
	},
}

// held returns an error that names the bars of the benchmark that were not met, and those whose
// figure was never written.
func (b *bench) held() error {
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(bars[b.name])) {
		if value, ok := b.figures[name]; !ok {
			wrong = append(wrong, fmt.Sprintf("%s: not measured", name))
		} else if at := bars[b.name][name]; !at.holds(value) {
			wrong = append(wrong, fmt.Sprintf("%s: %g, and %s is the bar", name, value, at))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("benchmark %s: %s", b.name, strings.Join(wrong, "; "))
}
