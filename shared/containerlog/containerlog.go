// Package containerlog reads what a container wrote last, from Cloud Logging.
package containerlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	logging "cloud.google.com/go/logging/apiv2"
	"cloud.google.com/go/logging/apiv2/loggingpb"
	"golang.org/x/time/rate"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	logtype "google.golang.org/genproto/googleapis/logging/type"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Bounds of what Last returns.
const (
	MaxLines     = 50
	maxLineBytes = 2_000
	maxBytes     = 16_000
)

// Line is a line that a container wrote, without what looks like a secret.
type Line struct {
	Time time.Time
	// Severity is Cloud Logging's, 0 to 800; 0 where the container gave none.
	Severity int
	Text     string
}

// Client reads Cloud Logging.
type Client struct {
	logging *logging.Client
	view    string
	limit   *rate.Limiter
}

// New returns a client that reads a log view of each project, locations/LOCATION/buckets/BUCKET/views/VIEW
// (https://cloud.google.com/logging/docs/logs-views), at most so many times in a minute: a project has
// 60 reads in all, for people, too (https://cloud.google.com/logging/quotas). The options are the Google API's.
func New(ctx context.Context, view string, perMinute int, opts ...option.ClientOption) (*Client, error) {
	client, err := logging.NewClient(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("make a Cloud Logging client: %w", err)
	}
	return &Client{logging: client, view: view, limit: rate.NewLimiter(rate.Every(time.Minute/time.Duration(max(perMinute, 1))), min(perMinute, 10))}, nil
}

// Close closes the client's connections.
func (c *Client) Close() error { return c.logging.Close() }

// ErrBudget: there were too many reads in the last minute. It is no use to wait.
var ErrBudget = errors.New("the reads of this minute are used up")

// Last returns the execution's last lines, oldest first, of those written after a time: at
// most MaxLines, and not so many where they are long. It makes one call, and none beyond the
// budget.
func (c *Client) Last(ctx context.Context, project, job, execution string, after time.Time) ([]Line, error) {
	act := fmt.Sprintf("read the last log lines of execution %s in log view %s of project %s", execution, c.view, project)
	if !c.limit.Allow() {
		return nil, &flowrun.Error{Fault: flowrun.Refused, Act: act, Err: ErrBudget}
	}
	filter := fmt.Sprintf(`resource.type="cloud_run_job" resource.labels.job_name=%q labels."run.googleapis.com/execution_name"=%q`+
		` logName=("projects/%[3]s/logs/run.googleapis.com%%2Fstdout" OR "projects/%[3]s/logs/run.googleapis.com%%2Fstderr" OR "projects/%[3]s/logs/run.googleapis.com%%2Fvarlog%%2Fsystem")`,
		job, execution, project)
	if !after.IsZero() {
		filter += fmt.Sprintf(" timestamp>=%q", after.UTC().Format(time.RFC3339))
	}
	entries := c.logging.ListLogEntries(ctx, &loggingpb.ListLogEntriesRequest{
		ResourceNames: []string{"projects/" + project + "/" + c.view}, Filter: filter, OrderBy: "timestamp desc", PageSize: MaxLines,
	})
	var lines []Line
	left := maxBytes
	for len(lines) < MaxLines {
		e, err := entries.Next()
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			return nil, classify(act, err)
		}
		l := line(e)
		if left -= min(len(l.Text), maxLineBytes); left < 0 {
			break
		}
		lines = append(lines, l)
		if entries.PageInfo().Remaining() == 0 {
			break // a further page is a further read
		}
	}
	slices.SortStableFunc(lines, func(a, b Line) int { return a.Time.Compare(b.Time) })
	redact(lines)
	for i, l := range lines {
		lines[i].Text = cut(l.Text) // not before: half a secret does not look like one
	}
	return lines, nil
}

func line(e *loggingpb.LogEntry) Line {
	text := e.GetTextPayload()
	if f := e.GetJsonPayload().GetFields(); f != nil {
		text = cmp.Or(f["message"].GetStringValue(), f["msg"].GetStringValue(), e.GetJsonPayload().String())
	}
	return Line{Time: e.GetTimestamp().AsTime(), Severity: int(e.GetSeverity()), Text: strings.TrimRight(text, "\r\n")}
}

func cut(text string) string {
	if len(text) > maxLineBytes {
		return strings.ToValidUTF8(text[:maxLineBytes], "") + "…"
	}
	return text
}

// Severities of Cloud Logging that a reader compares with.
const (
	Warning = int(logtype.LogSeverity_WARNING)
	Error   = int(logtype.LogSeverity_ERROR)
)

func classify(act string, err error) error {
	e := &flowrun.Error{Act: act, Err: err}
	switch status.Code(err) {
	case codes.ResourceExhausted:
		e.Fault = flowrun.Refused
	case codes.PermissionDenied, codes.NotFound:
		e.Fault, e.Hint = flowrun.Refused, "let LOG_VIEW name a view that there is, grant the function's service account roles/logging.viewAccessor on it, or set LOG_READS_PER_MINUTE to 0"
	}
	return e
}
