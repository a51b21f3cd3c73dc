package sweep

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// leaseFor is how long the slot of a deployment's limit is held for a flow run that is
// PENDING. Prefect gives 300 s, and cancels a flow run that lost its slot.
const leaseFor = 5 * time.Minute

// underWay looks at the flow runs of the pool that are PENDING, RUNNING, CANCELLING or PAUSED,
// and at those that the ledger holds for open.
func (s *Sweeper) underWay(ctx context.Context, pool string, seen *sight, count int, w *work) error {
	var listed []prefect.FlowRun
	for fr, err := range prefect.EachFlowRun(ctx, s.prefect.FlowRuns, prefect.Filter{
		WorkPools: []string{pool}, Sort: prefect.OldestFirst,
		StateTypes: []prefect.StateType{flowrun.StatePending, flowrun.StateRunning, flowrun.StateCancelling, flowrun.StatePaused},
	}) {
		if err != nil {
			seen.blind()
			return err
		}
		listed = append(listed, slim(fr))
	}
	if seen.open == nil {
		seen.blind()
		return nil
	}
	seen.list(listed)
	return s.settleOpen(ctx, pool, listed, seen, count, w)
}

// slim drops what a sweep does not read of a flow run: thousands of them may be under way,
// with large parameters.
func slim(fr prefect.FlowRun) prefect.FlowRun {
	fr.Parameters, fr.JobVariables, fr.Labels, fr.Tags = nil, nil, nil, nil
	return fr
}

// pair is a flow run and its record. Prefect has none of the id where flowRun is nil, and
// nothing is open in the ledger where record is nil.
type pair struct {
	id      string
	flowRun *prefect.FlowRun
	record  *flowrun.Record
}

// settleOpen joins the flow runs listed of a pool with what is open in the ledger. What the
// ledger holds for open although Prefect does not list it, it reads by its ids.
func (s *Sweeper) settleOpen(ctx context.Context, pool string, listed []prefect.FlowRun, seen *sight, count int, w *work) error {
	pairs := map[string]pair{}
	for _, fr := range listed {
		pairs[fr.ID] = pair{id: fr.ID, flowRun: &fr, record: seen.open[fr.ID]}
	}
	var unlisted []string
	for _, id := range slices.Sorted(maps.Keys(seen.open)) {
		rec := seen.open[id]
		if _, ok := pairs[id]; !ok && s.poolOf(*rec) == pool && !s.busy(*rec) {
			unlisted = append(unlisted, id)
			pairs[id] = pair{id: id, record: rec}
		}
	}
	for ids := range slices.Chunk(unlisted, prefect.MaxPage) {
		page, err := s.prefect.FlowRuns(ctx, prefect.Filter{IDs: ids})
		if err != nil {
			return err
		}
		for _, fr := range page {
			fr = slim(fr)
			pairs[fr.ID] = pair{id: fr.ID, flowRun: &fr, record: seen.open[fr.ID]}
		}
	}
	var apart, unknown, agreed []pair
	for _, id := range slices.Sorted(maps.Keys(pairs)) {
		p := pairs[id]
		s.renew(ctx, p, w)
		s.outlives(ctx, p, seen, w)
		switch {
		case p.record == nil:
			// The container of a suspended flow run has left on purpose; resumed, it is SCHEDULED.
			if p.flowRun.State == nil || !p.flowRun.State.Details.PauseReschedule {
				unknown = append(unknown, p)
			}
		case s.busy(*p.record) || seen.endedAfter(*p.record, s.cfg.Now().Add(-s.cfg.EventGrace)):
		case p.flowRun != nil && seen.alive(*p.record) && s.settler.Agrees(*p.flowRun, *p.record):
			agreed = append(agreed, p)
		default:
			apart = append(apart, p)
		}
	}
	looks, checks := s.cfg.MaxLooks/len(s.cfg.WorkPools), s.cfg.MaxChecks/len(s.cfg.WorkPools)
	for i, p := range slices.Concat(turn(apart, looks, count), turn(unknown, looks-len(apart), count)) {
		w.start(func() error { return s.look(ctx, fmt.Sprintf("%s/%s/%d", w.holder, pool, i), p, seen, w) })
	}
	// That an execution is alive is known from its job. What a job tells of it is checked in turn.
	for i, p := range turn(agreed, checks-len(apart), count) {
		w.count(Checks)
		w.start(func() error {
			ctx := about(ctx, p.id, found(p, seen))
			return w.looked(p.id, s.settler.Check(ctx, fmt.Sprintf("%s/%s/check%d", w.holder, pool, i), *p.flowRun, *p.record))
		})
	}
	return nil
}

// look looks at a flow run that does not agree with its record, or that has none.
func (s *Sweeper) look(ctx context.Context, holder string, p pair, seen *sight, w *work) error {
	if p.record == nil {
		rec, err := s.ledger.Get(ctx, p.id)
		if err != nil || rec.ForeignStateID == p.flowRun.StateID || s.busy(rec) {
			return err
		}
	}
	w.count(Looks)
	ctx = about(ctx, p.id, found(p, seen))
	if p.record == nil || p.flowRun == nil {
		return w.looked(p.id, s.settler.Look(ctx, holder, p.id))
	}
	return w.looked(p.id, s.settler.Check(ctx, holder, *p.flowRun, *p.record))
}

// renew holds the slot of its deployment's limit for a flow run of ours that has not got to RUNNING.
func (s *Sweeper) renew(ctx context.Context, p pair, w *work) {
	if p.flowRun == nil || p.record == nil || p.flowRun.StateType != flowrun.StatePending || p.flowRun.State == nil {
		return
	}
	d := p.flowRun.State.Details
	if d.DeploymentConcurrencyLeaseID == "" || d.TransitionID != string(p.record.LaunchID) || p.record.Status.Over() {
		return
	}
	ctx = about(ctx, p.id, found(p, nil))
	w.start(func() error {
		err := s.pools.RenewLease(ctx, d.DeploymentConcurrencyLeaseID, leaseFor)
		if err != nil && flowrun.FaultOf(err) == flowrun.NotFound {
			s.log.WarnContext(ctx, "the slot of the deployment's limit was lost; Prefect cancels the flow run when it starts, unless there is another",
				"flow_run_id", p.id, "error", err)
			return nil
		}
		return err
	})
}

// outlives counts an execution that is alive although its flow run has ended. That of a flow run
// which crashed or was cancelled is then stopped; none is because its flow run completed or
// failed: it may still store results, or be cleaning up.
func (s *Sweeper) outlives(ctx context.Context, p pair, seen *sight, w *work) {
	if p.flowRun == nil || p.record == nil || p.flowRun.State == nil || !p.flowRun.StateType.Terminal() ||
		!seen.alive(*p.record) || s.cfg.Now().Before(p.flowRun.State.Timestamp.Add(s.cfg.CancelGrace)) {
		return
	}
	switch p.flowRun.StateType {
	case flowrun.StateCompleted, flowrun.StateFailed:
		s.acts.leave(about(ctx, p.id, found(p, seen)), Outlives, fmt.Sprintf(
			"the flow told its end at %s, and its container may have work left; if it hangs, cancel execution %s",
			p.flowRun.State.Timestamp.UTC().Format(time.RFC3339), p.record.ExecutionName))
	default:
		w.count(Outlives)
	}
}

// busy reports whether somebody is at the flow run, or has just reached a verdict on it.
func (s *Sweeper) busy(rec flowrun.Record) bool {
	now := s.cfg.Now()
	return rec.Leased("", now) || rec.Unreported() && now.Before(rec.FinishedAt.Add(s.cfg.EventGrace))
}

// poolOf returns the work pool of a record, empty where this installation does not serve it.
func (s *Sweeper) poolOf(rec flowrun.Record) string {
	if slices.Contains(s.cfg.WorkPools, rec.WorkPool) {
		return rec.WorkPool
	}
	return ""
}

// found words what the three records say.
func found(p pair, seen *sight) string {
	state, launch := "deleted in Prefect", "nothing open in the ledger"
	if p.flowRun != nil {
		state = string(p.flowRun.StateType)
	}
	if p.record != nil {
		launch = string(p.record.Status)
		if p.record.Unreported() {
			launch += ", not reported"
		}
		if seen != nil {
			launch += ", " + seen.word(*p.record)
		}
	}
	return state + ", " + launch
}

// turn returns at most most elements, in the count-th sweep those that follow the ones of the
// sweep before, so that all have their turn.
func turn[T any](all []T, most, count int) []T {
	if most <= 0 {
		return nil
	}
	if len(all) <= most {
		return all
	}
	start := count * most % len(all)
	return slices.Concat(all[start:], all[:start])[:most]
}
