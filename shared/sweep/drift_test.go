package sweep_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/sweep"
)

// TestADryRunShowsAllAndChangesNothing holds that it finds what a sweep repairs.
func TestADryRunShowsAllAndChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		crashed, job := s.running()
		s.end(job, flowrun.ExitCode)
		outlived, alive := s.running()
		_, err := s.people.SetState(t.Context(), outlived, prefect.Proposal{Type: flowrun.StateCancelled})
		s.must(err)
		hangs, hanging := s.running()
		_, err = s.people.SetState(t.Context(), hangs, prefect.Proposal{Type: flowrun.StateCompleted})
		s.must(err)
		completed := time.Now()
		healthy, _ := s.running()
		time.Sleep(time.Hour)
		ids := []string{crashed, outlived, hangs, healthy}
		before := s.states(ids)
		found := func() []string {
			acts, err := s.instance(true).DryRun(t.Context())
			s.must(err)
			var lines []string
			for _, a := range acts {
				if a.FlowRunID != "" {
					line := fmt.Sprintf("%s: %s: %s", a.FlowRunID, a.Found, a.Kind)
					if a.Kind == sweep.Outlives {
						line += ": " + a.Detail
					}
					lines = append(lines, line)
				}
			}
			slices.Sort(lines)
			return lines
		}
		want := []string{
			crashed + ": RUNNING, Launched, execution ended: propose_crashed",
			outlived + ": CANCELLED, Launched, execution alive: cancel_execution",
			hangs + ": COMPLETED, Launched, execution alive: outlives: the flow told its end at " + completed.UTC().Format(time.RFC3339) +
				", and its container may have work left; if it hangs, cancel execution " + hanging.Execution(cloudrun.Token).String(),
		}
		slices.Sort(want)
		for range 2 {
			if diff := cmp.Diff(want, found()); diff != "" {
				t.Fatalf("found (-want +got):\n%s", diff)
			}
		}
		if diff := cmp.Diff(before, s.states(ids)); diff != "" || len(s.gone) > 0 {
			t.Errorf("stopped %v, states changed:\n%s", s.gone, diff)
		}
		report, err := s.instance(false).Sweep(t.Context())
		s.must(err)
		if report["propose_crashed"] != 1 || report[sweep.CancelExecution] != 1 {
			t.Errorf("the sweep did %v", report)
		}
		if diff := cmp.Diff([]string{"cancel " + alive.Job}, s.gone); diff != "" || s.states(ids)[flowrun.StateCrashed] != 1 {
			t.Errorf("stopped (-want +got):\n%s", diff)
		}
		time.Sleep(time.Minute)
		if _, err := s.instance(false).Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := found(); len(left) != 1 || !strings.HasPrefix(left[0], hangs) {
			t.Errorf("left to repair:\n%s", strings.Join(left, "\n"))
		}
	})
}

// TestAnExecutionThatOutlivesItsFlowRunIsCounted holds that one is, once it had its grace, and
// that it is stopped only where the flow did not tell its own end.
func TestAnExecutionThatOutlivesItsFlowRunIsCounted(t *testing.T) {
	for state, stopped := range map[flowrun.StateType]int{
		flowrun.StateCompleted: 0, flowrun.StateFailed: 0, flowrun.StateCrashed: 1, flowrun.StateCancelled: 1,
	} {
		t.Run(string(state), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSystem(t)
				id, _ := s.running()
				_, err := s.people.SetState(t.Context(), id, prefect.Proposal{Type: state})
				s.must(err)
				sweeper := s.instance(false)
				for _, counted := range []int{0, 1} {
					report, err := sweeper.Sweep(t.Context())
					s.must(err)
					if report[sweep.Outlives] != counted || len(s.gone) != counted*stopped || report[sweep.CancelExecution] != counted*stopped {
						t.Errorf("the sweep did %v, stopped %v", report, s.gone)
					}
					time.Sleep(cancelGrace + time.Second)
				}
				report, err := sweeper.Sweep(t.Context())
				s.must(err)
				if report[sweep.Outlives] != 1-stopped {
					t.Errorf("a minute later the sweep did %v", report)
				}
			})
		})
	}
}
