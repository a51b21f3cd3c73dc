package simulate

import (
	"math/rand/v2"
	"slices"
)

// Kind is a kind of fault.
type Kind string

// The kinds of faults. What strikes messages:
const (
	MessageLost       Kind = "message_lost"
	MessageDuplicated Kind = "message_duplicated"
	MessageReordered  Kind = "message_reordered"
	MessageDelayed    Kind = "message_delayed"
	PushTimeout       Kind = "push_timeout" // the work was done, its acknowledgement was not heard
)

// What strikes calls, or happens between two of them.
const (
	Killed             Kind = "function_killed"
	Stall              Kind = "stall" // longer than a lease
	Deploy             Kind = "deploy"
	PrefectDown        Kind = "prefect_down"
	PrefectSlow        Kind = "prefect_slow" // its answer comes too late
	Prefect429         Kind = "prefect_429"
	Prefect503         Kind = "prefect_503"
	Prefect500         Kind = "prefect_500_after_commit"
	CloudRun429        Kind = "cloudrun_429"
	CloudRun503Before  Kind = "cloudrun_503_before"
	CloudRun503After   Kind = "cloudrun_503_after"
	SlowReadiness      Kind = "slow_readiness"
	StartFailure       Kind = "start_failure"
	ExecutionDeleted   Kind = "execution_deleted"
	EndWithoutEntry    Kind = "end_without_entry"
	LedgerContention   Kind = "ledger_contention"
	LedgerUnavailable  Kind = "ledger_unavailable"
	LedgerLost         Kind = "ledger_lost"
	PublishUnavailable Kind = "publish_unavailable"
	ClockSkew          Kind = "clock_skew"
	ForeignWorker      Kind = "foreign_worker"
	SecondInstall      Kind = "second_install"
	UserPause          Kind = "user_pause"
	UserCancel         Kind = "user_cancel"
	UserRetry          Kind = "user_retry"
	UserEdit           Kind = "user_edit"
	UserDelete         Kind = "user_delete"
)

// service is whom a call is for.
type service string

const (
	toPrefect  service = "prefect"
	toCloudRun service = "cloudrun"
	toLedger   service = "ledger"
	toTopic    service = "topic"
	toTimer    service = "timer"
)

// chance of a call being struck, and of a message.
const (
	callChance     = 0.095
	cloudRunChance = 0.17 // there are fewer
	messageChance  = 0.66
	// creationChance is that of a call that creates a job: there are few, and much can go wrong.
	creationChance = 0.85
)

// weight says how often something is chosen, among others.
type weight[T any] struct {
	what T
	n    int
}

// anywhere is what can strike between any two calls.
var anywhere = []weight[Kind]{
	{Killed, 40}, {Stall, 14}, {Deploy, 12}, {LedgerLost, 12}, {ClockSkew, 12}, {PrefectDown, 14},
	{UserPause, 26}, {UserCancel, 14}, {UserRetry, 220}, {UserEdit, 14}, {UserDelete, 12}, {ExecutionDeleted, 14}, {ForeignWorker, 12}, {SecondInstall, 14},
}

// stormy is how often a kind is chosen that there is a storm of.
const stormy = 3000

var strikes = map[service][]weight[Kind]{
	toPrefect:  {{PrefectSlow, 30}, {Prefect429, 30}, {Prefect503, 30}, {Prefect500, 40}},
	toCloudRun: {{CloudRun429, 420}, {CloudRun503Before, 400}, {CloudRun503After, 300}},
	toLedger:   {{LedgerContention, 40}, {LedgerUnavailable, 40}},
	toTopic:    {{PublishUnavailable, 130}},
	toTimer:    {{PublishUnavailable, 130}},
}

// ofCreations is what strikes the creation of jobs besides.
var ofCreations = []weight[Kind]{{SlowReadiness, 1800}, {StartFailure, 1900}, {EndWithoutEntry, 1800}, {CloudRun503After, 500}}

var ofMessages = []weight[Kind]{{MessageLost, 10}, {MessageDuplicated, 16}, {MessageReordered, 9}, {MessageDelayed, 7}, {PushTimeout, 12}}

// choose chooses one of the things, by their weights.
func choose[T any](r *rand.Rand, choices ...[]weight[T]) T {
	all := slices.Concat(choices...)
	sum := 0
	for _, w := range all {
		sum += w.n
	}
	n := r.IntN(sum)
	for _, w := range all {
		if n -= w.n; n < 0 {
			return w.what
		}
	}
	panic("nothing to choose from")
}

// Kinds are all kinds of faults.
func Kinds() []Kind {
	all := []Kind{}
	add := func(ws []weight[Kind]) {
		for _, w := range ws {
			if !slices.Contains(all, w.what) {
				all = append(all, w.what)
			}
		}
	}
	add(ofMessages)
	add(anywhere)
	add(ofCreations)
	for _, s := range []service{toPrefect, toCloudRun, toLedger, toTopic, toTimer} {
		add(strikes[s])
	}
	return all
}
