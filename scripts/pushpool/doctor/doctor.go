// Package doctor examines an installation and says of each thing that is wrong what it is, why it matters and what mends it.
package doctor

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Status is how a finding stands.
type Status string

// What a finding can be.
const (
	OK Status = "ok"
	// Warning: it works, and somebody should know.
	Warning Status = "warning"
	// Problem: flow runs start late, wrong or not at all.
	Problem Status = "problem"
	// Unknown: it could not be found out.
	Unknown Status = "unknown"
	// NotHere: there is nothing to examine, as on a local stack.
	NotHere Status = "not here"
)

// Finding is what a check found out.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	What   string `json:"what"`
	// Why says why it matters, and Mend which command mends it; both are empty where all is well.
	Why  string `json:"why,omitempty"`
	Mend string `json:"mend,omitempty"`
}

// Check examines one thing. It changes nothing.
type Check struct {
	Name string
	Run  func(context.Context) []Finding
}

// patience bounds one check.
const patience = 45 * time.Second

// Examine makes all checks at once and returns what they found, in the checks' order.
func Examine(ctx context.Context, checks []Check) []Finding {
	found := make([][]Finding, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			found[i] = c.Run(ctx)
			for j := range found[i] {
				found[i][j].Check = c.Name
			}
		})
	}
	wg.Wait()
	return slices.Concat(found...)
}

// Count returns how many findings have the status.
func Count(findings []Finding, s Status) (n int) {
	for _, f := range findings {
		if f.Status == s {
			n++
		}
	}
	return n
}

// Print shows findings to people.
func Print(w io.Writer, findings []Finding) {
	for _, f := range findings {
		status := string(f.Status)
		if f.Status == Problem {
			status = strings.ToUpper(status)
		}
		fmt.Fprintf(w, "%-9s %-13s %s\n", status, f.Check, f.What)
		for _, line := range [][2]string{{"why", f.Why}, {"do", f.Mend}} {
			if line[1] != "" {
				fmt.Fprintf(w, "%23s %-4s %s\n", "", line[0], line[1])
			}
		}
	}
	fmt.Fprintf(w, "%d problems, %d warnings, %d could not be found out, %d not here\n",
		Count(findings, Problem), Count(findings, Warning), Count(findings, Unknown), Count(findings, NotHere))
}

func ok(format string, args ...any) Finding {
	return Finding{Status: OK, What: fmt.Sprintf(format, args...)}
}

// unknown is the finding of a check that failed.
func unknown(err error, mend string) Finding {
	return Finding{Status: Unknown, What: strings.ReplaceAll(err.Error(), "\n", "; "), Mend: mend}
}

func notHere(what string) []Finding { return []Finding{{Status: NotHere, What: what}} }
