package settle

import (
	"context"
	"fmt"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// longestRetryDelay bounds the back-off of retries.
const longestRetryDelay = 10 * time.Minute

// again returns the report that has the flow run launched again in place of a crash, where
// the budget for how it ended allows that; else the crash, with why it is not tried again.
// The flow run was read under the lease, and is of the launch that ended.
func (s *Settler) again(ctx context.Context, rec flowrun.Record, fr prefect.FlowRun, c Claim, e Ending, crash *flowrun.Report) (*flowrun.Report, error) {
	if crash == nil || crash.Type != flowrun.StateCrashed || fr.StateType != flowrun.StatePending && fr.StateType != flowrun.StateRunning {
		return crash, nil
	}
	retries := s.retries(rec, e)
	kind := e.Outcome.Kind.Retry()
	if retries.Budget[kind] == 0 {
		return crash, nil
	}
	if c.Retried == nil { // Prefect's history counts the retries that a lost ledger does not
		states, err := s.prefect.FlowRunStates(ctx, fr.ID)
		if err != nil {
			return nil, err
		}
		c.Retried = claim(s.cfg.Install, fr.ID, states).Retried
	}
	used := map[flowrun.RetryKind]int{kind: max(c.Retried[kind], rec.Retried[kind])}
	n, whyNot := retries.Next(e.Outcome, fr.StateType == flowrun.StateRunning, used)
	how := ""
	if n > 0 && kind == flowrun.RetryOutOfMemory {
		has := rec.Resources
		if e.Resources != (flowrun.Resources{}) {
			has = e.Resources
		}
		bytes, more := has.Grown(s.cfg.RetryMemory)
		how = fmt.Sprintf(" It gets %s of memory instead of %s.", cloudrun.Memory(bytes), cloudrun.Memory(has.MemoryBytes))
		if !more {
			n, whyNot = 0, fmt.Sprintf("It is not tried again: %s of memory are as much as a retry may have with its CPU.", cloudrun.Memory(has.MemoryBytes))
		}
	}
	if n == 0 {
		crash.Message = e.Outcome.Message() + " " + whyNot + s.where(e.Execution)
		return crash, nil
	}
	at := s.cfg.Now().Add(backoff(s.cfg.RetryDelay, n, s.cfg.Random()))
	return flowrun.Again(flowrun.Retry{Kind: kind, Number: n}, retries.Budget[kind], at, e.Outcome, how, s.where(e.Execution)), nil
}

// retries are the launch's budgets: as its ledger has them, as its execution is labelled, or
// the installation's own, without what only the deployment can know to be harmless.
func (s *Settler) retries(rec flowrun.Record, e Ending) flowrun.Retries {
	switch {
	case rec.Retries != nil:
		return *rec.Retries
	case e.Retries != nil:
		return *e.Retries
	}
	return flowrun.Retries{Budget: s.cfg.Retries.Budget}
}

// backoff returns how long the retry with that number waits, give or take a quarter.
func backoff(first time.Duration, n int, random float64) time.Duration {
	d := min(first<<(n-1), longestRetryDelay)
	return time.Duration(float64(d) * (0.75 + random/2))
}
