package doctor

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/option"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/install"
)

var now = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// cloud stands for the APIs of Google Cloud. It refuses what they refuse: what their references
// say about each method (https://cloud.google.com/service-usage/docs/reference/rest/v1/services/batchGet,
// https://cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.timeSeries/list,
// https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/list,
// https://cloud.google.com/policy-intelligence/docs/reference/policytroubleshooter/rest/v3/iam/troubleshoot).
type cloud struct {
	disabled  []string             // APIs
	denied    []string             // "IDENTITY PERMISSION"
	hidden    []string             // permissions about which the caller may see nothing
	sink      map[string]any       // nil: none
	job       map[string]any       // nil: none
	entries   map[string]time.Time // by a text in the filter
	points    map[string][]point   // by metric type
	forbidden string               // a part of a path that the caller may not read
	off       string               // likewise, of an API that is not enabled
}

// point is one series with one value.
type point struct {
	metric, resource map[string]string
	value            int64
}

func (c cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(code int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body)
	}
	refuse := func(code int, message string) {
		answer(code, map[string]any{"error": map[string]any{"code": code, "message": message}})
	}
	path := r.URL.Path
	switch {
	case c.off != "" && strings.Contains(path, c.off):
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"error": {"code": 403, "message": "it has not been used before or it is disabled", "details": [{"reason": "SERVICE_DISABLED", "metadata": {"service": "cloudscheduler.googleapis.com"}}]}}`))
	case c.forbidden != "" && strings.Contains(path, c.forbidden):
		refuse(http.StatusForbidden, "The caller does not have permission")
	case r.Method == http.MethodGet && path == "/v1/projects/p/services:batchGet":
		c.services(r.URL.Query()["names"], answer, refuse)
	case r.Method == http.MethodGet && path == "/v3/projects/p/timeSeries":
		c.series(r.URL.Query(), answer, refuse)
	case r.Method == http.MethodPost && path == "/v2/entries:list":
		c.list(r, answer, refuse)
	case r.Method == http.MethodPost && path == "/v3/iam:troubleshoot":
		c.troubleshoot(r, answer, refuse)
	case r.Method == http.MethodGet && path == "/v2/projects/p/sinks/pushpool-executions" && c.sink != nil:
		answer(http.StatusOK, c.sink)
	case r.Method == http.MethodGet && path == "/v1/projects/p/locations/r/jobs/pushpool-sweep" && c.job != nil:
		answer(http.StatusOK, c.job)
	default:
		refuse(http.StatusNotFound, "not found: "+path)
	}
}

type reply func(code int, body any)

type refusal func(code int, message string)

func (c cloud) services(names []string, answer reply, refuse refusal) {
	if len(names) == 0 || len(names) > 30 {
		refuse(http.StatusBadRequest, "names: 1 to 30")
		return
	}
	var services []any
	for _, name := range names {
		api, ok := strings.CutPrefix(name, "projects/p/services/")
		if !ok {
			refuse(http.StatusBadRequest, "names: "+name+" is not of the parent")
			return
		}
		state := "ENABLED"
		if slices.Contains(c.disabled, api) {
			state = "DISABLED"
		}
		services = append(services, map[string]any{"name": "projects/123/services/" + api, "state": state})
	}
	answer(http.StatusOK, map[string]any{"services": services})
}

var metricType = regexp.MustCompile(`metric\.type="([^"]+)"`)

func (c cloud) series(q url.Values, answer reply, refuse refusal) {
	types := metricType.FindAllStringSubmatch(q.Get("filter"), -1)
	start, serr := time.Parse(time.RFC3339, q.Get("interval.startTime"))
	end, eerr := time.Parse(time.RFC3339, q.Get("interval.endTime"))
	period, perr := time.ParseDuration(q.Get("aggregation.alignmentPeriod"))
	switch {
	case len(types) != 1:
		refuse(http.StatusBadRequest, "filter: exactly one metric type")
	case strings.Count(q.Get("filter"), `"`)%2 != 0 || strings.Contains(q.Get("filter"), "resource.label."):
		refuse(http.StatusBadRequest, "filter: cannot be parsed")
	case serr != nil || eerr != nil || !start.Before(end):
		refuse(http.StatusBadRequest, "interval: start before end, RFC 3339")
	case q.Get("aggregation.perSeriesAligner") != "" && (perr != nil || period < time.Minute):
		refuse(http.StatusBadRequest, "aggregation.alignmentPeriod: 60s or more")
	case q.Get("aggregation.crossSeriesReducer") != "" && q.Get("aggregation.perSeriesAligner") == "":
		refuse(http.StatusBadRequest, "aggregation: a reducer needs an aligner")
	case q.Get("aggregation.perSeriesAligner") == "ALIGN_DELTA" && types[0][1] != "serviceruntime.googleapis.com/quota/rate/net_usage":
		refuse(http.StatusBadRequest, "aggregation: ALIGN_DELTA is for DELTA and CUMULATIVE metrics")
	default:
		var all []any
		for _, p := range c.points[types[0][1]] {
			all = append(all, map[string]any{
				"metric": map[string]any{"type": types[0][1], "labels": p.metric}, "resource": map[string]any{"labels": p.resource},
				"points": []any{map[string]any{"value": map[string]any{"int64Value": strconv.FormatInt(p.value, 10)}}},
			})
		}
		answer(http.StatusOK, map[string]any{"timeSeries": all})
	}
}

func (c cloud) list(r *http.Request, answer reply, refuse refusal) {
	var body struct {
		ResourceNames []string `json:"resourceNames"`
		Filter        string   `json:"filter"`
		OrderBy       string   `json:"orderBy"`
		PageSize      int      `json:"pageSize"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil || len(body.ResourceNames) == 0 || body.PageSize < 0 || body.PageSize > 1000 {
		refuse(http.StatusBadRequest, "resourceNames and pageSize")
		return
	}
	if body.OrderBy != "timestamp desc" && body.OrderBy != "timestamp asc" && body.OrderBy != "" {
		refuse(http.StatusBadRequest, "orderBy: "+body.OrderBy)
		return
	}
	since := regexp.MustCompile(`timestamp>="([^"]+)"`).FindStringSubmatch(body.Filter)
	if strings.Count(body.Filter, "(") != strings.Count(body.Filter, ")") || since == nil {
		refuse(http.StatusBadRequest, "filter: cannot be parsed")
		return
	}
	from, err := time.Parse(time.RFC3339, since[1])
	if err != nil {
		refuse(http.StatusBadRequest, "filter: a timestamp is RFC 3339")
		return
	}
	entries := []any{}
	for text, at := range c.entries {
		if strings.Contains(body.Filter, text) && !at.Before(from) {
			entries = append(entries, map[string]any{"timestamp": at.Format(time.RFC3339Nano)})
		}
	}
	answer(http.StatusOK, map[string]any{"entries": entries})
}

func (c cloud) troubleshoot(r *http.Request, answer reply, refuse refusal) {
	var body struct {
		AccessTuple struct {
			Principal        string `json:"principal"`
			FullResourceName string `json:"fullResourceName"`
			Permission       string `json:"permission"`
			ConditionContext *struct {
				Resource struct {
					Name    string `json:"name"`
					Service string `json:"service"`
					Type    string `json:"type"`
				} `json:"resource"`
			} `json:"conditionContext"`
		} `json:"accessTuple"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(&body)
	t := body.AccessTuple
	switch {
	case err != nil:
		refuse(http.StatusBadRequest, err.Error())
	case !regexp.MustCompile(`^[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com$`).MatchString(t.Principal):
		refuse(http.StatusBadRequest, "principal: "+t.Principal)
	case !regexp.MustCompile(`^//[a-z]+\.googleapis\.com/projects/[a-z0-9_]`).MatchString(t.FullResourceName):
		refuse(http.StatusBadRequest, "fullResourceName: "+t.FullResourceName)
	case !regexp.MustCompile(`^[a-z]+(\.[a-zA-Z]+){2}$`).MatchString(t.Permission):
		refuse(http.StatusBadRequest, "permission: "+t.Permission)
	default:
		state := "CAN_ACCESS"
		identity, _, _ := strings.Cut(strings.TrimPrefix(t.Principal, "pushpool-"), "@")
		if slices.Contains(c.denied, identity+" "+t.Permission) {
			state = "CANNOT_ACCESS"
		}
		if slices.Contains(c.hidden, t.Permission) {
			state = "UNKNOWN_INFO"
		}
		bound := strings.HasPrefix(t.Permission, "datastore.") || strings.HasPrefix(t.Permission, "storage.") && !strings.HasPrefix(t.FullResourceName, "//storage.")
		if bound && t.ConditionContext == nil {
			state = "UNKNOWN_CONDITIONAL" // the grant is bound to one database or bucket
		}
		answer(http.StatusOK, map[string]any{"overallAccessState": state})
	}
}

func config() operator.Config {
	var cfg operator.Config
	cfg.Common = install.Common{Project: "p", Name: "pushpool", FlowRuns: "flow-runs"}
	cfg.Executions, cfg.Regions, cfg.Database, cfg.WritesPerMinute = "executions", []string{"r"}, "ledger", 180
	cfg.TasksQueue, cfg.TasksServiceAccount = "projects/p/locations/r/queues/timers", "pushpool-tasks@p.iam.gserviceaccount.com"
	cfg.SourceBucket = "p-pushpool-source-0a1b"
	cfg.Lifecycle, cfg.WebhookURL = "lifecycle", "https://webhook"
	cfg.LogView, cfg.LogReads = "locations/r/buckets/pushpool-jobs/views/pushpool-jobs", 10
	return cfg
}

func (c cloud) start(t *testing.T) *Google {
	t.Helper()
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	g, err := NewGoogle(t.Context(), option.WithEndpoint(server.URL+"/"), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	g.now = func() time.Time { return now }
	return g
}

var region = map[string]string{"location": "r"}

func rate(metric string, n int64) point {
	return point{map[string]string{"quota_metric": metric}, region, n}
}

func sink() map[string]any {
	return map[string]any{"writerIdentity": "serviceAccount:writer-123@gcp-sa-logging.iam.gserviceaccount.com", "name": "pushpool-executions", "destination": "pubsub.googleapis.com/projects/p/topics/executions", "filter": `resource.type="cloud_run_job"`}
}

// TestEachFindingSaysWhatWhyAndWhatToDo holds for what Google Cloud alone knows.
func TestEachFindingSaysWhatWhyAndWhatToDo(t *testing.T) {
	cfg := config()
	usage, limit := "serviceruntime.googleapis.com/quota/rate/net_usage", "serviceruntime.googleapis.com/quota/limit"
	waits, age := "pubsub.googleapis.com/subscription/num_undelivered_messages", "pubsub.googleapis.com/subscription/oldest_unacked_message_age"
	of := func(id string, n int64) point { return point{nil, map[string]string{"subscription_id": id}, n} }
	in := &operator.Installation{Config: cfg}
	unread := cfg
	unread.LogReads = 0
	checks := map[string]func(*Google) []Finding{
		"apis":   func(g *Google) []Finding { return g.enabled("p")(t.Context()) },
		"may":    func(g *Google) []Finding { return g.permitted(cfg)(t.Context()) },
		"unread": func(g *Google) []Finding { return g.permitted(unread)(t.Context()) },
		"quota":  func(g *Google) []Finding { return g.quotas(cfg)(t.Context()) },
		"wait":   func(g *Google) []Finding { return g.backlog(t.Context(), cfg, []string{"flow-runs-dispatcher"}) },
		"tick":   func(g *Google) []Finding { return g.tick(cfg)(t.Context()) },
		"events": func(g *Google) []Finding { return g.audit(in)(t.Context()) },
	}
	said := map[string][]Finding{}
	for name, tt := range map[string]struct {
		check string
		cloud cloud
	}{
		"APIs are enabled":     {"apis", cloud{}},
		"an API is off":        {"apis", cloud{disabled: []string{"run.googleapis.com"}}},
		"APIs may not be read": {"apis", cloud{forbidden: "services"}},

		"permissions are there":    {"may", cloud{}},
		"a permission is missing":  {"may", cloud{denied: []string{"dispatcher run.jobs.create"}}},
		"a log may not be read":    {"may", cloud{denied: []string{"finalizer logging.views.access"}}},
		"no log is to be read":     {"unread", cloud{denied: []string{"finalizer logging.views.access"}}},
		"policies may not be read": {"may", cloud{hidden: []string{"run.jobs.create"}}},

		"quotas are far":     {"quota", cloud{points: map[string][]point{usage: {rate("write_requests", 20)}, limit: {rate("write_requests", 180)}}}},
		"a quota is near":    {"quota", cloud{points: map[string][]point{usage: {rate("write_requests", 150)}, limit: {rate("write_requests", 180)}}}},
		"a quota is smaller": {"quota", cloud{points: map[string][]point{limit: {rate("write_requests", 60)}}}},
		"job runs are fewer": {"quota", cloud{points: map[string][]point{limit: {rate("run.googleapis.com/job_run_requests", 60)}}}},
		"no name is known":   {"quota", cloud{points: map[string][]point{limit: {rate("run.googleapis.com/mutations", 60)}}}},
		"nobody called":      {"quota", cloud{}},

		"messages are taken":    {"wait", cloud{points: map[string][]point{waits: {of("flow-runs-dispatcher", 3)}, age: {of("flow-runs-dispatcher", 4)}}}},
		"messages are not":      {"wait", cloud{points: map[string][]point{waits: {of("flow-runs-dispatcher", 3)}, age: {of("flow-runs-dispatcher", 4000)}}}},
		"metrics are forbidden": {"wait", cloud{forbidden: "timeSeries"}},

		"sweeps are complete": {"tick", cloud{job: map[string]any{"state": "ENABLED"}, entries: map[string]time.Time{"swept": now.Add(-30 * time.Second)}}},
		"the tick is paused":  {"tick", cloud{job: map[string]any{"state": "PAUSED"}}},
		"there is no tick":    {"tick", cloud{}},
		"sweeps fail": {
			"tick", cloud{job: map[string]any{"state": "ENABLED", "status": map[string]any{"code": 7, "message": "denied"}}, entries: map[string]time.Time{"swept": now.Add(-20 * time.Minute)}},
		},
		"no sweep in an hour":  {"tick", cloud{job: map[string]any{"state": "ENABLED"}, entries: map[string]time.Time{"swept": now.Add(-2 * time.Hour)}}},
		"the scheduler is off": {"tick", cloud{off: "jobs"}},

		"ends arrive":       {"events", cloud{sink: sink(), entries: map[string]time.Time{"cloud_run_job": now.Add(-time.Minute), "finalizer": now.Add(-50 * time.Second)}}},
		"ends do not":       {"events", cloud{sink: sink(), entries: map[string]time.Time{"cloud_run_job": now.Add(-time.Hour), "finalizer": now.Add(-2 * time.Hour)}}},
		"nothing ended":     {"events", cloud{sink: sink()}},
		"there is no sink":  {"events", cloud{}},
		"it is disabled":    {"events", cloud{sink: map[string]any{"disabled": true}}},
		"it leads nowhere":  {"events", cloud{sink: map[string]any{"destination": "storage.googleapis.com/b"}}},
		"logs are not read": {"events", cloud{sink: sink(), forbidden: "entries"}},
	} {
		in.Regions = nil // no execution is looked for here
		said[name] = checks[tt.check](tt.cloud.start(t))
	}
	golden(t, "google", said)
}

// TestTheAPIsAreThoseOfTheModule holds the list to terraform/apis.tf.
func TestTheAPIsAreThoseOfTheModule(t *testing.T) {
	data, err := os.ReadFile("../../../terraform/apis.tf")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile(`"([a-z]+\.googleapis\.com)"`).FindAllStringSubmatch(string(data), -1) {
		want = append(want, m[1])
	}
	if diff := cmp.Diff(want, apis); diff != "" {
		t.Errorf("(-module +doctor):\n%s", diff)
	}
}
