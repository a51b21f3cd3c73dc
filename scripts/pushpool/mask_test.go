package main

import (
	"regexp"
	"slices"
	"strings"
)

var masks = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<id>"},
	{regexp.MustCompile(`\blaunch [0-9a-f]{8}\b`), "launch <id>"},
	{regexp.MustCompile(`pp-([a-z0-9-]+)-[a-z2-7]{13}\b`), "pp-$1-<id>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?`), "<time>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dt\d\d-\d\d-\d\d[0-9-]*`), "<time>"}, // in a label
	{regexp.MustCompile(`(?m)^(stay +)\d+`), "${1}<n>"},
	{regexp.MustCompile(`\b\d\d:\d\d:\d\d\b`), "<clock>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<host>"},
	{regexp.MustCompile(`\bheld by \S+`), "held by <holder>"},
	{regexp.MustCompile(`(?m)^· .*\n`), ""}, // progress, where a machine is slow
	{regexp.MustCompile(`\bm\d+\b`), "<message>"},
	{regexp.MustCompile(`(?m)^(<message>) +`), "$1 "},
	{regexp.MustCompile(`(?m)^ID +SINCE`), "ID SINCE"},
	{regexp.MustCompile(`(?m)^ *[\d.]+ s  `), "<seconds>  "},
	{regexp.MustCompile(`AwaitingRetry for <time>:`), "AwaitingRetry:"}, // said only of what is more than a second away
	{regexp.MustCompile(`(?m)^<time> [ +.\d]+(s )? +(prefect|ledger|cloud_run) +`), "<time>  $2  "},
}

// masked is a text without what differs each time that it is printed: ids, times, addresses. The
// lines of a timeline or of a list of messages are in the order of the alphabet, as they come from different places.
func masked(text string) string {
	for _, m := range masks {
		text = m.pattern.ReplaceAllString(text, m.with)
	}
	lines := strings.SplitAfter(text, "\n")
	for _, start := range []string{"<time>  ", "<message> "} {
		starts := func(line string) bool { return strings.HasPrefix(line, start) }
		if from := slices.IndexFunc(lines, starts); from >= 0 {
			to := from
			for to < len(lines) && starts(lines[to]) {
				to++
			}
			slices.Sort(lines[from:to])
		}
	}
	return strings.Join(lines, "")
}
