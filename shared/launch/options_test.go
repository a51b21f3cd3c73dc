package launch_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestAnOptionThatIsNoneIsRejected holds that an option that is misspelt or has a wrong value
// ends the flow run with what to write, and launches nothing.
func TestAnOptionThatIsNoneIsRejected(t *testing.T) {
	for name, c := range map[string]struct {
		variables map[string]any
		says      []string
	}{
		"an unknown option": {
			map[string]any{"pushpool_launchmode": "job"},
			[]string{"`pushpool_launchmode` is no option", "there are ", "pushpool_launch_mode"},
		},
		"a wrong value":              {map[string]any{"pushpool_launch_mode": "fast"}, []string{"`pushpool_launch_mode`: write \"job\" or \"slots\""}},
		"a value of the wrong type":  {map[string]any{"pushpool_launch_mode": 1}, []string{"`pushpool_launch_mode`: write \"job\" or \"slots\""}},
		"retries of no kind":         {map[string]any{"pushpool_retries": map[string]any{"oom": 1}}, []string{"`pushpool_retries`: write an object such as"}},
		"retries without end":        {map[string]any{"pushpool_retries": map[string]any{"platform": 11}}, []string{"`pushpool_retries`: write an object such as"}},
		"neither true nor false":     {map[string]any{"pushpool_retry_started": "yes"}, []string{"`pushpool_retry_started`: write true or false"}},
		"two at once, both reported": {map[string]any{"pushpool_launch_mode": "", "pushpool_x": 1}, []string{"`pushpool_launch_mode`", "`pushpool_x`"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun(prefect.NewFlowRun{JobVariables: c.variables})
			r.must(r.dispatch(fr.ID))
			got := r.read(fr.ID)
			if got.StateType != flowrun.StateCrashed || len(r.executions(fr.ID)) != 0 {
				t.Fatalf("the flow run is %s with %d executions, want CRASHED with none", got.StateType, len(r.executions(fr.ID)))
			}
			for _, want := range c.says {
				if !strings.Contains(got.State.Message, want) {
					t.Errorf("the message %q lacks %q", got.State.Message, want)
				}
			}
		})
	}
}

// TestAnOptionOfTheWorkPoolIsTaken holds that a default in the work pool's template chooses.
func TestAnOptionOfTheWorkPoolIsTaken(t *testing.T) {
	r := newRig(t)
	changed := template()
	changed["variables"].(map[string]any)["properties"].(map[string]any)["pushpool_launch_mode"] = map[string]any{"default": "unheard of"}
	r.patch("/work_pools/etl", map[string]any{"base_job_template": changed})
	refused := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(refused.ID))
	if got := r.state(refused.ID); got != "CRASHED/Crashed" {
		t.Errorf("with the pool's default the flow run is %s", got)
	}
	fr := r.flowRun(prefect.NewFlowRun{JobVariables: map[string]any{"pushpool_launch_mode": "job"}})
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
}

// TestALaunchCarriesItsRetries holds that ledger and execution hold the budgets, merged from the
// installation's and the job variables'.
func TestALaunchCarriesItsRetries(t *testing.T) {
	r := newRig(t, func(c *launch.Config) {
		c.Options.Retries.Budget = map[flowrun.RetryKind]int{flowrun.RetryPlatform: 3, flowrun.RetryStart: 2}
	})
	for _, tt := range []struct {
		variables map[string]any
		want      string
	}{
		{nil, "3-2-0-0-0-0-no"},
		{map[string]any{"pushpool_retries": map[string]any{"platform": 0, "exit_code": 1}, "pushpool_retry_started": true}, "0-2-0-1-0-0-yes"},
	} {
		fr := r.flowRun(prefect.NewFlowRun{JobVariables: tt.variables})
		r.must(r.dispatch(fr.ID))
		r.launchedOnce(fr.ID)
		rec, x := r.record(fr.ID), r.executions(fr.ID)[0]
		if rec.Retries == nil || rec.Retries.String() != tt.want || x.Labels[cloudrun.LabelRetries] != tt.want {
			t.Errorf("the ledger has %v, the execution %q; want %s", rec.Retries, x.Labels[cloudrun.LabelRetries], tt.want)
		}
		if want := (flowrun.Resources{MilliCPU: 1000, MemoryBytes: 512 << 20}); rec.Resources != want {
			t.Errorf("the ledger has %+v, want %+v", rec.Resources, want)
		}
	}
}

// TestARetryAfterRunningOutOfMemoryHasTwiceAsMuch holds that each one doubles what the template
// gives, with the ledger lost too, and up to the limit.
func TestARetryAfterRunningOutOfMemoryHasTwiceAsMuch(t *testing.T) {
	for name, lose := range map[string]bool{"with the ledger": false, "with the ledger lost": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *launch.Config) {
				c.Options.Retries.Budget = map[flowrun.RetryKind]int{flowrun.RetryOutOfMemory: 3}
				c.RetryMemory = 1536 << 20
			})
			fr := r.flowRun(prefect.NewFlowRun{})
			for n, want := range []int64{512, 1024, 1536} {
				r.must(r.dispatch(fr.ID))
				x := r.executions(fr.ID)
				if len(x) != n+1 {
					t.Fatalf("%d executions, want %d", len(x), n+1)
				}
				name, err := cloudrun.ParseExecutionName(x[n].Name)
				r.must(err)
				got, err := r.cloudRun.Execution(t.Context(), name)
				r.must(err)
				if got.Resources.MemoryBytes != want<<20 {
					t.Errorf("execution %d has %d MiB, want %d", n+1, got.Resources.MemoryBytes>>20, want)
				}
				if n == 2 {
					return
				}
				r.until(func() bool { return r.emulator.ExhaustMemory(x[n].Name) == nil })
				r.over(fr.ID)
				if lose {
					r.ledger.Memory = ledger.NewMemory()
				}
				r.must(r.settler.Look(t.Context(), r.holder(), fr.ID))
				if got := r.state(fr.ID); got != "SCHEDULED/AwaitingRetry" {
					t.Fatalf("after execution %d: %s %s", n+1, got, r.read(fr.ID).State.Message)
				}
				r.later(time.Hour)
			}
		})
	}
}
