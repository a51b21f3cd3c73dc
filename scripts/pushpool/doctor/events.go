package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/api/googleapi"
	"google.golang.org/api/logging/v2"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/cloudrun"
)

// newest returns the time of the newest log entry that a filter takes within the last while;
// zero where there is none.
func (g *Google) newest(ctx context.Context, project, filter string, back time.Duration) (time.Time, error) {
	answer, err := g.logs.Entries.List(&logging.ListLogEntriesRequest{
		ResourceNames: []string{"projects/" + project}, OrderBy: "timestamp desc", PageSize: 1,
		Filter: fmt.Sprintf("(%s)\ntimestamp>=%q", filter, g.now().UTC().Add(-back).Format(time.RFC3339)),
	}).Context(ctx).Do()
	if err != nil || len(answer.Entries) == 0 {
		return time.Time{}, err
	}
	return time.Parse(time.RFC3339Nano, answer.Entries[0].Timestamp)
}

func (g *Google) lines(cfg operator.Config, function, filter string) string {
	return fmt.Sprintf(`resource.type="cloud_run_revision" AND resource.labels.service_name="%s-%s" AND %s`, cfg.Name, function, filter)
}

const (
	// day is how far back entries about executions' ends are looked for.
	day = 24 * time.Hour
	// slack is between an entry and the finalizer's line about it, retries included.
	slack = 5 * time.Minute
)

// audit follows the way of an execution's end: entry → sink → topic → finalizer.
func (g *Google) audit(in *operator.Installation) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		const why = "ends of executions are not told: the sweep finds them, minutes later"
		name := in.Name + "-executions"
		sink, err := g.logs.Projects.Sinks.Get("projects/" + in.Project + "/sinks/" + name).Context(ctx).Do()
		var answer *googleapi.Error
		switch {
		case errors.As(err, &answer) && answer.Code == http.StatusNotFound:
			return []Finding{{Status: Problem, What: "there is no log sink " + name, Why: why, Mend: "terraform apply"}}
		case err != nil:
			return []Finding{refused("read the log sink "+name, err, in.Project, "roles/logging.viewer")}
		case sink.Disabled:
			return []Finding{{Status: Problem, What: "the log sink " + name + " is disabled", Why: why, Mend: "gcloud logging sinks update " + name + " --no-disabled --project=" + in.Project}}
		case !strings.HasSuffix(sink.Destination, "/topics/"+in.Executions):
			return []Finding{{Status: Problem, What: fmt.Sprintf("the log sink %s leads to %s", name, sink.Destination), Why: why, Mend: "terraform apply"}}
		}
		entry, err := g.newest(ctx, in.Project, sink.Filter, day)
		if err != nil {
			return []Finding{refused("read audit log entries", err, in.Project, "roles/logging.viewer")}
		}
		if entry.IsZero() {
			return g.noEntry(ctx, in, sink.Filter)
		}
		line, err := g.newest(ctx, in.Project, g.lines(in.Config, "finalizer", `jsonPayload.function="finalizer"`), day)
		if err != nil {
			return []Finding{refused("read the finalizer's log", err, in.Project, "roles/logging.viewer")}
		}
		if line.Before(entry) && g.since(entry) > slack {
			return []Finding{{
				Status: Problem, What: fmt.Sprintf("the end of an execution was logged at %s and the finalizer has said nothing since", entry.Format(time.RFC3339)), Why: why,
				Mend: fmt.Sprintf("terraform apply; then: gcloud logging read 'resource.labels.service_name=\"%s-finalizer\"' --project=%s --freshness=1h", in.Name, in.Project),
			}}
		}
		return []Finding{ok("the last end of an execution was logged %s ago and reached the finalizer", g.since(entry))}
	}
}

func (g *Google) since(t time.Time) time.Duration { return g.now().Sub(t).Round(time.Second) }

// enough executions are looked at for one that ended.
const enough = 200

// noEntry tells a project in which nothing ended from one that logs no ends.
func (g *Google) noEntry(ctx context.Context, in *operator.Installation, filter string) []Finding {
	for _, region := range in.Regions {
		n := 0
		for x, err := range in.CloudRun.Executions(ctx, in.Project, region) {
			if err != nil {
				return []Finding{unknown(err, "")}
			}
			if n++; n > enough {
				break
			}
			if x.Outcome != nil && x.Labels[cloudrun.LabelInstall] == in.Name && g.since(x.CompletionTime) < day && g.since(x.CompletionTime) > slack {
				return []Finding{{
					Status: Problem, What: fmt.Sprintf("execution %s ended %s ago and no entry says so", x.Name, g.since(x.CompletionTime)),
					Why:  "ends of executions are not told: the sweep finds them, minutes later",
					Mend: "gcloud logging read '" + strings.Join(strings.Fields(filter), " ") + "' --project=" + in.Project + " --freshness=1d; then compare the sink's filter with terraform/finalizer.tf",
				}}
			}
		}
	}
	return []Finding{ok("no execution ended in the last day, so none was told")}
}

// tick looks whether Cloud Scheduler calls the reconciler, and whether sweeps are complete.
func (g *Google) tick(cfg operator.Config) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		const why = "what only the sweep finds waits: scheduled flow runs, lost events, containers that disappeared, deadlines"
		location, _, _ := strings.Cut(cfg.TasksQueue, "/queues/")
		name := location + "/jobs/" + cfg.Name + "-sweep"
		region := location[strings.LastIndex(location, "/")+1:]
		job, err := g.scheduler.Projects.Locations.Jobs.Get(name).Context(ctx).Do()
		var answer *googleapi.Error
		switch {
		case errors.As(err, &answer) && answer.Code == http.StatusNotFound:
			return []Finding{{Status: Problem, What: "Cloud Scheduler has no job " + name, Why: why, Mend: "terraform apply"}}
		case err != nil:
			return []Finding{refused("read the Cloud Scheduler job "+name, err, cfg.Project, "roles/cloudscheduler.viewer")}
		case job.State != "ENABLED":
			return []Finding{{
				Status: Problem, What: fmt.Sprintf("the Cloud Scheduler job %s-sweep is %s", cfg.Name, job.State), Why: why,
				Mend: fmt.Sprintf("gcloud scheduler jobs resume %s-sweep --location=%s --project=%s", cfg.Name, region, cfg.Project),
			}}
		}
		swept, err := g.newest(ctx, cfg.Project, g.lines(cfg, "reconciler", `jsonPayload.message="swept"`), time.Hour)
		if err != nil {
			return []Finding{refused("read the reconciler's log", err, cfg.Project, "roles/logging.viewer")}
		}
		if swept.IsZero() || g.since(swept) > slack {
			what := "no complete sweep in the last hour"
			if !swept.IsZero() {
				what = fmt.Sprintf("the last complete sweep was %s ago", g.since(swept))
			}
			if job.Status != nil && job.Status.Code != 0 {
				what += fmt.Sprintf("; Cloud Scheduler's last call failed: %d %s", job.Status.Code, job.Status.Message)
			}
			return []Finding{{
				Status: Problem, What: what, Why: why,
				Mend: fmt.Sprintf(`gcloud logging read 'resource.labels.service_name="%s-reconciler"' --project=%s --freshness=15m --limit=10`, cfg.Name, cfg.Project),
			}}
		}
		return []Finding{ok("the last complete sweep was %s ago", g.since(swept))}
	}
}

// readLedger reads a record that is not there.
func readLedger(in *operator.Installation) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		if _, err := in.Records.Get(ctx, "00000000-0000-0000-0000-000000000000"); err != nil {
			return []Finding{{
				Status: Problem, What: strings.ReplaceAll(err.Error(), "\n", "; "), Why: "nothing is launched or settled while the ledger does not answer; messages wait",
				Mend: "gcloud firestore databases describe --database='" + in.Database + "' --project=" + in.Project,
			}}
		}
		return []Finding{ok("it answers (%s)", in.Core.Ledger)}
	}
}
