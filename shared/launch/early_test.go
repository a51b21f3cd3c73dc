package launch_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// lead gives the rig's deployment a learned lead.
func (r *rig) lead(l time.Duration) {
	r.t.Helper()
	_, err := r.ledger.UpdateDeployment(r.t.Context(), r.deployed.ID, func(d flowrun.Deployment) (flowrun.Deployment, error) {
		d.Lead = flowrun.Lead(l)
		return d, nil
	})
	r.must(err)
}

// Within its lead a flow run is launched, and Prefect has its flow wait until it is due. Where
// somebody could want the slot, and before its lead, a timer waits.
func TestAFlowRunIsLaunchedItsLeadBeforeItIsDue(t *testing.T) {
	const due, lead = 10 * time.Minute, 6300 * time.Millisecond
	for rule, tt := range map[string]struct {
		before   time.Duration // it is due
		limits   func(r *rig)
		launched bool
		timer    time.Duration // before it is due, if there is one
	}{
		"within its lead":                       {before: 6 * time.Second, launched: true},
		"before its lead":                       {before: time.Minute, timer: 7 * time.Second},
		"before the horizon: the sweep's":       {before: 5 * time.Minute},
		"not where the pool has a limit":        {before: 6 * time.Second, limits: func(r *rig) { r.limit(5) }},
		"not where its deployment has a limit":  {before: 6 * time.Second, limits: func(r *rig) { r.deploymentLimit(5, "") }},
		"nor is a timer set early for the pool": {before: time.Minute, limits: func(r *rig) { r.limit(5) }},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t)
			r.lead(lead)
			if tt.limits != nil {
				tt.limits(r)
			}
			at := r.now().Add(due).Truncate(time.Microsecond).UTC()
			fr := r.flowRun(prefect.NewFlowRun{ScheduledTime: &at})
			r.later(due - tt.before)
			r.must(r.dispatch(fr.ID))
			if tt.launched {
				r.launchedOnce(fr.ID)
				answer, err := r.people.SetState(t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StateRunning})
				r.must(err)
				if answer.Status != prefect.StatusWait {
					t.Errorf("RUNNING before it is due is answered with %s", answer.Status)
				}
				return
			}
			var want []sent
			if tt.timer > 0 || tt.limits != nil {
				want = []sent{{FlowRunID: fr.ID, At: at.Add(-tt.timer), Cause: "due"}}
			}
			if diff := cmp.Diff(want, r.messages.take()); diff != "" || len(r.executions(fr.ID)) > 0 {
				t.Errorf("%d executions; sent (-want +got):\n%s", len(r.executions(fr.ID)), diff)
			}
		})
	}
}

func TestTheLeadOfADeploymentIsLearnedWhenItsExecutionEnds(t *testing.T) {
	for rule, tt := range map[string]struct {
		ahead  time.Duration // it is due after it was created
		waits  bool          // for capacity
		starts bool
		learns bool
	}{
		"of a flow run that was due at a time":    {time.Minute, false, true, true},
		"not of one that was asked for at once":   {0, false, true, false},
		"nor of one that waited for capacity":     {0, true, true, false},
		"nor of one that crashed before it began": {time.Minute, false, false, false},
	} {
		t.Run(rule, func(t *testing.T) {
			r := newRig(t)
			at := r.now().Add(tt.ahead)
			fr := r.flowRun(prefect.NewFlowRun{ScheduledTime: &at})
			r.later(tt.ahead)
			if tt.waits {
				_, taking := r.refuse()
				r.must(r.dispatch(fr.ID))
				taking()
				r.later(r.read(fr.ID).NextScheduledStartTime.Sub(r.now()))
			}
			r.must(r.dispatch(fr.ID))
			r.later(8 * time.Second)
			end := flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 1}
			if tt.starts {
				r.set(fr.ID, flowrun.StateRunning)
				r.later(time.Hour)
				r.set(fr.ID, flowrun.StateCompleted)
				end = flowrun.Outcome{Kind: flowrun.Succeeded}
			}
			r.must(r.ended(fr.ID, end))
			d, err := r.ledger.UpdateDeployment(t.Context(), r.deployed.ID, func(d flowrun.Deployment) (flowrun.Deployment, error) { return d, nil })
			r.must(err)
			lead := time.Duration(d.Lead)
			if tt.learns && (lead < 8*time.Second || lead > 12*time.Second) || !tt.learns && lead != 0 {
				t.Errorf("learned %s of a start that took 8 s", lead)
			}
		})
	}
}
