package flowrun

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Fault says what a failed call means for whoever made it.
type Fault int

const (
	// Unclear: the call may or may not have taken effect (a time-out, a 5xx, a broken
	// connection). Look before repeating it, and repeat it only in the same place.
	// It is also what an error of unknown origin means.
	Unclear Fault = iota
	// Refused: the call had no effect and may have one later (429, quota, a wrong
	// credential that an operator can mend).
	Refused
	// NotFound: the object of the call does not exist.
	NotFound
	// Exists: the object of a creation is there already.
	Exists
	// Permanent: the call had no effect and never will have, as it stands.
	Permanent
)

// String returns the fault's name in lower case.
func (f Fault) String() string {
	names := [...]string{"unclear", "refused", "not found", "exists", "permanent"}
	if int(f) < len(names) {
		return names[f]
	}
	return fmt.Sprintf("Fault(%d)", int(f))
}

// Error is a failed call to Prefect, Cloud Run or another service, classified where its
// code is known. Ask about it with FaultOf or errors.As, never by its text.
type Error struct {
	Fault Fault
	// Act is what was attempted, on what: "create job projects/p/locations/r/jobs/j".
	Act string
	// Hint says what a person has to change; empty if nothing is to be done.
	Hint string
	// RetryAfter is how long the service asked to be left alone; zero if it did not say.
	RetryAfter time.Duration
	Err        error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Act)
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	if e.Hint != "" {
		b.WriteString(" (")
		b.WriteString(e.Hint)
		b.WriteString(")")
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// FaultOf returns the fault of the outermost *Error in err's chain, and Unclear where
// there is none.
func FaultOf(err error) Fault {
	var e *Error
	if errors.As(err, &e) {
		return e.Fault
	}
	return Unclear
}
