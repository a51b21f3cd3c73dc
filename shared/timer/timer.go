// Package timer delivers messages at a later time, through Cloud Tasks.
package timer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	cloudtasks "cloud.google.com/go/cloudtasks/apiv2"
	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	// MaxAhead is how far ahead Cloud Tasks takes a task (https://cloud.google.com/tasks/docs/quotas).
	MaxAhead = 30 * 24 * time.Hour

	callTimeout = 10 * time.Second
	// publishDeadline bounds the one request that a task makes. Cloud Tasks repeats it after that.
	publishDeadline = 30 * time.Second
	// maxNames bounds the names tried for one timer. One name more is used up whenever a timer
	// with the same key and time is set again after it fired, within the day that names stay taken.
	maxNames = 5

	scope = "https://www.googleapis.com/auth/pubsub"
)

// Config says where timers wait, and where they publish.
type Config struct {
	Queue string // projects/P/locations/L/queues/Q
	// PublishURL takes Pub/Sub's REST publication: https://pubsub.googleapis.com/v1/projects/P/topics/T:publish
	PublishURL string
	// ServiceAccount is the e-mail of the account that publishes; empty sends no token (emulators).
	ServiceAccount string
}

// Timer sets timers. It may be used by several goroutines.
type Timer struct {
	client *cloudtasks.Client
	cfg    Config
}

// New returns a Timer. The client stays the caller's to close.
func New(client *cloudtasks.Client, cfg Config) *Timer { return &Timer{client: client, cfg: cfg} }

// At has data published once, at when or as soon as possible after it. A second call with the
// same key and time (to the millisecond) changes nothing while the first timer still waits;
// once that has fired, it sets a new one. when may lie 30 days ahead at most.
//
// The error is a *flowrun.Error: Unclear (the timer may have been set), Refused (quota,
// permission), NotFound (no such queue), Exists (all names for this key and time are used
// up), Permanent (too far ahead, not valid).
func (t *Timer) At(ctx context.Context, when time.Time, key string, data []byte) error {
	if time.Until(when) > MaxAhead {
		return &flowrun.Error{
			Fault: flowrun.Permanent, Act: fmt.Sprintf("set a timer at %s", when.Format(time.RFC3339)),
			Hint: "Cloud Tasks takes tasks up to 30 days ahead",
		}
	}
	body, err := publication(data)
	if err != nil {
		return &flowrun.Error{Fault: flowrun.Permanent, Act: "encode a timer's message", Err: err}
	}
	var last error
	for salt := range maxNames {
		name := t.taskName(key, when, salt)
		last = t.create(ctx, name, when, body)
		if last == nil || flowrun.FaultOf(last) != flowrun.Exists {
			return last
		}
		waiting, err := t.waits(ctx, name)
		if err != nil || waiting {
			return err
		}
	}
	return last
}

func (t *Timer) create(ctx context.Context, name string, when time.Time, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request := &cloudtaskspb.HttpRequest{
		Url: t.cfg.PublishURL, HttpMethod: cloudtaskspb.HttpMethod_POST,
		Headers: map[string]string{"Content-Type": "application/json"}, Body: body,
	}
	if t.cfg.ServiceAccount != "" {
		request.AuthorizationHeader = &cloudtaskspb.HttpRequest_OauthToken{
			OauthToken: &cloudtaskspb.OAuthToken{ServiceAccountEmail: t.cfg.ServiceAccount, Scope: scope},
		}
	}
	_, err := t.client.CreateTask(ctx, &cloudtaskspb.CreateTaskRequest{
		Parent: t.cfg.Queue,
		Task: &cloudtaskspb.Task{
			Name: name, ScheduleTime: timestamppb.New(when), DispatchDeadline: durationpb.New(publishDeadline),
			MessageType: &cloudtaskspb.Task_HttpRequest{HttpRequest: request},
		},
	})
	return classify("create task "+name, err)
}

// waits tells whether a task has still to fire. A used name stays taken for up to a day after
// its task is gone, so that a name is taken does not say that its timer still waits.
func (t *Timer) waits(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := t.client.GetTask(ctx, &cloudtaskspb.GetTaskRequest{Name: name})
	if status.Code(err) == codes.NotFound {
		return false, nil
	}
	return err == nil, classify("get task "+name, err)
}

// taskName is a hash because Cloud Tasks stores tasks faster under names spread evenly, and
// salted because names are used up.
func (t *Timer) taskName(key string, when time.Time, salt int) string {
	sum := sha256.Sum256([]byte(key + "\x00" + strconv.FormatInt(when.UnixMilli(), 10) + "\x00" + strconv.Itoa(salt)))
	return t.cfg.Queue + "/tasks/" + hex.EncodeToString(sum[:16])
}

// publication is the body of a projects.topics.publish request.
func publication(data []byte) ([]byte, error) {
	type message struct {
		Data []byte `json:"data"`
	}
	return json.Marshal(struct {
		Messages []message `json:"messages"`
	}{[]message{{data}}})
}

func classify(act string, err error) error {
	if err == nil {
		return nil
	}
	e := &flowrun.Error{Act: act, Err: err}
	switch status.Code(err) {
	case codes.AlreadyExists:
		e.Fault = flowrun.Exists
	case codes.NotFound:
		e.Fault, e.Hint = flowrun.NotFound, "create the queue"
	case codes.PermissionDenied, codes.Unauthenticated:
		e.Fault = flowrun.Refused
		e.Hint = "grant roles/cloudtasks.enqueuer and roles/cloudtasks.viewer on the queue, and roles/iam.serviceAccountUser on the publishing account"
	case codes.ResourceExhausted:
		e.Fault, e.Hint = flowrun.Refused, "ask for more Cloud Tasks quota if this goes on"
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		e.Fault = flowrun.Permanent
	}
	return e
}
