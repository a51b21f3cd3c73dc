package demo

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Figures of one flow run, for the table. Negative: it did not come to that.
type figures struct {
	eventToLaunch time.Duration // event → CreateJob accepted
	endToFinal    time.Duration // the execution's end → ledger closed and Prefect told
}

// moment is a step on a timeline.
type moment struct {
	at   time.Time
	step string
	text string
}

// trace gathers what Prefect, Cloud Run and the functions know of a flow run.
func trace(ctx context.Context, s *local.Stack, flowRunID string, event moment) ([]moment, figures, error) {
	moments := []moment{event}
	states, err := s.Prefect.FlowRunStates(ctx, flowRunID)
	if err != nil {
		return nil, figures{}, err
	}
	var end, final time.Time
	for _, st := range states {
		m := moment{st.Timestamp, strings.ToLower(st.Name), ""}
		switch st.Type {
		case flowrun.StateScheduled:
			m.text = "Prefect: SCHEDULED"
		case flowrun.StatePending:
			m.step, m.text = "claimed", "Prefect: PENDING, transition id "+st.Details.TransitionID
		default:
			m.text = "Prefect: " + string(st.Type)
			if st.Message != "" {
				m.text += ", " + shorten(st.Message)
			}
		}
		if st.Type.Terminal() {
			final = st.Timestamp
		}
		moments = append(moments, m)
	}
	f := figures{-1, -1}
	for _, x := range executions(s, flowRunID) {
		name, _ := cloudrun.ParseExecutionName(x.Name)
		moments = append(moments, moment{x.JobCreated, "launched", "Cloud Run: execution " + name.Execution})
		f.eventToLaunch = x.JobCreated.Sub(event.at)
		if !x.Completed.IsZero() {
			moments = append(moments, moment{x.Completed, "ended", "Cloud Run: " + string(x.State) + ", " + shorten(x.Message)})
			end = x.Completed
		}
	}
	for _, l := range s.Functions.Lines(flowRunID) {
		if l.Function == "finalizer" && l.Verdict == "acknowledged" {
			moments = append(moments, moment{l.Time, "final", "finalizer: the execution's end is recorded"})
			final = l.Time
		}
	}
	if !end.IsZero() && final.After(end) {
		f.endToFinal = final.Sub(end)
	}
	slices.SortStableFunc(moments, func(a, b moment) int { return a.at.Compare(b.at) })
	return moments, f, nil
}

// print writes a timeline: seconds since its first moment, and since the one before.
func print(w io.Writer, moments []moment) {
	for i, m := range moments {
		since := 0.0
		if i > 0 {
			since = m.at.Sub(moments[i-1].at).Seconds()
		}
		fmt.Fprintf(w, "   %7.2f s  %+6.2f  %-11s %s\n", m.at.Sub(moments[0].at).Seconds(), since, m.step, m.text)
	}
}

// executions returns all executions that were ever made for the flow run.
func executions(s *local.Stack, flowRunID string) []cloudruntest.Execution {
	if s.CloudRun == nil {
		return nil
	}
	return slices.DeleteFunc(s.CloudRun.Executions(), func(x cloudruntest.Execution) bool {
		return x.Labels[cloudrun.LabelFlowRun] != flowRunID
	})
}

func shorten(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 100
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return s
}

// markdown returns the text of the flow run's report.
func markdown(ctx context.Context, c *prefect.Client, flowRunID string) (string, error) {
	artifacts, err := c.Artifacts(ctx, flowRunID)
	if err != nil {
		return "", err
	}
	for _, a := range artifacts {
		if text, ok := a.Data.(string); ok && a.Key == "weather-report" {
			return text, nil
		}
	}
	return "", fmt.Errorf("flow run %s has no artifact weather-report", flowRunID)
}
