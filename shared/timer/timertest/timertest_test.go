package timertest_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	cloudtasks "cloud.google.com/go/cloudtasks/apiv2"
	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/iterator"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pushpool/pushpool/shared/timer/timertest"
)

const (
	queue = "projects/p/locations/l/queues/q"
	name  = queue + "/tasks/a"
	// patience bounds waits for what has to come; no test passes by waiting it out.
	patience = 30 * time.Second
)

func newClient(t *testing.T) *cloudtasks.Client {
	t.Helper()
	s, err := timertest.New("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c, err := cloudtasks.NewClient(t.Context(), s.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

type request struct {
	Method, Body string
	Header       http.Header
}

func newTarget(t *testing.T, answer func(attempt int) int) (string, chan request) {
	t.Helper()
	got := make(chan request, 1000)
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		n++ // requests of one task follow each other
		w.WriteHeader(answer(n))
		got <- request{r.Method, string(body), r.Header}
	}))
	t.Cleanup(s.Close)
	return s.URL, got
}

func next(t *testing.T, got chan request) request {
	t.Helper()
	select {
	case r := <-got:
		return r
	case <-time.After(patience):
		t.Fatal("no request came")
		return request{}
	}
}

func task(url string, in time.Duration) *cloudtaskspb.Task {
	return &cloudtaskspb.Task{
		Name: name, ScheduleTime: timestamppb.New(time.Now().Add(in)),
		MessageType: &cloudtaskspb.Task_HttpRequest{HttpRequest: &cloudtaskspb.HttpRequest{Url: url, Body: []byte("body"), Headers: map[string]string{"X-Mine": "1"}}},
	}
}

func create(t *testing.T, c *cloudtasks.Client, task *cloudtaskspb.Task) error {
	t.Helper()
	_, err := c.CreateTask(t.Context(), &cloudtaskspb.CreateTaskRequest{Parent: queue, Task: task})
	return err
}

// gone waits until a task is done.
func gone(t *testing.T, c *cloudtasks.Client) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := c.GetTask(t.Context(), &cloudtaskspb.GetTaskRequest{Name: name}); status.Code(err) == codes.NotFound {
			return
		}
	}
	t.Fatal("the task is still there")
}

func TestATaskFiresWhenDueAndIsGone(t *testing.T) {
	c := newClient(t)
	url, got := newTarget(t, func(int) int { return 204 })
	due := time.Now().Add(20 * time.Millisecond)
	if err := create(t, c, task(url, 20*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	r := next(t, got)
	if time.Now().Before(due) {
		t.Error("fired early")
	}
	if r.Method != http.MethodPost || r.Body != "body" || r.Header.Get("X-Mine") != "1" || r.Header.Get("X-CloudTasks-TaskName") != "a" || r.Header.Get("X-CloudTasks-QueueName") != "q" {
		t.Errorf("request %+v", r)
	}
	gone(t, c)
	if err := create(t, c, task(url, 0)); status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), "existed too recently") {
		t.Errorf("its name: %v", err)
	}
	if len(got) > 0 {
		t.Error("fired again")
	}
}

func TestAFailedRequestIsRepeated(t *testing.T) {
	c := newClient(t)
	url, got := newTarget(t, func(attempt int) int { return []int{500, 302, 200}[attempt-1] })
	if err := create(t, c, task(url, 0)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0", "1", "2"} {
		if r := next(t, got); r.Header.Get("X-CloudTasks-TaskRetryCount") != want {
			t.Errorf("retry count %s, want %s", r.Header.Get("X-CloudTasks-TaskRetryCount"), want)
		}
	}
	gone(t, c)
}

func TestATaskThatWaitsCanBeReadListedAndDeleted(t *testing.T) {
	c := newClient(t)
	url, got := newTarget(t, func(int) int { return 200 })
	if err := create(t, c, task(url, time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := create(t, c, task(url, time.Hour)); status.Code(err) != codes.AlreadyExists {
		t.Errorf("created twice: %v", err)
	}
	for view, want := range map[cloudtaskspb.Task_View]string{cloudtaskspb.Task_BASIC: "", cloudtaskspb.Task_FULL: "body"} {
		read, err := c.GetTask(t.Context(), &cloudtaskspb.GetTaskRequest{Name: name, ResponseView: view})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(read.GetHttpRequest().GetBody())); diff != "" || read.GetCreateTime() == nil {
			t.Errorf("%s: %s", view, diff)
		}
	}
	var names []string
	list := c.ListTasks(t.Context(), &cloudtaskspb.ListTasksRequest{Parent: queue})
	for {
		listed, err := list.Next()
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, listed.Name)
	}
	if diff := cmp.Diff([]string{name}, names); diff != "" {
		t.Error(diff)
	}
	if err := c.DeleteTask(t.Context(), &cloudtaskspb.DeleteTaskRequest{Name: name}); err != nil {
		t.Error(err)
	}
	if err := c.DeleteTask(t.Context(), &cloudtaskspb.DeleteTaskRequest{Name: name}); status.Code(err) != codes.NotFound {
		t.Errorf("deleted twice: %v", err)
	}
	gone(t, c)
	if err := create(t, c, task(url, 0)); status.Code(err) != codes.AlreadyExists {
		t.Errorf("its name: %v", err)
	}
	if len(got) > 0 {
		t.Error("fired")
	}
}

func TestWhatCloudTasksRefusesIsRefused(t *testing.T) {
	c := newClient(t)
	for rule, change := range map[string]func(*cloudtaskspb.Task){
		"a task needs a request":             func(t *cloudtaskspb.Task) { t.MessageType = nil },
		"a URL needs a scheme":               func(t *cloudtaskspb.Task) { t.GetHttpRequest().Url = "example.com" },
		"a name belongs to its queue":        func(t *cloudtaskspb.Task) { t.Name = "projects/p/locations/l/queues/other/tasks/a" },
		"an id has no other characters":      func(t *cloudtaskspb.Task) { t.Name += ".b" },
		"30 days ahead at most":              func(t *cloudtaskspb.Task) { t.ScheduleTime = timestamppb.New(time.Now().Add(31 * 24 * time.Hour)) },
		"the deadline is 15 s at least":      func(t *cloudtaskspb.Task) { t.DispatchDeadline = durationpb.New(time.Second) },
		"a task is no larger than 1 MB":      func(t *cloudtaskspb.Task) { t.GetHttpRequest().Body = make([]byte, 1<<20) },
		"the deadline is 30 minutes at most": func(t *cloudtaskspb.Task) { t.DispatchDeadline = durationpb.New(time.Hour) },
	} {
		t.Run(rule, func(t *testing.T) {
			bad := task("http://127.0.0.1:1", time.Hour)
			change(bad)
			if err := create(t, c, bad); status.Code(err) != codes.InvalidArgument {
				t.Error(err)
			}
		})
	}
	if _, err := c.CreateTask(t.Context(), &cloudtaskspb.CreateTaskRequest{Parent: "q", Task: task("http://127.0.0.1:1", 0)}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

func TestCloseEndsARequestUnderWay(t *testing.T) {
	s, err := timertest.New("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := cloudtasks.NewClient(t.Context(), s.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	arrived := make(chan struct{})
	target := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(arrived)
		<-r.Context().Done()
	}))
	defer target.Close()
	if err := create(t, c, task(target.URL, 0)); err != nil {
		t.Fatal(err)
	}
	<-arrived
	s.Close()
}
