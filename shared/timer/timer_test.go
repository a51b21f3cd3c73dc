package timer_test

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	cloudtasks "cloud.google.com/go/cloudtasks/apiv2"
	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/timer"
	"github.com/pushpool/pushpool/shared/timer/timertest"
)

const (
	queue = "projects/p/locations/l/queues/q"
	// url is never asked in tests: their timers wait for an hour.
	url = "http://127.0.0.1:1/v1/projects/p/topics/t:publish"
)

var config = timer.Config{Queue: queue, PublishURL: url, ServiceAccount: "timer@p.iam.gserviceaccount.com"}

func emulated(t *testing.T) *cloudtasks.Client {
	t.Helper()
	s, err := timertest.New("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return connect(t, s.ClientOptions()...)
}

func connect(t *testing.T, options ...option.ClientOption) *cloudtasks.Client {
	t.Helper()
	c, err := cloudtasks.NewClient(t.Context(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func tasks(t *testing.T, c *cloudtasks.Client) []*cloudtaskspb.Task {
	t.Helper()
	var all []*cloudtaskspb.Task
	for task, err := range c.ListTasks(t.Context(), &cloudtaskspb.ListTasksRequest{Parent: queue, ResponseView: cloudtaskspb.Task_FULL}).All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, task)
	}
	return all
}

func set(t *testing.T, timers *timer.Timer, when time.Time, key string) {
	t.Helper()
	if err := timers.At(t.Context(), when, key, []byte(`{"flow_run_id":"x"}`)); err != nil {
		t.Fatal(err)
	}
}

func TestATimerPublishesItsDataToTheTopicWhenDue(t *testing.T) {
	c := emulated(t)
	when := time.Now().Add(time.Hour).Truncate(time.Microsecond)
	set(t, timer.New(c, config), when, "k")
	all := tasks(t, c)
	if len(all) != 1 {
		t.Fatalf("%d tasks", len(all))
	}
	got := all[0]
	if at := got.ScheduleTime.AsTime(); !at.Equal(when) {
		t.Errorf("at %s, want %s", at, when)
	}
	r := got.GetHttpRequest()
	if r.Url != url || r.HttpMethod != cloudtaskspb.HttpMethod_POST {
		t.Errorf("%s %s", r.HttpMethod, r.Url)
	}
	token := r.GetOauthToken()
	if token.GetServiceAccountEmail() != config.ServiceAccount || token.GetScope() != "https://www.googleapis.com/auth/pubsub" {
		t.Errorf("token %v", token)
	}
	var body struct{ Messages []struct{ Data []byte } }
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	if len(body.Messages) != 1 || string(body.Messages[0].Data) != `{"flow_run_id":"x"}` {
		t.Errorf("body %s", r.Body)
	}
}

func TestWithoutAServiceAccountNoTokenIsSent(t *testing.T) {
	c := emulated(t)
	set(t, timer.New(c, timer.Config{Queue: queue, PublishURL: url}), time.Now().Add(time.Hour), "k")
	if token := tasks(t, c)[0].GetHttpRequest().GetOauthToken(); token != nil {
		t.Error(token)
	}
}

func TestKeyAndTimeMakeATimer(t *testing.T) {
	c := emulated(t)
	timers := timer.New(c, config)
	when := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	for _, step := range []struct {
		rule string
		when time.Time
		key  string
		want int
	}{
		{"the first", when, "k", 1},
		{"the same again changes nothing", when, "k", 1},
		{"the same within a millisecond changes nothing", when.Add(999 * time.Microsecond), "k", 1},
		{"another time is another timer", when.Add(time.Millisecond), "k", 2},
		{"another key is another timer", when, "l", 3},
	} {
		set(t, timers, step.when, step.key)
		if got := len(tasks(t, c)); got != step.want {
			t.Errorf("%s: %d tasks, want %d", step.rule, got, step.want)
		}
	}
}

func TestATimerThatIsGoneIsSetAgainUnderAnotherName(t *testing.T) {
	c := emulated(t)
	timers := timer.New(c, config)
	when := time.Now().Add(time.Hour)
	names := map[string]bool{}
	for range 5 {
		set(t, timers, when, "k")
		set(t, timers, when, "k")
		all := tasks(t, c)
		if len(all) != 1 || names[all[0].Name] {
			t.Fatalf("tasks %v, used %v", all, names)
		}
		names[all[0].Name] = true
		if err := c.DeleteTask(t.Context(), &cloudtaskspb.DeleteTaskRequest{Name: all[0].Name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := timers.At(t.Context(), when, "k", nil); flowrun.FaultOf(err) != flowrun.Exists || err == nil {
		t.Errorf("with all names used up: %v", err)
	}
}

func TestATimerMoreThan30DaysAheadIsRefused(t *testing.T) {
	err := timer.New(nil, config).At(t.Context(), time.Now().Add(timer.MaxAhead+time.Hour), "k", nil)
	if err == nil || flowrun.FaultOf(err) != flowrun.Permanent {
		t.Error(err)
	}
}

// failing answers as it is told.
type failing struct {
	cloudtaskspb.UnimplementedCloudTasksServer
	create, get error
	mu          sync.Mutex
	calls       []string
}

func (f *failing) note(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
}

func (f *failing) CreateTask(ctx context.Context, _ *cloudtaskspb.CreateTaskRequest) (*cloudtaskspb.Task, error) {
	f.note("create")
	if _, ok := ctx.Deadline(); !ok {
		return nil, status.Error(codes.FailedPrecondition, "no deadline")
	}
	return nil, f.create
}

func (f *failing) GetTask(context.Context, *cloudtaskspb.GetTaskRequest) (*cloudtaskspb.Task, error) {
	f.note("get")
	return nil, f.get
}

func TestErrorsAreClassified(t *testing.T) {
	exists := status.Error(codes.AlreadyExists, "injected")
	for name, test := range map[string]struct {
		create, get error
		want        flowrun.Fault
		text        string
		calls       []string
	}{
		"unavailable":        {create: status.Error(codes.Unavailable, "x"), want: flowrun.Unclear, text: "create task " + queue + "/tasks/", calls: []string{"create"}},
		"no permission":      {create: status.Error(codes.PermissionDenied, "x"), want: flowrun.Refused, text: "roles/cloudtasks.enqueuer", calls: []string{"create"}},
		"quota":              {create: status.Error(codes.ResourceExhausted, "x"), want: flowrun.Refused, calls: []string{"create"}},
		"no queue":           {create: status.Error(codes.NotFound, "x"), want: flowrun.NotFound, text: "create the queue", calls: []string{"create"}},
		"not valid":          {create: status.Error(codes.InvalidArgument, "x"), want: flowrun.Permanent, calls: []string{"create"}},
		"it may still wait":  {create: exists, get: status.Error(codes.Internal, "x"), want: flowrun.Unclear, text: "get task", calls: []string{"create", "get"}},
		"names are bounded":  {create: exists, get: status.Error(codes.NotFound, "x"), want: flowrun.Exists, calls: strings.Fields(strings.Repeat("create get ", 5))},
		"it may not be read": {create: exists, get: status.Error(codes.PermissionDenied, "x"), want: flowrun.Refused, text: "roles/cloudtasks.viewer", calls: []string{"create", "get"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &failing{create: test.create, get: test.get}
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			cloudtaskspb.RegisterCloudTasksServer(server, f)
			go func() { _ = server.Serve(listener) }()
			t.Cleanup(server.Stop)
			c := connect(t, option.WithEndpoint(listener.Addr().String()), option.WithoutAuthentication(),
				option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
			// Without retries of the client itself on reading, so that calls can be counted.
			c.CallOptions.GetTask = nil
			err = timer.New(c, config).At(t.Context(), time.Now().Add(time.Hour), "k", nil)
			if err == nil || flowrun.FaultOf(err) != test.want || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v is %s, want %s with %q", err, flowrun.FaultOf(err), test.want, test.text)
			}
			if diff := cmp.Diff(test.calls, f.calls); diff != "" {
				t.Error(diff)
			}
		})
	}
}
