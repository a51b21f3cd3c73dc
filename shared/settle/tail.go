package settle

import (
	"context"
	"fmt"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/containerlog"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// Lines reads what containers wrote last.
type Lines interface {
	Last(ctx context.Context, project, job, execution string, after time.Time) ([]containerlog.Line, error)
}

// FlowRunLogs writes to the log of a flow run in Prefect.
type FlowRunLogs interface {
	Log(ctx context.Context, flowRunID string, lines ...prefect.LogLine) error
}

// readTimeout and writeTimeout bound what is done for the last lines. The latter leaves
// prefect.Client time to ask a busy server six times.
const (
	readTimeout  = 8 * time.Second
	writeTimeout = 30 * time.Second
)

// tail copies the container's last lines to the flow run's log in Prefect, where its launch
// came to its end, a bad one, between the two records. Prefect has been told by then, and the
// lease is given back: whatever goes wrong here, that the caller's time is over for one, is
// logged, and the lines are still in Cloud Logging.
func (s *Settler) tail(ctx context.Context, before, after flowrun.Record) {
	settled := func(r flowrun.Record) bool { return r.Status == flowrun.StatusFinished && !r.Unreported() }
	x, err := cloudrun.ParseExecutionName(after.ExecutionName)
	if s.cfg.Lines == nil || err != nil || !settled(after) || !endedBadly(after.Launch) ||
		before.LaunchID == after.LaunchID && settled(before) {
		return
	}
	if err := s.copyLines(ctx, after, x); err != nil {
		s.log.WarnContext(ctx, "the container's last lines were not copied to the flow run's log; they are in Cloud Logging",
			telemetry.FlowRunID, after.FlowRunID, "execution", x.String(), "error", err)
	}
}

func (s *Settler) copyLines(ctx context.Context, rec flowrun.Record, x cloudrun.ExecutionName) error {
	read, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	lines, err := s.cfg.Lines.Last(read, x.Project, x.Job, x.Execution, rec.LaunchedAt)
	if err != nil || len(lines) == 0 {
		return err
	}
	write, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return s.cfg.Logs.Log(write, rec.FlowRunID, logLines(lines, x)...)
}

// endedBadly reports whether the last lines may tell why a launch ended. Those whose
// container never ran wrote none, and who cancelled knows why.
func endedBadly(l flowrun.Launch) bool {
	switch l.Outcome {
	case flowrun.Succeeded:
		return l.Report != nil
	case "", flowrun.Image, flowrun.Secret, flowrun.Permission, flowrun.Cancelled:
		return false
	}
	return true
}

// logLines are the lines as Prefect shows them, under a heading.
func logLines(lines []containerlog.Line, x cloudrun.ExecutionName) []prefect.LogLine {
	all := []prefect.LogLine{{
		Time: lines[0].Time, Level: levelInfo,
		Message: fmt.Sprintf("The last %d lines of the container of execution %s; all of them: %s", len(lines), x.Execution, x.LogsURL()),
	}}
	for _, l := range lines {
		level := levelInfo
		switch {
		case l.Severity >= containerlog.Error:
			level = levelError
		case l.Severity >= containerlog.Warning:
			level = levelWarning
		}
		all = append(all, prefect.LogLine{Time: l.Time, Level: level, Message: l.Text})
	}
	return all
}

// Prefect's levels.
const (
	levelInfo    = 20
	levelWarning = 30
	levelError   = 40
)
