package explain

import (
	"fmt"
	"io"
	"time"
)

// Print writes the explanation for people.
func (e Explanation) Print(w io.Writer) {
	fmt.Fprintf(w, "flow run %s", e.FlowRunID)
	if e.Name != "" {
		fmt.Fprintf(w, " (%s)", e.Name)
	}
	if e.WorkPool != "" {
		fmt.Fprintf(w, ", work pool %s", e.WorkPool)
	}
	if e.Deployment != "" {
		fmt.Fprintf(w, ", deployment %s", e.Deployment)
	}
	fmt.Fprintf(w, "\n\n%s\nnext:      %s\n", e.Cause, e.Next)
	if e.Do != "" {
		fmt.Fprintf(w, "do:        %s\n", e.Do)
	}
	fmt.Fprintf(w, "\nPrefect    %s\nledger     %s\nCloud Run  %s\n", e.Records.Prefect, e.Records.Ledger, e.Records.CloudRun)
	if e.Disagree != "" {
		fmt.Fprintf(w, "they differ: %s\n", e.Disagree)
	} else {
		fmt.Fprintln(w, "they agree")
	}
	fmt.Fprintln(w)
	var before time.Time
	for _, m := range e.Timeline {
		gap := ""
		if !before.IsZero() {
			gap = fmt.Sprintf("+%.2f s", m.At.Sub(before).Seconds())
		}
		before = m.At
		fmt.Fprintf(w, "%s %12s  %-9s  %s\n", m.At.Format("2006-01-02 15:04:05.00"), gap, m.Source, m.What)
	}
	fmt.Fprintf(w, "\nPrefect    %s\n", e.Links.Prefect)
	if e.Links.Execution != "" {
		fmt.Fprintf(w, "execution  %s\nlogs       %s\n", e.Links.Execution, e.Links.Logs)
	}
	fmt.Fprintf(w, "log query  %s\n", e.Links.LogQuery)
}
