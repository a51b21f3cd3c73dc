package flowrun

// OutcomeKind is how an execution ended.
type OutcomeKind string

// The kinds of outcome. Their text is stored in the ledger and printed by the operator's command.
const (
	Succeeded   OutcomeKind = "succeeded"     // every task exited 0
	ExitCode    OutcomeKind = "exit_code"     // the container exited non-zero
	Signal      OutcomeKind = "signal"        // the container was ended by a signal
	OutOfMemory OutcomeKind = "out_of_memory" // the memory limit was reached
	TimedOut    OutcomeKind = "timed_out"     // the task timeout was reached
	Image       OutcomeKind = "image"         // the image is missing or may not be pulled
	Secret      OutcomeKind = "secret"        // a secret is missing, disabled or may not be read
	Permission  OutcomeKind = "permission"    // an identity lacks a permission, not about image or secret
	Cancelled   OutcomeKind = "cancelled"     // somebody cancelled the execution
	Deleted     OutcomeKind = "deleted"       // the execution or its job is gone
	NotStarted  OutcomeKind = "not_started"   // the flow run did not get to RUNNING before the start deadline
	Platform    OutcomeKind = "platform"      // anything else
)

// Outcome is the end of an execution as Cloud Run tells it.
type Outcome struct {
	Kind     OutcomeKind
	ExitCode int // where Kind is ExitCode and Cloud Run told it; else 0
	Signal   int // where Kind is Signal and Cloud Run told it; else 0
	// By is who last changed the execution, where that was not who created it; an e-mail address.
	By string
	// Text is Cloud Run's own wording, kept for people.
	Text string
}
