// Package simulate runs whole installations in one process under virtual time, breaks
// everything around them, and checks after every step what must never break.
//
// The four functions run with the code that is deployed: functions.Make, with all their clients.
// Only what carries a call is replaced. Prefect is prefecttest, Cloud Run is cloudruntest with
// containers that are Go functions, the ledger is ledger.Memory; Pub/Sub, Cloud Tasks, the log
// sink and Cloud Scheduler are events of the loop.
//
// Every call parks at the loop before it takes effect. The loop lets one goroutine go at a
// time, and time only passes when nobody can go on (testing/synctest). What chance decides, how
// long a call takes, whether a fault strikes it, is drawn from the seed and the call's own name,
// not from a common stream: a run repeats exactly, and stays the same elsewhere when one of its
// faults is left out, which is how a failing schedule is shrunk.
//
// A world is one installation with some 100 flow runs; a simulation is as many worlds as it takes.
package simulate
