package launch_test

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/lookahead"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Wake lets the outbox take what the look-ahead sends.
func (o *outbox) Wake(_ context.Context, w message.Wake) error { return o.add(sent{Freed: w.WorkPool}) }

// TestASchedulesFlowRunIsLaunchedAsItsDeploymentIsThen holds that a timer set in the look-ahead launches what is
// due when it fires: of a deployment that was paused, edited, moved or deleted since, or made only then, what
// Prefect has of it at that time, once, and made from what the deployment has become.
func TestASchedulesFlowRunIsLaunchedAsItsDeploymentIsThen(t *testing.T) {
	version := func(v string) map[string]any { return map[string]any{"labels": map[string]any{"version": v}} }
	at := func(cron string) []prefect.Schedule { return []prefect.Schedule{{Cron: cron}} }
	for rule, tt := range map[string]struct {
		change func(r *rig, n prefect.NewDeployment)
		want   []string // the versions of what is launched at the time that the schedule had
	}{
		"nothing happens": {func(*rig, prefect.NewDeployment) {}, []string{"old"}},
		"it is paused": {func(r *rig, _ prefect.NewDeployment) {
			r.must(r.people.SetDeploymentPaused(r.t.Context(), r.deployed.ID, true))
		}, nil},
		"it is paused and resumed": {func(r *rig, _ prefect.NewDeployment) {
			r.must(r.people.SetDeploymentPaused(r.t.Context(), r.deployed.ID, true))
			r.must(r.people.SetDeploymentPaused(r.t.Context(), r.deployed.ID, false))
		}, []string{"old"}},
		"it is deployed anew with another label": {func(r *rig, n prefect.NewDeployment) {
			n.JobVariables = version("new")
			r.deploy(n)
		}, []string{"new"}},
		"a label is edited in the user interface": {func(r *rig, _ prefect.NewDeployment) {
			r.patch("/deployments/"+r.deployed.ID, map[string]any{"job_variables": version("new")})
		}, []string{"new"}},
		"its schedule is moved": {func(r *rig, n prefect.NewDeployment) {
			n.Schedules = at("30 * * * *")
			r.deploy(n)
		}, nil},
		"it goes to a work pool of somebody else": {func(r *rig, n prefect.NewDeployment) {
			r.must(r.people.CreateWorkPool(r.t.Context(), "theirs", "cloud-run-v2", template()))
			n.WorkPool = "theirs"
			r.deploy(n)
		}, nil},
		"it is deleted": {func(r *rig, _ prefect.NewDeployment) {
			r.send(http.MethodDelete, "/deployments/"+r.deployed.ID, nil)
		}, nil},
		"another one is created": {func(r *rig, n prefect.NewDeployment) {
			n.Name, n.JobVariables = "another", version("new")
			r.deploy(n)
		}, []string{"new", "old"}},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t)
			ahead := lookahead.New(r, r.ledger, r.messages, 150*time.Second, r.now)
			look := func() {
				_, err := ahead.Look(t.Context(), "etl", func(send func() error) { r.must(send()) })
				r.must(err)
			}
			r.later(r.now().Truncate(time.Hour).Add(61 * time.Minute).Sub(r.now())) // the hour is far off
			n := prefect.NewDeployment{
				FlowID: r.deployed.FlowID, Name: "scheduled", WorkPool: "etl", Schedules: at("0 * * * *"), JobVariables: version("old"),
			}
			r.deployed = r.deploy(n)
			r.server.Tick()
			first, err := r.people.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{r.deployed.ID}, Limit: 1})
			r.must(err)
			due := *first[0].NextScheduledStartTime
			r.later(due.Sub(r.now()) - 2*time.Minute)
			look()
			timers := r.messages.take()
			if len(timers) != 1 || !timers[0].At.Equal(due) {
				t.Fatalf("the look-ahead sent %+v, want a timer for %s", timers, due)
			}
			tt.change(r, n)
			r.server.Tick()
			r.later(30 * time.Second)
			look() // the sweep of the next minute
			timers = append(timers, r.messages.take()...)

			r.later(due.Sub(r.now()) + time.Second)
			for _, timer := range timers {
				// A timer's message about a flow run that is gone is given up after a while.
				r.must(r.launcher.Dispatch(t.Context(), r.holder(), timer.FlowRunID, r.now().Add(-time.Minute)))
			}
			var got []string
			for _, x := range r.emulator.Executions() {
				got = append(got, x.Labels["version"])
			}
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("versions launched (-want +got):\n%s", diff)
			}
			left, err := r.people.FlowRuns(t.Context(), prefect.Filter{WorkPools: []string{"etl"}, StateTypes: []prefect.StateType{flowrun.StateScheduled}, ScheduledBefore: r.now()})
			r.must(err)
			if len(left) > 0 {
				t.Errorf("%d flow runs are due and were not launched", len(left))
			}
		})
	}
}
