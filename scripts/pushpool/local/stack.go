// Package local runs a whole installation on one machine: everything that Google Cloud and
// Prefect are to it, and the four functions.
package local

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/publish"
	"github.com/pushpool/pushpool/shared/timer/timertest"
)

// Names of the local installation.
const (
	Project  = "local"
	Install  = "pushpool"
	Region   = "us-central1"
	WorkPool = "cloud-run"

	TopicFlowRuns   = "flow-runs"
	TopicExecutions = "executions"
	TopicDeadLetter = "dead-letter"
	TopicLifecycle  = "lifecycle"

	// Automation is the Prefect automation that calls the webhook.
	Automation = Install
)

// besides are project and name of an installation beside another.
const besides = "second"

// secret is the webhook's. Everything listens on the loopback interface only.
const secret = "the-local-stack-has-no-secrets"

// Options of a stack.
type Options struct {
	// Beside is another installation, whose Prefect and work pool this one shares; nil: none.
	Beside *Stack
	// Embedded uses stand-ins for the Prefect server and the flow: no Python.
	Embedded bool
	// LightFlow uses the stand-in for the flow with a real server: it starts in milliseconds.
	LightFlow bool
	// PoolType is the work pool's type, cloud-run-v2 or cloud-run; empty is the first.
	PoolType string
	// Python makes Prefect's virtual environment; empty: one that is found.
	Python string
	// Port of the functions; 0: a free one.
	Port int
	// EntryDelay passes between an execution's end and its audit entry.
	EntryDelay time.Duration
	// SweepEvery is how often the reconciler is called.
	SweepEvery time.Duration
	// LiveWeather has the flow ask the public API.
	LiveWeather bool
	// OnPrefectCall, if set, is told of every call that the functions make to Prefect.
	OnPrefectCall func(*http.Request)
	// OnPrefectAnswer, if set, is told of every answer to these calls.
	OnPrefectAnswer func(*http.Response)
	// Postgres lets the real server keep its data in PostgreSQL; else in SQLite.
	Postgres bool
	// Processes is how many processes serve the functions, each all of them; 0 is 1. More need a
	// ledger that they share: the Firestore emulator, which is started.
	Processes int
	// WritesPerMinute, MaxJobs and MaxExecutions are Cloud Run's quotas; 0 is none, but for
	// 1000 jobs.
	WritesPerMinute, MaxJobs, MaxExecutions int
	// Delays, if set, says how long a job takes to become ready and its execution to start.
	Delays func(job string) (ready, start time.Duration)
	// LaunchMode is the installation's; empty is job.
	LaunchMode string
	// Output receives the log lines of functions and containers; nil: none.
	Output io.Writer
	// Say tells of progress.
	Say func(format string, args ...any)
}

// Stack is a running local installation.
type Stack struct {
	Options
	// Project and Name are the installation's.
	Project, Name string

	Prefect   *prefect.Client
	CloudRun  *cloudruntest.Server // nil where CLOUD_RUN_EMULATOR_HOST names another
	Tasks     *timertest.Server    // nil where CLOUD_TASKS_EMULATOR_HOST names another
	Functions *Functions
	Others    []*Functions // with more than one of Options.Processes
	FlowRuns  *publish.Topic

	apiURL     string
	containers []string // environment of theirs
	push       string   // host:port of the functions for pushes
	dir        string
	urls       [][2]string
	close      []func()
	pushes     map[string]*deliverytest.Pusher // by topic
	// onPush and onCall inject faults; see OnPush and OnCall.
	onPush atomic.Pointer[func(deliverytest.Push) deliverytest.Fault]
	onCall atomic.Pointer[func(method string, phase cloudruntest.Phase) error]
}

// Start starts a stack. ctx bounds the start only. Parts that environment variables name
// (PUBSUB_EMULATOR_HOST, FIRESTORE_EMULATOR_HOST, CLOUD_RUN_EMULATOR_HOST,
// CLOUD_TASKS_EMULATOR_HOST, PREFECT_API_URL) are used instead of being started.
func Start(ctx context.Context, o Options) (s *Stack, err error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(root, ".cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(cache, "stack-")
	if err != nil {
		return nil, err
	}
	s = &Stack{Options: o, dir: dir, Project: Project, Name: Install, pushes: map[string]*deliverytest.Pusher{}}
	if o.Beside != nil {
		s.Project, s.Name = besides, besides
	}
	s.later(func() { _ = os.RemoveAll(dir) })
	defer func() {
		if err != nil {
			s.Close()
			s = nil
		}
	}()
	if o.Port == 0 {
		if s.Port, err = FreePort(ctx); err != nil {
			return s, err
		}
	}
	containers, deploy, err := s.startPrefect(ctx, root)
	s.containers = containers
	if err != nil {
		return s, err
	}
	if err := s.startFirestore(ctx); err != nil {
		return s, err
	}
	environ, err := s.startGoogle(ctx, containers)
	if err != nil {
		return s, err
	}
	s.Functions = &Functions{addr: fmt.Sprintf("127.0.0.1:%d", s.Port), environ: environ, output: o.Output}
	s.later(s.Functions.Stop)
	if err := s.Functions.Start(ctx); err != nil {
		return s, err
	}
	s.note("functions", "http://"+s.Functions.addr)
	if err := s.startOthers(ctx); err != nil {
		return s, err
	}
	if err := s.subscribe(ctx); err != nil {
		return s, err
	}
	if err := s.setUpPrefect(ctx); err != nil {
		return s, err
	}
	if err := deploy(ctx); err != nil {
		return s, err
	}
	s.schedule()
	return s, nil
}

// setUpPrefect creates the work pool, the webhook block and the automation.
func (s *Stack) setUpPrefect(ctx context.Context) error {
	poolType := cmp.Or(s.PoolType, PoolType)
	template, err := s.Prefect.WorkerMetadataTemplate(ctx, poolType)
	if err != nil {
		return err
	}
	if poolType == PoolType {
		addSecrets(template)
	}
	if err := s.Prefect.CreateWorkPool(ctx, WorkPool, poolType, template); err != nil {
		return err
	}
	err = s.Prefect.EnsureWebhook(ctx, prefect.WebhookSetup{
		BlockName: s.Name, AutomationName: s.Name, URL: s.Functions.URL("webhook"), Secret: secret, WorkPools: []string{WorkPool},
	})
	if err != nil && flowrun.FaultOf(err) == flowrun.Permanent { // a server without events
		s.Say("%v", err)
		return nil
	}
	return err
}

// PoolType is the work pool's unless Options name another.
const PoolType = "cloud-run-v2"

// addSecrets adds the job variable env_from_secrets to a base job template: the worker's own
// has it, the copy that Prefect's server shows does not.
func addSecrets(template map[string]any) {
	const variable = "env_from_secrets"
	configuration, _ := template["job_configuration"].(map[string]any)
	variables, _ := template["variables"].(map[string]any)
	if properties, ok := variables["properties"].(map[string]any); ok && configuration != nil {
		configuration[variable] = "{{ " + variable + " }}"
		properties[variable] = map[string]any{"type": "object"}
	}
}

// schedule is Cloud Scheduler: it calls the reconciler.
func (s *Stack) schedule() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.later(func() { stop(); <-done })
	go func() {
		defer close(done)
		ticker := time.NewTicker(cmp.Or(s.SweepEvery, time.Minute))
		defer ticker.Stop()
		for {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Functions.URL("reconciler"), nil)
			if err == nil {
				if resp, err := http.DefaultClient.Do(req); err == nil {
					_ = resp.Body.Close()
				}
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// OnPush sets what goes wrong with pushes of the topic flow-runs; nil: nothing.
func (s *Stack) OnPush(f func(deliverytest.Push) deliverytest.Fault) {
	s.onPush.Store(orNil(f, f == nil))
}

// OnCall is asked before and after each call to Cloud Run what goes wrong with it; nil: nothing.
func (s *Stack) OnCall(f func(method string, phase cloudruntest.Phase) error) {
	s.onCall.Store(orNil(f, f == nil))
}

// Detach has nothing of the topic delivered any more, until Attach.
func (s *Stack) Detach(topic string) { s.pushes[topic].Pause() }

// Attach has what was published meanwhile delivered, and what is published from now on.
func (s *Stack) Attach(topic string) { s.pushes[topic].Resume() }

func orNil[T any](v T, isNil bool) *T {
	if isNil {
		return nil
	}
	return &v
}

// Close stops everything that Start started, last first.
func (s *Stack) Close() {
	for i := len(s.close) - 1; i >= 0; i-- {
		s.close[i]()
	}
	s.close = nil
}

func (s *Stack) later(f func()) { s.close = append(s.close, f) }

func (s *Stack) note(name, url string) { s.urls = append(s.urls, [2]string{name, url}) }

// Describe returns the addresses of all parts, one in each line.
func (s *Stack) Describe() string {
	var b strings.Builder
	for _, u := range s.urls {
		fmt.Fprintf(&b, "  %-12s %s\n", u[0], u[1])
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Ask returns a command that publishes a run request on the topic flow-runs.
func (s *Stack) Ask() string {
	request := base64.StdEncoding.EncodeToString([]byte(`{"deployment": "weather/guide", "parameters": {"city": "Madrid"}}`))
	return fmt.Sprintf(`curl http://%s/v1/projects/%s/topics/%s:publish -d '{"messages": [{"data": "%s"}]}'`,
		os.Getenv("PUBSUB_EMULATOR_HOST"), s.Project, TopicFlowRuns, request)
}

// Root returns the folder of this repository's clone, above the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "scripts", "demo-flow")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find the demo's flow: there is no scripts/demo-flow here or above; run this in a clone of the repository")
		}
	}
}

// FreePort returns a port of 127.0.0.1 that nobody listens on.
func FreePort(ctx context.Context) (int, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil //nolint:forcetypeassert // a TCP listener has a TCP address
}
