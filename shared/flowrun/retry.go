package flowrun

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// RetryKind is a budget for launching a flow run again: what it is called in configuration. It
// is no type of its own because Firestore's client takes maps with plain strings for keys only.
type RetryKind = string

// The budgets. What is of none is never tried again: somebody wanted it so, or it would end
// the same way.
const (
	RetryPlatform    RetryKind = "platform"      // Cloud Run failed and names no reason
	RetryStart       RetryKind = "start"         // image, secret, permission or the start deadline kept it from starting
	RetryOutOfMemory RetryKind = "out_of_memory" // with twice the memory
	RetryExitCode    RetryKind = "exit_code"
	RetrySignal      RetryKind = "signal"
	RetryTimedOut    RetryKind = "timed_out"
)

// RetryKinds are all budgets, in the order of Retries.String.
var RetryKinds = [...]RetryKind{RetryPlatform, RetryStart, RetryOutOfMemory, RetryExitCode, RetrySignal, RetryTimedOut}

// MaxRetries bounds each budget.
const MaxRetries = 10

// Retry returns the budget that an end of this kind uses; "" where there is none.
func (k OutcomeKind) Retry() RetryKind {
	switch k {
	case Image, Secret, Permission, NotStarted:
		return RetryStart
	case Platform, OutOfMemory, ExitCode, Signal, TimedOut:
		return RetryKind(k)
	}
	return ""
}

// Retries are the budgets of a launch: how often its flow run may be launched again, by how
// its executions ended. They are of a flow run as a whole.
type Retries struct {
	Budget map[RetryKind]int `firestore:"budget"`
	// Started: also where the flow had begun to run. Else its code would be executed twice
	// although nobody said that it may.
	Started bool `firestore:"started"`
}

// With returns the budgets with those of a JSON object, decoded, in place of r's. ok is false
// where it holds anything else than budgets of 0 to MaxRetries.
func (r Retries) With(object any) (budget map[RetryKind]int, ok bool) {
	given, ok := object.(map[string]any)
	budget = map[RetryKind]int{}
	for _, k := range RetryKinds {
		budget[k] = r.Budget[k]
		v, is := given[k]
		if !is {
			continue
		}
		n, err := strconv.Atoi(fmt.Sprint(v)) // of a json.Number or a float64
		if err != nil || n < 0 || n > MaxRetries {
			return nil, false
		}
		budget[k] = n
	}
	for k := range given {
		if _, known := budget[k]; !known {
			return nil, false
		}
	}
	return budget, ok
}

// String is short enough for a label: "3-2-1-0-0-0-no". ParseRetries reads it.
func (r Retries) String() string {
	var b strings.Builder
	for _, k := range RetryKinds {
		fmt.Fprintf(&b, "%d-", r.Budget[k])
	}
	if r.Started {
		return b.String() + "yes"
	}
	return b.String() + "no"
}

// ParseRetries reads what String returns; nil where s is something else.
func ParseRetries(s string) *Retries {
	p := strings.Split(s, "-")
	if len(p) != len(RetryKinds)+1 {
		return nil
	}
	r := Retries{Budget: map[RetryKind]int{}, Started: p[len(p)-1] == "yes"}
	for i, k := range RetryKinds {
		n, err := strconv.ParseUint(p[i], 10, 8)
		if err != nil || n > MaxRetries {
			return nil
		}
		r.Budget[k] = int(n)
	}
	return &r
}

// Next returns the number of the retry that follows an end, of those that have been used
// already, and 0 where there is none. whyNot then says to the flow's author why, where a
// budget was there. started: the flow had begun to run.
func (r Retries) Next(o Outcome, started bool, used map[RetryKind]int) (n int, whyNot string) {
	kind := o.Kind.Retry()
	budget := r.Budget[kind]
	switch {
	case budget == 0:
		return 0, ""
	case started && !r.Started:
		return 0, "It is not tried again, because the flow had begun to run; where running it twice does no harm, set the job variable `pushpool_retry_started` to true."
	case used[kind] >= budget:
		return 0, fmt.Sprintf("It is not tried again: %d of %d retries were made.", used[kind], budget)
	}
	return used[kind] + 1, ""
}

// RetryID is the transition_id of the SCHEDULED state that a retry proposes: as with a
// LaunchID, Prefect's history says by itself which retries were made, and of which kind.
func RetryID(install, flowRunID string, k RetryKind, n int) string {
	return uuid5(install, flowRunID, "retry", k, strconv.Itoa(n))
}

// UsedRetries counts, by the transition ids of a flow run's SCHEDULED states, which retries
// were made.
func UsedRetries(install, flowRunID string, transitionIDs []string) map[RetryKind]int {
	made := map[string]bool{}
	for _, id := range transitionIDs {
		made[id] = true
	}
	used := map[RetryKind]int{}
	for _, k := range RetryKinds {
		for n := 1; n <= MaxRetries; n++ {
			if made[RetryID(install, flowRunID, k, n)] {
				used[k] = n
			}
		}
	}
	return used
}

// Again is the report that has a flow run launched again at a time. how, if not empty, says
// what will be different.
func Again(r Retry, budget int, at time.Time, o Outcome, how, where string) *Report {
	return &Report{
		Type: StateScheduled, Name: "AwaitingRetry", ScheduledTime: at, Retry: r,
		Message: fmt.Sprintf("Retry %d of %d (%s) at %s.%s %s%s", r.Number, budget, r.Kind, at.UTC().Format("15:04:05 MST"), how, o.Message(), where),
	}
}

// Retry is one retry of a flow run.
type Retry struct {
	Kind RetryKind `firestore:"kind"`
	// Number counts the retries of a kind from 1; 0 is no retry.
	Number int `firestore:"number"`
}

// retried notes retries as made. Numbers only grow.
func retried(r Record, made map[RetryKind]int) Record {
	if len(made) == 0 {
		return r
	}
	all := map[RetryKind]int{}
	for _, k := range RetryKinds {
		if n := max(r.Retried[k], made[k]); n > 0 {
			all[k] = n
		}
	}
	r.Retried = all
	return r
}
