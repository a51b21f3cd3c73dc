package flowrun_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
)

var update = flag.Bool("update", false, "write the state picture into the README")

// TestStatePictureInREADMEIsWhatApplyDoes draws the states by applying every event in every state.
func TestStatePictureInREADMEIsWhatApplyDoes(t *testing.T) {
	const readme, begin, end = "../../README.md", "<!-- states -->\n", "<!-- /states -->"
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	drawn, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %s … %s", readme, begin, end)
	}
	want := picture()
	if *update {
		if err := os.WriteFile(readme, []byte(before+begin+want+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, drawn); diff != "" {
		t.Errorf("go test ./shared/flowrun -run StatePicture -update draws it again:\n%s", diff)
	}
}

func picture() string {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const holder = "h"
	report := &flowrun.Report{Type: flowrun.StateCrashed}
	lease := flowrun.Lease{Holder: holder, Until: now.Add(time.Minute)}
	events := []flowrun.Event{
		flowrun.Scheduled{Lease: lease, LaunchID: "new", StateAt: now},
		flowrun.Launched{Holder: holder, LaunchID: "a"},
		flowrun.Rejected{Holder: holder, Report: report},
		flowrun.PutBack{Holder: holder, Report: report},
		flowrun.Abandon{Holder: holder},
		flowrun.Ended{Holder: holder, LaunchID: "a", Report: report},
		flowrun.Discarded{Holder: holder, LaunchID: "a"},
	}
	var b strings.Builder
	b.WriteString("```mermaid\nstateDiagram-v2\n")
	statuses := []flowrun.Status{
		flowrun.StatusNone, flowrun.StatusClaimed, flowrun.StatusLaunched, flowrun.StatusAbandoned,
		flowrun.StatusFinished, flowrun.StatusRejected,
	}
	for _, from := range statuses {
		var arrows []string
		for _, e := range events {
			r := flowrun.Record{Launch: flowrun.Launch{LaunchID: "a", Status: from, ScheduledStateAt: now.Add(-time.Hour)}, LeaseHolder: holder, LeaseUntil: lease.Until}
			if from == flowrun.StatusNone {
				r.Launch = flowrun.Launch{}
			}
			if from == flowrun.StatusFinished || from == flowrun.StatusRejected {
				r.ReportedAt = now // else every event answers that the report comes first
			}
			after, err := flowrun.Apply(r, e, now)
			if err != nil || after.Status == from && after.LaunchID == r.LaunchID {
				continue
			}
			name := strings.TrimPrefix(fmt.Sprintf("%T", e), "flowrun.")
			arrows = append(arrows, fmt.Sprintf("    %s --> %s: %s\n", node(from), node(after.Status), name))
		}
		slices.Sort(arrows)
		b.WriteString(strings.Join(arrows, ""))
	}
	b.WriteString("```\n")
	return b.String()
}

func node(s flowrun.Status) string {
	if s == flowrun.StatusNone {
		return "[*]"
	}
	return string(s)
}
