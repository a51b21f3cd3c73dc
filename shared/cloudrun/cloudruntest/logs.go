package cloudruntest

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/logging/apiv2/loggingpb"
	"google.golang.org/genproto/googleapis/api/monitoredres"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// logReads is Cloud Logging's quota of a project in a minute
// (https://cloud.google.com/logging/quotas#api-limits).
const logReads = 60

// logs is Cloud Logging as far as it holds what containers wrote, each execution's last lines.
type logs struct {
	loggingpb.UnimplementedLoggingServiceV2Server
	server *Server
	reads  []time.Time // the last minute's; server.mu guards it
}

// LogView is the one view that each project has.
const LogView = "locations/global/buckets/_Default/views/_Default"

var viewName = regexp.MustCompile(`^projects/([^/]+)/(locations/[^/]+/buckets/[^/]+/views/[^/]+)$`)

// What the filter of a read of an execution's lines is made of. One that is not understood is refused.
var filterTerms = regexp.MustCompile(`\s*(?:(resource\.type|resource\.labels\.job_name|labels\."run\.googleapis\.com/execution_name"|timestamp)(=|>=)("[^"]*")|logName=\(([^)]*)\))`)

// ListLogEntries returns the lines of one execution, newest first or oldest first.
func (l *logs) ListLogEntries(_ context.Context, r *loggingpb.ListLogEntriesRequest) (*loggingpb.ListLogEntriesResponse, error) {
	terms := filterTerms.FindAllStringSubmatch(r.GetFilter(), -1)
	rest := strings.TrimSpace(filterTerms.ReplaceAllString(r.GetFilter(), ""))
	if rest != "" {
		return nil, status.Errorf(codes.InvalidArgument, "Unparseable filter: syntax error at %q", rest)
	}
	project, view := "", ""
	if names := r.GetResourceNames(); len(names) == 1 {
		if m := viewName.FindStringSubmatch(names[0]); m != nil {
			project, view = m[1], m[2]
		}
	}
	if view != LogView {
		return nil, status.Errorf(codes.NotFound, "Log view %q does not exist.", r.GetResourceNames())
	}
	want, logNames, after := map[string]string{}, "", time.Time{}
	for _, t := range terms {
		value := strings.Trim(t[3], `"`)
		switch t[1] {
		case "":
			logNames = t[4]
		case "timestamp":
			var err error
			if after, err = time.Parse(time.RFC3339, value); err != nil || t[2] != ">=" {
				return nil, status.Errorf(codes.InvalidArgument, "Unparseable filter: timestamp %q", value)
			}
		default:
			want[t[1]] = value
		}
	}
	s := l.server
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l.reads = slices.DeleteFunc(l.reads, func(at time.Time) bool { return now.Sub(at) > time.Minute })
	if len(l.reads) >= logReads {
		return nil, status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute' of service 'logging.googleapis.com'.")
	}
	l.reads = append(l.reads, now)
	var entries []*loggingpb.LogEntry
	for _, x := range s.history {
		name := "projects/" + project + "/logs/run.googleapis.com%2Fstdout"
		if x.job.project != project || want["resource.type"] != "cloud_run_job" ||
			want["resource.labels.job_name"] != x.job.id || want[`labels."run.googleapis.com/execution_name"`] != x.id || !strings.Contains(logNames, name) {
			continue
		}
		for _, line := range x.lines.last() {
			if line.at.Before(after) {
				continue
			}
			entries = append(entries, &loggingpb.LogEntry{
				LogName: name, Timestamp: timestamppb.New(line.at), Payload: &loggingpb.LogEntry_TextPayload{TextPayload: line.text},
				Labels:   map[string]string{"run.googleapis.com/execution_name": x.id},
				Resource: &monitoredres.MonitoredResource{Type: "cloud_run_job", Labels: map[string]string{"job_name": x.job.id, "location": x.job.region, "project_id": x.job.project}},
			})
		}
	}
	if r.GetOrderBy() == "timestamp desc" {
		slices.Reverse(entries)
	}
	res := &loggingpb.ListLogEntriesResponse{Entries: entries}
	if size := int(r.GetPageSize()); size > 0 && len(entries) > size {
		res.Entries, res.NextPageToken = entries[:size], "more" // no further page is kept
	}
	return res, nil
}
