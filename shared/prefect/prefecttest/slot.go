package prefecttest

import (
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	// slotWait is how long a flow run waits that found its deployment's limit reached.
	slotWait = 30 * time.Second
	// slotGrace is how long a slot is kept for a flow run that does not reach RUNNING.
	slotGrace = 5 * time.Minute
	// slotKept stands for the renewals of a flow run that is RUNNING.
	slotKept = 100 * 365 * 24 * time.Hour
)

// slots counts the slots of the deployment's limit that are taken.
func (s *Server) slots(d *deployment) int {
	n, now := 0, s.now()
	for _, r := range s.flowRuns {
		if string(r.DeploymentID) == d.ID && r.slotUntil != nil && r.slotUntil.After(now) {
			n++
		}
	}
	return n
}

func (d *deployment) grace() time.Duration {
	if o := d.ConcurrencyOptions; o != nil && o.GracePeriodSeconds != nil {
		return time.Duration(*o.GracePeriodSeconds) * time.Second
	}
	return slotGrace
}

// takeSlot is SecureFlowConcurrencySlots.
func takeSlot(t *transition) {
	if t.initial.Type == flowrun.StatePending || t.run.DeploymentID == "" {
		return
	}
	s, d := t.server, t.server.deployments[string(t.run.DeploymentID)]
	switch {
	case d == nil:
		t.abort("Deployment not found.")
	case d.GlobalLimit == nil:
	case s.slots(d) < d.GlobalLimit.Limit:
		until := s.now().Add(d.grace())
		t.proposed.Details.LeaseID = text(uuid.NewString())
		t.after = append(t.after, func() { t.run.slotUntil = &until })
	case d.ConcurrencyOptions != nil && d.ConcurrencyOptions.CollisionStrategy == "CANCEL_NEW":
		t.reject(&state{Type: flowrun.StateCancelled, Name: "Cancelled", Message: limitReached}, limitReached)
	default:
		at := s.now().Add(slotWait)
		t.reject(&state{Type: flowrun.StateScheduled, Name: "AwaitingConcurrencySlot", Details: stateDetails{ScheduledTime: &at}}, limitReached)
	}
}

const limitReached = "Deployment concurrency limit reached."

// slotAtRunning is ValidateDeploymentConcurrencyAtRunning: a slot that was taken back meanwhile is
// taken again if one is free.
func slotAtRunning(t *transition) {
	d := t.server.deployments[string(t.run.DeploymentID)]
	lost := t.run.slotUntil != nil && !t.run.slotUntil.After(t.server.now())
	if d == nil || d.GlobalLimit == nil || !lost || t.server.slots(d) < d.GlobalLimit.Limit {
		return
	}
	t.reject(&state{
		Type: flowrun.StateCancelled, Name: "Cancelled",
		Message: "Deployment concurrency slot lost during provisioning - no slots available to continue execution",
	}, "Deployment concurrency limit reached after lease expiry.")
}

// moveSlot keeps or gives back the flow run's slot as its state changes. A flow run that its own
// container retries keeps it.
func (s *Server) moveSlot(run *flowRun, st *state, status string) {
	holds := st.Type == flowrun.StatePending || st.Type == flowrun.StateRunning || st.Type == flowrun.StateCancelling
	switch {
	case run.slotUntil == nil:
	case st.Type == flowrun.StateRunning:
		until := s.now().Add(slotKept)
		run.slotUntil = &until
	case !holds && (st.Name != "AwaitingRetry" || status != reject):
		run.slotUntil = nil
	}
}

func (s *Server) slotRoutes() {
	s.handle("POST /v2/concurrency_limits/leases/{lease}/renew", func(c *call) (int, any, error) {
		var b struct {
			Duration float64 `json:"lease_duration"`
		}
		if err := c.decode(&b); err != nil {
			return 0, nil, err
		}
		if b.Duration < 60 || b.Duration > 86400 {
			return 0, nil, invalid("lease_duration", "Input should be between 60 and 86400")
		}
		now := s.now()
		for _, r := range s.flowRuns {
			if string(r.State.Details.LeaseID) == c.PathValue("lease") && r.slotUntil != nil && r.slotUntil.After(now) {
				// Once it is RUNNING its engine renews it, whoever did so just before.
				if until := now.Add(time.Duration(b.Duration * float64(time.Second))); until.After(*r.slotUntil) {
					r.slotUntil = &until
				}
				return http.StatusNoContent, nil, nil
			}
		}
		return 0, nil, refuse(http.StatusGone, "Lease not found - it may have expired or been revoked")
	})
}
