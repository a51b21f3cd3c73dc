package launch_test

import (
	"strings"
	"testing"

	"github.com/pushpool/pushpool/shared/flowrun"
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
