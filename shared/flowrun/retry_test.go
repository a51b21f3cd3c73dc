package flowrun_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

func TestWhichEndsAreTriedAgain(t *testing.T) {
	budget := map[flowrun.RetryKind]int{
		flowrun.RetryPlatform: 3, flowrun.RetryStart: 2, flowrun.RetryOutOfMemory: 1, flowrun.RetryExitCode: 1, flowrun.RetrySignal: 1, flowrun.RetryTimedOut: 1,
	}
	for rule, test := range map[string]struct {
		kind    flowrun.OutcomeKind
		started bool // the flow had begun to run
		allowed bool // so may be run again
		budget  map[flowrun.RetryKind]int
		used    map[flowrun.RetryKind]int
		want    int
		says    string
	}{
		"platform":                          {kind: flowrun.Platform, budget: budget, want: 1},
		"the next number":                   {kind: flowrun.Platform, budget: budget, used: map[flowrun.RetryKind]int{flowrun.RetryPlatform: 2}, want: 3},
		"the budget is used":                {kind: flowrun.Platform, budget: budget, used: map[flowrun.RetryKind]int{flowrun.RetryPlatform: 3}, says: "3 of 3 retries were made"},
		"another kind's use does not count": {kind: flowrun.Platform, budget: budget, used: map[flowrun.RetryKind]int{flowrun.RetryStart: 3}, want: 1},
		"a budget that became smaller":      {kind: flowrun.Image, budget: budget, used: map[flowrun.RetryKind]int{flowrun.RetryStart: 5}, says: "5 of 2 retries were made"},
		"image":                             {kind: flowrun.Image, budget: budget, want: 1},
		"secret":                            {kind: flowrun.Secret, budget: budget, want: 1},
		"permission":                        {kind: flowrun.Permission, budget: budget, want: 1},
		"image and secret share one":        {kind: flowrun.Secret, budget: budget, used: map[flowrun.RetryKind]int{flowrun.RetryStart: 1}, want: 2},
		"out of memory":                     {kind: flowrun.OutOfMemory, budget: budget, want: 1},
		"exit code":                         {kind: flowrun.ExitCode, budget: budget, want: 1},
		"signal":                            {kind: flowrun.Signal, budget: budget, want: 1},
		"timed out":                         {kind: flowrun.TimedOut, budget: budget, want: 1},
		"no budget":                         {kind: flowrun.ExitCode},
		"a flow that had begun":             {kind: flowrun.Platform, budget: budget, started: true, says: "`pushpool_retry_started`"},
		"a flow that had begun, and may":    {kind: flowrun.Platform, budget: budget, started: true, allowed: true, want: 1},
		"began, and there is no budget":     {kind: flowrun.ExitCode, started: true},
		"cancelled: somebody wanted it":     {kind: flowrun.Cancelled, budget: budget},
		"gone: never":                       {kind: flowrun.Deleted, budget: budget},
		"exit code 0: it would end alike":   {kind: flowrun.Succeeded, budget: budget},
	} {
		t.Run(rule, func(t *testing.T) {
			n, whyNot := flowrun.Retries{Budget: test.budget, Started: test.allowed}.Next(flowrun.Outcome{Kind: test.kind}, test.started, test.used)
			if n != test.want || !strings.Contains(whyNot, test.says) || (whyNot == "") != (test.says == "") {
				t.Errorf("retry %d, %q; want %d, %q", n, whyNot, test.want, test.says)
			}
		})
	}
}

func TestBudgetsAreReadFromWhatTheyAreWrittenAs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := flowrun.Retries{Budget: map[flowrun.RetryKind]int{}, Started: rapid.Bool().Draw(t, "started")}
		for _, k := range flowrun.RetryKinds {
			r.Budget[k] = rapid.IntRange(0, flowrun.MaxRetries).Draw(t, k)
		}
		if diff := cmp.Diff(&r, flowrun.ParseRetries(r.String())); diff != "" {
			t.Fatal(diff)
		}
		if len(r.String()) > 63 { // a label's value
			t.Fatalf("%q is too long", r)
		}
	})
	for _, s := range []string{"", "no", "1-2-3-4-5-6", "1-2-3-4-5-11-no", "1-2-3-4-5-x-no", "1-2-3-4-5-6-7-no"} {
		if got := flowrun.ParseRetries(s); got != nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func TestAnObjectGivesSomeBudgets(t *testing.T) {
	base := flowrun.Retries{Budget: map[flowrun.RetryKind]int{flowrun.RetryPlatform: 3, flowrun.RetryStart: 2}}
	got, ok := base.With(map[string]any{"platform": 0.0, "exit_code": 10.0})
	want := map[flowrun.RetryKind]int{
		flowrun.RetryPlatform: 0, flowrun.RetryStart: 2, flowrun.RetryOutOfMemory: 0, flowrun.RetryExitCode: 10, flowrun.RetrySignal: 0, flowrun.RetryTimedOut: 0,
	}
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Error(ok, diff)
	}
	for _, wrong := range []any{
		nil, 3.0, "3", []any{}, map[string]any{"platform": -1.0}, map[string]any{"platform": 11.0}, map[string]any{"platform": 1.5},
		map[string]any{"platform": "many"}, map[string]any{"platform": nil}, map[string]any{"oom": 1.0}, map[string]any{"deleted": 1.0},
	} {
		if got, ok := base.With(wrong); ok {
			t.Errorf("%v is %v", wrong, got)
		}
	}
}

// TestRetriesAreCountedFromThoseThatWeMade holds that Prefect's history tells our retries, and
// no other installation's, nor Prefect's own states of that name.
func TestRetriesAreCountedFromThoseThatWeMade(t *testing.T) {
	history := []string{
		"", flowrun.RetryID("p/a", "f", flowrun.RetryStart, 1), flowrun.RetryID("p/a", "f", flowrun.RetryStart, 2),
		flowrun.RetryID("p/a", "f", flowrun.RetryOutOfMemory, 1), flowrun.RetryID("p/b", "f", flowrun.RetryPlatform, 1),
		flowrun.RetryID("p/a", "g", flowrun.RetryPlatform, 1),
	}
	want := map[flowrun.RetryKind]int{flowrun.RetryStart: 2, flowrun.RetryOutOfMemory: 1}
	if diff := cmp.Diff(want, flowrun.UsedRetries("p/a", "f", history)); diff != "" {
		t.Error(diff)
	}
}

func TestARetrySaysWhichItIsAndWhy(t *testing.T) {
	at := time.Date(2026, 1, 1, 6, 0, 30, 0, time.UTC)
	got := flowrun.Again(flowrun.Retry{Kind: flowrun.RetryOutOfMemory, Number: 1}, 2, at, flowrun.Outcome{Kind: flowrun.OutOfMemory}, " It gets more.", " Logs: here")
	want := &flowrun.Report{
		Type: flowrun.StateScheduled, Name: "AwaitingRetry", ScheduledTime: at, Retry: flowrun.Retry{Kind: flowrun.RetryOutOfMemory, Number: 1},
		Message: "Retry 1 of 2 (out_of_memory) at 06:00:30 UTC. It gets more. The container reached its memory limit. " +
			"Raise the job variable `memory`, or let the flow use less. Logs: here",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

const gib = 1 << 30

func TestMemoryGrowsWithinWhatIsAllowed(t *testing.T) {
	for rule, test := range map[string]struct {
		cpu, has, limit, want int64 // want 0: not more
	}{
		"twice as much":                       {1000, gib / 2, 32 * gib, gib},
		"up to what one CPU may have":         {1000, 3 * gib, 32 * gib, 4 * gib},
		"no more than one CPU may have":       {1000, 4 * gib, 32 * gib, 0},
		"two CPUs":                            {2000, 6 * gib, 32 * gib, 8 * gib},
		"four CPUs":                           {4000, 16 * gib, 32 * gib, 0},
		"six CPUs":                            {6000, 16 * gib, 32 * gib, 24 * gib},
		"eight CPUs":                          {8000, 20 * gib, 32 * gib, 32 * gib},
		"up to the limit":                     {2000, 2 * gib, 3 * gib, 3 * gib},
		"the limit is below what it has":      {2000, 4 * gib, 3 * gib, 0},
		"what it has is not known":            {0, 0, 32 * gib, 0},
		"more than Cloud Run says one may do": {1000, 8 * gib, 32 * gib, 0},
	} {
		t.Run(rule, func(t *testing.T) {
			got, ok := flowrun.Resources{MilliCPU: test.cpu, MemoryBytes: test.has}.Grown(test.limit)
			if ok != (test.want > 0) || ok && got != test.want {
				t.Errorf("%d, %t; want %d", got, ok, test.want)
			}
		})
	}
}

func TestUsageIsWhatATaskHadAllItsTime(t *testing.T) {
	got := flowrun.Resources{MilliCPU: 2000, MemoryBytes: gib / 2}.Used(100 * time.Second)
	want := flowrun.Usage{VCPUSeconds: 200, GiBSeconds: 50, Dollars: 200*0.000018 + 50*0.000002}
	if diff := cmp.Diff(want, got, cmpopts.EquateApprox(0, 1e-12)); diff != "" {
		t.Error(diff)
	}
}
