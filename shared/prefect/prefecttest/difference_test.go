package prefecttest_test

import (
	"slices"
	"strconv"
	"strings"

	"github.com/pushpool/pushpool/shared/prefect"
)

// since is what a rule's outcome is from a release on.
type since struct {
	release string
	want    any
}

// differences are the rules that not all servers keep alike, by name, each with its outcomes in the
// order of the releases: 3.6 for what 3.4.25 does as 2.20 and 3.6.29 as 3.8.8. Every other rule holds
// for all of them, from 3.1.3 on: before it no retry_type told who retries.
var differences = map[string][]since{
	"PENDING over CANCELLED is refused": {
		{"2.20", outcome{prefect.StatusReject, cancelled, "Cancelled"}},
		{"3.6", outcome{prefect.StatusAbort, cancelled, "Cancelled"}},
	},
	"SCHEDULED over CANCELLED": {
		{"2.20", outcome{prefect.StatusReject, cancelled, "Cancelled"}},
		{"3.6", outcome{prefect.StatusAccept, scheduled, "Scheduled"}},
	},
	"RUNNING over CANCELLED": {
		{"2.20", outcome{prefect.StatusReject, cancelled, "Cancelled"}},
		{"3.6", outcome{prefect.StatusAccept, running, "Running"}},
	},
	"COMPLETED over CANCELLED": {
		{"2.20", outcome{prefect.StatusReject, cancelled, "Cancelled"}},
		{"3.6", outcome{prefect.StatusAccept, completed, "Completed"}},
	},
	"another name over PENDING": {
		{"2.20", outcome{prefect.StatusAbort, pending, "Pending"}},
		{"3.6.22", outcome{prefect.StatusAccept, pending, "Submitting"}},
	},
	limitHolds:   {{"2.20", false}, {"3.0.4", true}},
	hasLabels:    {{"2.20", false}, {"3.4", true}},
	outlives:     {{"2.20", false}, {"3.0", true}},
	unclaimable:  {{"2.20", outcome{prefect.StatusAccept, pending, "Pending"}}, {"3.0.4", outcome{prefect.StatusAbort, scheduled, "Scheduled"}}},
	slotIsLeased: {{"2.20", false}, {"3.4.11", true}},
}

const (
	limitHolds   = "a deployment's limit holds the second claim back"
	slotIsLeased = "a deployment's slot comes with a lease"
	hasLabels    = "a flow run keeps the labels that it is created with"
	outlives     = "a flow run that was started, and is SCHEDULED again, outlives its deployment"
	unclaimable  = "PENDING of a flow run without its deployment"
)

// expected returns a differing rule's outcome of the release under test.
func expected[T any](p *prefectServer, rule string) T {
	var want any
	for _, s := range differences[rule] {
		if slices.Compare(release(s.release), release(p.version)) <= 0 {
			want = s.want
		}
	}
	return want.(T)
}

// release makes releases comparable: 3.6.22 is later than 3.6.9.
func release(version string) []int {
	var numbers []int
	for part := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(part)
		if err != nil { // 3.9.0rc1, 3.8.8+local
			break
		}
		numbers = append(numbers, n)
	}
	return numbers
}
