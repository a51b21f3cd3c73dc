package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/api/iterator"
	"google.golang.org/api/monitoring/v3"

	"github.com/pushpool/pushpool/scripts/pushpool/deadletter"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
)

// nearLimit is the share of a quota from which somebody should know.
const nearLimit = 0.8

// series reads a metric of the last while.
func (g *Google) series(ctx context.Context, project, filter string, back, each time.Duration, aligner string, by ...string) ([]*monitoring.TimeSeries, error) {
	now := g.now().UTC()
	var all []*monitoring.TimeSeries
	err := g.metrics.Projects.TimeSeries.List("projects/"+project).Filter(filter).
		IntervalStartTime(now.Add(-back).Format(time.RFC3339)).IntervalEndTime(now.Format(time.RFC3339)).
		AggregationAlignmentPeriod(fmt.Sprintf("%ds", int(each.Seconds()))).AggregationPerSeriesAligner(aligner).
		AggregationCrossSeriesReducer(map[bool]string{true: "REDUCE_SUM", false: "REDUCE_MAX"}[aligner == "ALIGN_DELTA"]).AggregationGroupByFields(by...).
		Pages(ctx, func(page *monitoring.ListTimeSeriesResponse) error {
			all = append(all, page.TimeSeries...)
			return nil
		})
	return all, err
}

// most is the largest value of a series.
func most(s *monitoring.TimeSeries) float64 {
	top := 0.0
	for _, p := range s.Points {
		switch v := p.Value; {
		case v == nil:
		case v.Int64Value != nil:
			top = max(top, float64(*v.Int64Value))
		case v.DoubleValue != nil:
			top = max(top, *v.DoubleValue)
		}
	}
	return top
}

// quotas compares what Cloud Run's API was asked for in the busiest minute of an hour with what
// it allows, by region.
func (g *Google) quotas(cfg operator.Config) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		const of = `metric.type="serviceruntime.googleapis.com/quota/%s" AND resource.type="consumer_quota" AND resource.labels.service="run.googleapis.com"`
		by := []string{"resource.labels.location", "metric.labels.quota_metric"}
		used, err := g.series(ctx, cfg.Project, fmt.Sprintf(of, "rate/net_usage"), time.Hour, time.Minute, "ALIGN_DELTA", by...)
		if err != nil {
			return []Finding{refused("read the use of Cloud Run's quotas", err, cfg.Project, "roles/monitoring.viewer")}
		}
		// Limits are written once a day.
		allowed, err := g.series(ctx, cfg.Project, fmt.Sprintf(of, "limit"), 25*time.Hour, time.Hour, "ALIGN_MAX", by...)
		if err != nil {
			return []Finding{refused("read the limits of Cloud Run's quotas", err, cfg.Project, "roles/monitoring.viewer")}
		}
		limit := map[[2]string]float64{}
		for _, s := range allowed {
			limit[place(s)] = most(s)
		}
		return compareQuotas(cfg, used, limit)
	}
}

func place(s *monitoring.TimeSeries) (p [2]string) {
	if s.Resource != nil {
		p[0] = s.Resource.Labels["location"]
	}
	if s.Metric != nil {
		p[1] = s.Metric.Labels["quota_metric"]
	}
	return p
}

func compareQuotas(cfg operator.Config, used []*monitoring.TimeSeries, limit map[[2]string]float64) []Finding {
	const why = "what is beyond it waits as AwaitingCapacity and starts later"
	mend := "ask for more on https://console.cloud.google.com/iam-admin/quotas?service=run.googleapis.com&project=" + cfg.Project + ", or name another region in job_regions"
	var found []Finding
	busiest := "no call in the last hour"
	share := -1.0
	for _, s := range used {
		p := place(s)
		if limit[p] == 0 || !slices.Contains(cfg.Regions, p[0]) {
			continue
		}
		what := fmt.Sprintf("%s: %.0f of %.0f %s in the busiest minute of the last hour", p[0], most(s), limit[p], p[1])
		if most(s) >= nearLimit*limit[p] {
			found = append(found, Finding{Status: Warning, What: what, Why: why, Mend: mend})
		}
		if part := most(s) / limit[p]; part > share {
			share, busiest = part, what
		}
	}
	recognised := len(limit) == 0 // nobody has called yet, so nothing is written
	for p, n := range limit {
		recognised = recognised || paces(p[1])
		if paces(p[1]) && slices.Contains(cfg.Regions, p[0]) && n < float64(cfg.WritesPerMinute) {
			found = append(found, Finding{
				Status: Problem, What: fmt.Sprintf("CLOUD_RUN_WRITES_PER_MINUTE is %d, and %s allows %.0f %s", cfg.WritesPerMinute, p[0], n, p[1]),
				Why: "launches are paced for a quota that is not there, so Cloud Run refuses some of them", Mend: fmt.Sprintf("terraform: cloud_run_quota = { writes_per_minute = %.0f }", n),
			})
		}
	}
	if !recognised {
		found = append(found, unknown(errors.New("none of Cloud Run's quotas has a name of writes or job runs, so the configured one was not compared"),
			"compare cloud_run_quota with https://console.cloud.google.com/iam-admin/quotas?service=run.googleapis.com&project="+cfg.Project))
	}
	if len(found) > 0 {
		slices.SortFunc(found, func(a, b Finding) int { return cmp.Compare(a.What, b.What) })
		return found
	}
	return []Finding{ok("%s", busiest)}
}

// paces reports whether a quota is of writes or of job runs. Google's pages name these quotas and
// not their metrics, so any name that says so is taken.
func paces(metric string) bool {
	name := metric[strings.LastIndex(metric, "/")+1:]
	return strings.Contains(name, "write") || strings.Contains(name, "job") && strings.Contains(name, "run")
}

// jobs counts the jobs of each region.
func jobs(in *operator.Installation) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		var found []Finding
		for _, project := range append([]string{in.Project}, in.Projects...) {
			for _, region := range in.Regions {
				n := 0
				for _, err := range in.CloudRun.Jobs(ctx, project, region) {
					if err != nil {
						return append(found, unknown(err, ""))
					}
					n++
				}
				found = append(found, jobsFinding(project, region, n, in.MaxJobs))
			}
		}
		return found
	}
}

// crowded is the share of the jobs that a region may have from which old ones are deleted first.
const crowded = 0.6

func jobsFinding(project, region string, n, most int) Finding {
	f := ok("%d of %d jobs in %s", n, most, region)
	if float64(n) >= crowded*float64(most) {
		f.Status, f.Why = Warning, "at the limit no flow run is launched there"
		f.Mend = fmt.Sprintf("gcloud run jobs list --project=%s --region=%s; what is not pp-… is somebody else's; ours are deleted by the sweep, oldest first", project, region)
	}
	if float64(n) >= 0.95*float64(most) {
		f.Status = Problem
	}
	return f
}

// old is how long a message may wait before a person should look.
const old = 10 * time.Minute

// subscriptions looks whether somebody is subscribed to the topics, and, on Google Cloud, what waits.
func subscriptions(in *operator.Installation, client *pubsub.Client, g *Google) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		var found []Finding
		var ids []string
		for _, topic := range []string{in.FlowRuns, in.Executions} {
			have, err := subscribed(ctx, client, in.Project, topic)
			switch {
			case err != nil:
				found = append(found, unknown(fmt.Errorf("list the subscriptions of topic %s: %w", topic, err), ""))
			case len(have) == 0:
				found = append(found, Finding{Status: Problem, What: "nobody is subscribed to topic " + topic, Why: "what is published there is lost", Mend: "terraform apply"})
			}
			ids = append(ids, have...)
		}
		if len(found) > 0 {
			return found
		}
		if g == nil {
			return append([]Finding{ok("both topics are subscribed to")}, notHere("what waits in the subscriptions is known to Cloud Monitoring only")...)
		}
		return g.backlog(ctx, in.Config, ids)
	}
}

func subscribed(ctx context.Context, client *pubsub.Client, project, topic string) (ids []string, err error) {
	all := client.TopicAdminClient.ListTopicSubscriptions(ctx, &pubsubpb.ListTopicSubscriptionsRequest{Topic: "projects/" + project + "/topics/" + topic})
	for {
		name, err := all.Next()
		if err == iterator.Done { //nolint:errorlint // it is never wrapped
			return ids, nil
		}
		if err != nil {
			return nil, err
		}
		ids = append(ids, name[strings.LastIndex(name, "/")+1:])
	}
}

func (g *Google) backlog(ctx context.Context, cfg operator.Config, ids []string) []Finding {
	var found []Finding
	latest := map[string]map[string]float64{}
	for _, metric := range []string{"num_undelivered_messages", "oldest_unacked_message_age"} {
		all, err := g.series(ctx, cfg.Project, `metric.type="pubsub.googleapis.com/subscription/`+metric+`" AND resource.type="pubsub_subscription"`, 10*time.Minute, time.Minute, "ALIGN_MAX", "resource.labels.subscription_id")
		if err != nil {
			return []Finding{refused("read what waits in the subscriptions", err, cfg.Project, "roles/monitoring.viewer")}
		}
		latest[metric] = map[string]float64{}
		for _, s := range all {
			if s.Resource != nil && len(s.Points) > 0 {
				newest := *s
				newest.Points = s.Points[:1] // newest first
				latest[metric][s.Resource.Labels["subscription_id"]] = most(&newest)
			}
		}
	}
	for _, id := range ids {
		n, age := latest["num_undelivered_messages"][id], time.Duration(latest["oldest_unacked_message_age"][id])*time.Second
		f := ok("%.0f messages wait in %s, the oldest for %s", n, id, age)
		if age > old {
			f.Status, f.Why = Problem, "messages are not taken: the function fails on them, or does not start"
			f.Mend = fmt.Sprintf(`gcloud logging read 'resource.labels.service_name="%s-%s" severity>=WARNING' --project=%s --freshness=1h --limit=20`, cfg.Name, id[strings.LastIndex(id, "-")+1:], cfg.Project)
		}
		found = append(found, f)
	}
	return found
}

// deadLetters counts them.
func deadLetters(in *operator.Installation, client *pubsub.Client) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		box := deadletter.NewBox(client, in.Project, in.DeadLetterSubscriptions)
		letters, err := box.Take(ctx, 1000, func(deadletter.Letter) bool { return true })
		if rerr := box.Release(ctx, letters); err == nil {
			err = rerr
		}
		if err != nil {
			return []Finding{unknown(err, "")}
		}
		if len(letters) == 0 {
			return []Finding{ok("none")}
		}
		return []Finding{{
			Status: Problem, What: fmt.Sprintf("%d, such as %s: %s", len(letters), letters[0].ID, strings.ReplaceAll(letters[0].Reason, "\n", "; ")),
			Why: "what they asked for has not happened, and they are deleted 31 days after they came", Mend: "pushpool deadletters list",
		}}
	}
}
