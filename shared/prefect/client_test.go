package prefect_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const id = "6b0c1f3e-57a5-4c3e-9a50-4b7b6d1f2a10"

// script is a transport that gives one answer after the other, the last one again and again.
type script struct {
	answers []answer

	mu    sync.Mutex
	start time.Time
	calls []sent
}

// answer is a response, or an error; hang waits for the request's own deadline.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
	hang   bool
	queues string // the body, where work queues are listed
}

// sent is a request as it arrived; At is the time since the first.
type sent struct {
	At     time.Duration
	Method string
	Path   string
	Body   string
	Header http.Header
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	body := []byte{}
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	s.mu.Lock()
	if s.start.IsZero() {
		s.start = time.Now()
	}
	a := s.answers[min(len(s.calls), len(s.answers)-1)]
	s.calls = append(s.calls, sent{time.Since(s.start), r.Method, strings.TrimPrefix(r.URL.RequestURI(), "/api"), string(body), r.Header.Clone()})
	s.mu.Unlock()
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && (a.hang || a.err == nil) {
		trace.GotConn(httptrace.GotConnInfo{}) // as a real transport tells once there is a connection
	}
	if a.queues != "" && strings.HasSuffix(r.URL.Path, "/queues/filter") {
		a.body = a.queues
	}
	if a.hang {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if a.err != nil {
		return nil, a.err
	}
	if a.header == nil {
		a.header = http.Header{}
	}
	return &http.Response{StatusCode: a.status, Header: a.header, Body: io.NopCloser(strings.NewReader(a.body)), Request: r}, nil
}

func newClient(t *testing.T, s *script, change ...func(*prefect.Config)) *prefect.Client {
	t.Helper()
	cfg := prefect.Config{APIURL: "http://prefect.example/api", HTTPClient: &http.Client{Transport: s}}
	for _, c := range change {
		c(&cfg)
	}
	c, err := prefect.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var (
	flowRunFound = answer{status: 200, body: `{"id":"` + id + `"}`}
	accepted     = answer{status: 201, body: `{"status":"ACCEPT","state":{"type":"PENDING"},"details":{"type":"accept_details"}}`}
	busy         = answer{status: 503, body: `{"exception_message":"Service Unavailable"}`}
	written      = answer{status: 201}
	refusedConn  = answer{err: errors.New("connection refused")}
)

func tooMany(after string) answer {
	return answer{status: 429, header: http.Header{"Retry-After": {after}}, body: `{"detail":"Too Many Requests"}`}
}

func read(ctx context.Context, c *prefect.Client) error { _, err := c.FlowRun(ctx, id); return err }

func propose(ctx context.Context, c *prefect.Client) error {
	_, err := c.SetState(ctx, id, prefect.Proposal{Type: flowrun.StatePending})
	return err
}

func create(key string) func(context.Context, *prefect.Client) error {
	return func(ctx context.Context, c *prefect.Client) error {
		_, _, err := c.CreateFlowRun(ctx, id, prefect.NewFlowRun{IdempotencyKey: key})
		return err
	}
}

func write(ctx context.Context, c *prefect.Client) error {
	return c.Log(ctx, id, prefect.LogLine{Message: "boom"})
}

// TestRepetition_Prefect20510 holds which calls are made again, how often and after how long.
func TestRepetition_Prefect20510(t *testing.T) {
	for name, tt := range map[string]struct {
		call     func(context.Context, *prefect.Client) error
		answers  []answer
		deadline time.Duration // 0: none
		calls    int
		// The whole takes between these two.
		least, most time.Duration
		fault       string // "": no error
	}{
		"503 is waited out":                           {call: read, answers: []answer{busy, busy, flowRunFound}, calls: 3, least: 1200 * time.Millisecond, most: 1800 * time.Millisecond},
		"503 six times is the end":                    {call: read, answers: []answer{busy}, calls: 6, least: 12 * time.Second, most: 19 * time.Second, fault: "refused"},
		"Retry-After is waited for":                   {call: read, answers: []answer{tooMany("7"), flowRunFound}, calls: 2, least: 7 * time.Second, most: 9 * time.Second},
		"Retry-After beyond a minute is not":          {call: read, answers: []answer{tooMany("61")}, calls: 1, fault: "refused"},
		"nor one beyond the deadline":                 {call: read, answers: []answer{tooMany("30")}, deadline: 20 * time.Second, calls: 1, fault: "refused"},
		"a time-out of a read":                        {call: read, answers: []answer{{hang: true}, flowRunFound}, calls: 2, least: 10 * time.Second, most: 11 * time.Second},
		"502 of a read":                               {call: read, answers: []answer{{status: 502}, flowRunFound}, calls: 2, most: time.Second},
		"500 is not repeated":                         {call: read, answers: []answer{{status: 500, body: `{"exception_message":"Internal Server Error"}`}}, calls: 1, fault: "unclear"},
		"404 is not repeated":                         {call: read, answers: []answer{{status: 404, body: `{"detail":"Flow run not found"}`}}, calls: 1, fault: "not found"},
		"a proposal that timed out is not repeated":   {call: propose, answers: []answer{{hang: true}, accepted}, calls: 1, least: 10 * time.Second, most: 10 * time.Second, fault: "unclear"},
		"a proposal answered with 502 is not":         {call: propose, answers: []answer{{status: 502}, accepted}, calls: 1, fault: "unclear"},
		"a proposal answered with 503 is":             {call: propose, answers: []answer{busy, accepted}, calls: 2, most: time.Second},
		"a proposal is not made again after 5 s":      {call: propose, answers: []answer{tooMany("6")}, calls: 1, fault: "refused"},
		"a proposal is made again for 5 s":            {call: propose, answers: []answer{busy}, calls: 4, least: 2500 * time.Millisecond, most: 5 * time.Second, fault: "refused"},
		"a proposal answered with 429 is":             {call: propose, answers: []answer{tooMany("1"), accepted}, calls: 2, least: time.Second, most: 2 * time.Second},
		"but not without time for a whole attempt":    {call: propose, answers: []answer{busy, accepted}, deadline: 10 * time.Second, calls: 1, fault: "refused"},
		"a proposal that was never sent is":           {call: propose, answers: []answer{refusedConn, accepted}, calls: 2, most: time.Second},
		"a creation with a key is repeated":           {call: create("k"), answers: []answer{{hang: true}, flowRunFound}, calls: 2, least: 10 * time.Second, most: 11 * time.Second},
		"a creation without a key is not":             {call: create(""), answers: []answer{{hang: true}, flowRunFound}, calls: 1, least: 10 * time.Second, most: 10 * time.Second, fault: "unclear"},
		"lines that timed out are not written again":  {call: write, answers: []answer{{hang: true}, written}, calls: 1, least: 10 * time.Second, most: 10 * time.Second, fault: "unclear"},
		"lines are written as soon as there is room":  {call: write, answers: []answer{busy, busy, busy, busy, busy, written}, deadline: 30 * time.Second, calls: 6, least: 12 * time.Second, most: 19 * time.Second},
		"maintenance does not count":                  {call: read, answers: append(maintenance(9), flowRunFound), deadline: time.Minute, calls: 10, most: time.Minute},
		"no connection is refused":                    {call: read, answers: []answer{refusedConn}, calls: 6, least: 12 * time.Second, most: 19 * time.Second, fault: "refused"},
		"an answer that is a web page is not trusted": {call: read, answers: []answer{{status: 200, body: "<html>"}}, calls: 1, fault: "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answers: tt.answers}
				c := newClient(t, s)
				ctx := t.Context()
				if tt.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.deadline)
					defer cancel()
				}
				start := time.Now()
				err := tt.call(ctx, c)
				took, fault := time.Since(start), ""
				if err != nil {
					fault = flowrun.FaultOf(err).String()
				}
				if diff := cmp.Diff([]any{tt.calls, tt.fault}, []any{len(s.calls), fault}); diff != "" {
					t.Errorf("calls and fault (-want +got):\n%s\nerror: %v", diff, err)
				}
				if took < tt.least || took > tt.most {
					t.Errorf("it took %s, want %s to %s", took, tt.least, tt.most)
				}
			})
		})
	}
}

func maintenance(times int) []answer {
	all := make([]answer, times)
	for i := range all {
		all[i] = answer{status: 503, header: http.Header{"Prefect-Maintenance": {"true"}, "Retry-After": {"1"}}}
	}
	return all
}

// TestErrors holds that an error says what it means and what a person has to do, and repeats no input.
func TestErrors(t *testing.T) {
	key := func(c *prefect.Config) { c.APIKey = "pnu_secret" }
	auth := func(c *prefect.Config) { c.AuthString = "admin:secret" }
	for name, tt := range map[string]struct {
		answer answer
		change func(*prefect.Config)
		fault  flowrun.Fault
		text   []string
	}{
		"401 with an API key":     {answer{status: 401, body: `{"exception_message":"Unauthorized"}`}, key, flowrun.Refused, []string{"Unauthorized", "API key"}},
		"401 with an auth string": {answer{status: 401}, auth, flowrun.Refused, []string{"PREFECT_SERVER_API_AUTH_STRING"}},
		"401 with neither":        {answer{status: 401}, nil, flowrun.Refused, []string{"set an API key (Prefect Cloud) or an auth string (a server)"}},
		"403":                     {answer{status: 403, body: `{"detail":"Forbidden"}`}, key, flowrun.Refused, []string{"role"}},
		"a router's 404":          {answer{status: 404, body: `{"detail":"Not Found"}`}, nil, flowrun.Refused, []string{"ends in /api"}},
		"a proxy's 404":           {answer{status: 404, body: `<html>`}, nil, flowrun.Refused, []string{"ends in /api"}},
		"an object's 404":         {answer{status: 404, body: `{"detail":"Flow run not found"}`}, nil, flowrun.NotFound, []string{"read flow run " + id, "Flow run not found"}},
		"422": {
			answer{status: 422, body: `{"exception_message":"Invalid request received.","exception_detail":[{"loc":["body","name"],"msg":"Field required"}],"request_body":"s3cret"}`},
			nil, flowrun.Permanent, []string{"Invalid request received.", "body.name: Field required;", "correct the fields"},
		},
		"409":      {answer{status: 409, body: `{"detail":"taken"}`}, nil, flowrun.Permanent, []string{"taken", "change what it names"}},
		"redirect": {answer{status: 302, header: http.Header{"Location": {"https://login.example/"}}}, key, flowrun.Refused, []string{"https://login.example/"}},
		"500":      {answer{status: 500, body: "oops"}, nil, flowrun.Unclear, []string{"500", "oops", "its own log says why"}},
	} {
		t.Run(name, func(t *testing.T) {
			change := tt.change
			if change == nil {
				change = func(*prefect.Config) {}
			}
			err := read(t.Context(), newClient(t, &script{answers: []answer{tt.answer}}, change))
			if err == nil || flowrun.FaultOf(err) != tt.fault {
				t.Fatalf("got %v, want one that is %s", err, tt.fault)
			}
			for _, text := range tt.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q does not say %q", err, text)
				}
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %q repeats a secret", err)
			}
		})
	}
	t.Run("an id that is no UUID is not sent", func(t *testing.T) {
		s := &script{answers: []answer{flowRunFound}}
		_, err := newClient(t, s).FlowRun(t.Context(), "../flows")
		if flowrun.FaultOf(err) != flowrun.Permanent || len(s.calls) != 0 {
			t.Errorf("error %v after %d calls, want permanent after none", err, len(s.calls))
		}
	})
}

// TestRequest holds what every call carries.
func TestRequest(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*prefect.Config)
		want   string
	}{
		"nothing":        {func(*prefect.Config) {}, ""},
		"API key":        {func(c *prefect.Config) { c.APIKey = "pnu_1" }, "Bearer pnu_1"},
		"auth string":    {func(c *prefect.Config) { c.AuthString = "u:p" }, "Basic dTpw"},
		"both":           {func(c *prefect.Config) { c.AuthString, c.APIKey = "u:p", "pnu_1" }, "Basic dTpw"},
		"trailing slash": {func(c *prefect.Config) { c.APIURL += "/" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{answers: []answer{accepted}}
			c := newClient(t, s, tt.change, func(c *prefect.Config) { c.CustomHeaders = map[string]string{"x-proxy": "yes"} })
			at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			a, err := c.SetState(t.Context(), id, prefect.Proposal{Type: flowrun.StateScheduled, Name: "AwaitingCapacity", TransitionID: id, ScheduledTime: &at})
			if err != nil || a.Status != prefect.StatusAccept || a.State.Type != flowrun.StatePending {
				t.Fatalf("answer %+v, error %v", a, err)
			}
			got := s.calls[0]
			want := `{"state":{"type":"SCHEDULED","name":"AwaitingCapacity","state_details":{"transition_id":"` + id + `","scheduled_time":"2026-01-01T00:00:00Z"}}}`
			if diff := cmp.Diff([]string{"POST", "/flow_runs/" + id + "/set_state", want, tt.want, "0.8.4", "application/json", "yes"}, []string{
				got.Method, got.Path, got.Body, got.Header.Get("Authorization"), got.Header.Get("X-Prefect-Api-Version"),
				got.Header.Get("Content-Type"), got.Header.Get("X-Proxy"),
			}); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNewNamesAllFaults holds that a wrong configuration is told at once, and as a whole.
func TestNewNamesAllFaults(t *testing.T) {
	_, err := prefect.New(prefect.Config{
		APIURL: "https://app.prefect.cloud/account/a", AuthString: "secret", RequestsPerMinute: -1, CustomHeaders: map[string]string{"user-agent": "x"},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, text := range []string{"API URL: ", "auth string: there is no colon", "custom header user-agent", "requests per minute: -1"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("error %q repeats the auth string", err)
	}
}

// TestRateLimit holds that a tenth of a minute's calls go at once, and the rest in their time.
func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: []answer{flowRunFound}}
		c := newClient(t, s, func(c *prefect.Config) { c.RequestsPerMinute = 60 })
		for range 66 {
			if err := read(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		if at := s.calls[5].At; at != 0 {
			t.Errorf("the sixth call waits %s", at)
		}
		if at := s.calls[65].At; at < 59*time.Second || at > 61*time.Second {
			t.Errorf("call 66 comes after %s, want a minute", at)
		}
	})
}

// TestNumbers holds that numbers keep how they are written: 1.0 and 1 are different in a template.
func TestNumbers(t *testing.T) {
	s := &script{answers: []answer{{status: 200, body: `{"parameters":{"x":1.0,"y":1}}`}}}
	f, err := newClient(t, s).FlowRun(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"x": json.Number("1.0"), "y": json.Number("1")}, f.Parameters); diff != "" {
		t.Errorf("parameters (-want +got):\n%s", diff)
	}
}
