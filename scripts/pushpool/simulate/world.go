package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	globalrand "math/rand"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

const (
	project = "project"
	region  = "us-central1"
	second  = "europe-west1"

	free    = "free"    // a work pool without limits, which others serve too
	limited = "limited" // one with a limit, which one installation serves alone
	atOnce  = 3         // that limit
	perDep  = 2         // the limit of one deployment

	narrow   = "narrow" // a work queue of the limited pool
	perQueue = 2        // its limit

	apiKey        = "pnu_the-key-that-may-show-nowhere"
	webhookSecret = "the-webhook-secret-that-may-show-nowhere"
)

// arrivals is the time in which flow runs come, faults the time in which they are struck.
const (
	arrivals = 15 * time.Minute
	faults   = 22 * time.Minute
	crowds   = 8
)

// world is one simulated installation with everything around it.
type world struct {
	Options
	dice    dice
	loop    *loop
	ctx     context.Context
	log     *leakDetector
	closers []func()

	prefectMu sync.Mutex
	acting    actor // who is calling Prefect
	prefect   *prefecttest.Server
	cloudRun  *cloudruntest.Server
	pubsub    *pubsub
	services  registrar

	installations []*installation // ours first
	flowRuns      map[string]*flowRun
	labels        []string // of flow runs, as they came
	*directory
	deployments map[string]deployment // by name

	inFlight map[*message]bool
	leaving  bool // no more faults, and no sweeps

	faultsUntil time.Time
	downUntil   time.Time
	skew        time.Duration
	lastNow     time.Time
	pausedSince map[string]time.Time // work pools

	backgroundsMu sync.Mutex
	backgrounds   map[string]*task

	saidMu     sync.Mutex // guards what any goroutine can add to
	violations []Violation
	timeline   []string
	logged     []string // since the last step, in no order
	said       map[string]int

	deliveries, faulted int
	byKind              map[Kind]int
	between             int      // faults between two calls of one message
	schedule            []string // names of what was struck
	lastFault           time.Time
	lastChange          time.Time // of a flow run's state
}

// deployment is a deployment, with what its flow runs are.
type deployment struct {
	name, id, pool, queue string // queue: of one with a limit
	limit                 int    // of those at once
	engine                bool
}

// flowRun is what the simulator knows of a flow run.
type flowRun struct {
	label, id  string
	deployment string
	ending     ending
	containers int
	retried    bool
	monitored
}

// installation is one set of functions, with its own topics and ledger.
type installation struct {
	w         *world
	name      string
	pools     []string
	ledger    *losable
	instances map[string][]*instance
	started   int
	deploys   int
	lostAt    time.Time // the ledger, last
}

// losable is a ledger that can be lost.
type losable struct {
	mu sync.Mutex
	l  ledger.Ledger
}

func (l *losable) now() ledger.Ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.l
}

// lose forgets everything.
func (l *losable) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.l = ledger.NewMemory()
}

func newWorld(o Options) *world {
	w := &world{
		Options: o, dice: dice{o.Seed}, loop: newLoop(), flowRuns: map[string]*flowRun{}, directory: newDirectory(), said: map[string]int{},
		deployments: map[string]deployment{}, backgrounds: map[string]*task{}, inFlight: map[*message]bool{}, pausedSince: map[string]time.Time{},
		byKind: map[Kind]int{}, services: registrar{},
	}
	if w.Trace {
		w.loop.trace = w.traceStep
	}
	ids := newStream(w.dice.of("ids").Uint64())
	uuid.SetRand(ids)
	w.loop.onStep = ids.begin
	globalrand.Seed(w.dice.of("back-off").Int64()) //nolint:staticcheck // gax draws its back-off from there; see the go:debug line of the tests
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithCancel(context.Background())
	w.closers = append(w.closers, cancel)
	w.log = &leakDetector{w: w}
	w.skew = between(w.dice.of("skew"), -5*time.Second, 5*time.Second)
	w.prefect = prefecttest.NewHandler(prefecttest.Options{
		Now: w.serverTime, APIKey: apiKey, Webhooks: webhookCalls{w}, OnState: w.onState,
	})
	w.cloudRun = cloudruntest.New(cloudruntest.Options{
		WritesPerMinute: w.Load.quota().WritesPerMinute, MaxJobs: w.Load.quota().MaxJobs, MaxExecutions: w.Load.quota().MaxExecutions,
		Run: w.run, Delays: w.delays, Secrets: map[string]string{"prefect-api-key": apiKey},
		Publish: func(_ context.Context, entry []byte) error {
			w.loop.at(time.Now(), "entry "+entryJob(entry), func() { w.onEntry(entry) })
			return nil
		},
	})
	w.pubsub = &pubsub{w: w, tasks: map[string]*cloudtaskspb.Task{}, taken: map[string]bool{}}
	w.cloudRun.Register(w.services)
	pubsubpb.RegisterPublisherServer(w.services, w.pubsub)
	cloudtaskspb.RegisterCloudTasksServer(w.services, w.pubsub)
	w.install("pushpool", free, limited)
	w.setUp()
	w.faultsUntil = time.Now().Add(faults)
	if w.scripted {
		w.faultsUntil = time.Now().Add(2 * time.Minute)
	}
	return w
}

// serverTime is the clock of Prefect's server, which is not ours but never goes back.
func (w *world) serverTime() time.Time {
	if now := time.Now().Add(w.skew); now.After(w.lastNow) {
		w.lastNow = now
	}
	return w.lastNow
}

// random spreads what the functions do. It depends on the time alone: those that ask at the
// same time ask in no order.
func (w *world) random() float64 {
	return w.dice.of("random " + time.Now().Format(time.RFC3339Nano)).Float64()
}

func (w *world) install(name string, pools ...string) {
	of := &installation{w: w, name: name, pools: pools, ledger: &losable{l: ledger.NewMemory()}, instances: map[string][]*instance{}}
	w.installations = append(w.installations, of)
	of.deploy()
}

// deploy starts new instances of every function. The old ones finish what they are at.
func (of *installation) deploy() {
	of.deploys++
	for function, n := range map[string]int{"webhook": 1, "dispatcher": 2, "finalizer": 1, "reconciler": 1} {
		of.instances[function] = nil
		for range n {
			of.instances[function] = append(of.instances[function], nil) // started on first use
		}
	}
}

func (of *installation) instanceOf(function, name string) *instance {
	all := of.instances[function]
	n := of.w.dice.of("instance " + name).IntN(len(all))
	if all[n] == nil {
		all[n] = of.newInstance(function)
	}
	return all[n]
}

// replace has another instance started in place of one that is gone.
func (of *installation) replace(i *instance) {
	if n := slices.Index(of.instances[i.function], i); n >= 0 {
		of.instances[i.function][n] = nil
	}
}

// environ is the functions' environment. Each deployment changes it a little, so that old and
// new code do not agree on everything.
func (of *installation) environ() []string {
	lease := []string{"75s", "90s", "60s"}[of.deploys%3]
	if of.w.storm(Stall) {
		lease = shortLease.String()
	}
	return append([]string{
		"GOOGLE_CLOUD_PROJECT=" + project, "INSTALL_NAME=" + of.name, "WORK_POOLS=" + strings.Join(of.pools, ","),
		"REGIONS=" + region + "," + second, "OVERFLOW_REGIONS=" + region + "," + second, "TOPIC_FLOW_RUNS=" + of.name + "-flow-runs", "DEAD_LETTER_TOPIC=" + of.name + "-dead-letter",
		"TASKS_QUEUE=projects/" + project + "/locations/" + region + "/queues/" + of.name, "TASKS_SERVICE_ACCOUNT=tasks@example.com",
		"WEBHOOK_SECRETS=" + webhookSecret, "LEDGER=memory", "LEASE=" + lease, "PREFECT_API_URL=http://prefect.test/api",
		"PREFECT_API_KEY=" + apiKey, "CONTAINER_PREFECT_API_KEY_SECRET=prefect-api-key", "PREFECT_REQUESTS_PER_MINUTE=60000",
	}, of.w.Load.environ()...)
}

// actor is who calls Prefect; the zero value is a person.
type actor struct {
	install   *installation
	task      *task
	container *container
	worker    bool
}

// callPrefect lets Prefect answer.
func (w *world) callPrefect(who actor, req *http.Request) *http.Response {
	w.prefectMu.Lock()
	defer w.prefectMu.Unlock()
	w.acting = who
	defer func() { w.acting = actor{} }()
	rec := httptest.NewRecorder()
	w.prefect.ServeHTTP(rec, req)
	return rec.Result()
}

// api makes a call to Prefect at once.
func (w *world) api(who actor, method, path string, body any) (status int, answer []byte) {
	data, _ := json.Marshal(body) // of strings, numbers and times
	req := httptest.NewRequestWithContext(w.ctx, method, "http://prefect.test/api"+path, bytes.NewReader(data))
	req.Header.Set("Authorization", "Bearer "+apiKey)
	req.Header.Set("Content-Type", "application/json")
	resp := w.callPrefect(who, req)
	defer func() { _ = resp.Body.Close() }()
	answer, _ = io.ReadAll(resp.Body) // of a recorder
	return resp.StatusCode, answer
}

// people carries the calls of whoever sets up Prefect.
type people struct{ w *world }

func (p people) RoundTrip(req *http.Request) (*http.Response, error) {
	return p.w.callPrefect(actor{}, req), nil
}

func (w *world) setUp() {
	must := func(err error) {
		if err != nil {
			panic(fmt.Sprintf("set up Prefect: %v", err))
		}
	}
	client, err := prefect.New(prefect.Config{
		APIURL: "http://prefect.test/api", APIKey: apiKey, HTTPClient: &http.Client{Transport: people{w}}, RequestsPerMinute: 60_000, Random: w.random,
	})
	must(err)
	template, err := client.WorkerMetadataTemplate(w.ctx, "cloud-run-v2")
	must(err)
	for _, pool := range []string{free, limited} {
		must(client.CreateWorkPool(w.ctx, pool, "cloud-run-v2", template))
	}
	w.api(actor{}, http.MethodPatch, "/work_pools/"+limited, map[string]any{"concurrency_limit": atOnce})
	w.api(actor{}, http.MethodPost, "/work_pools/"+limited+"/queues", map[string]any{"name": narrow, "concurrency_limit": perQueue})
	must(client.EnsureWebhook(w.ctx, prefect.WebhookSetup{
		BlockName: "pushpool", AutomationName: "pushpool", URL: "http://webhook.test/", Secret: webhookSecret, WorkPools: []string{free, limited},
	}))
	flow, err := client.CreateFlow(w.ctx, "flow")
	must(err)
	for _, d := range []deployment{
		{name: "plain", pool: free}, {name: "engine", pool: free, engine: true}, {name: "few", pool: free, limit: perDep}, {name: "queued", pool: limited}, {name: narrow, pool: limited, queue: narrow},
	} {
		name := d.name
		variables := map[string]any{"region": region, "timeout": 240, "image": "registry/flows"}
		if d.engine {
			variables["command"] = "python -m prefect.engine"
		}
		body := map[string]any{"name": name, "flow_id": flow.ID, "work_pool_name": d.pool, "job_variables": variables}
		if d.queue != "" {
			body["work_queue_name"] = d.queue
		}
		if d.limit > 0 {
			body["concurrency_limit"] = d.limit
		}
		status, answer := w.api(actor{}, http.MethodPost, "/deployments/", body)
		var created struct{ ID string }
		if json.Unmarshal(answer, &created) != nil || status > 299 {
			panic(fmt.Sprintf("create deployment %s: %d %s", name, status, answer))
		}
		d.id = created.ID
		w.deployments[name] = d
	}
}

// delays are those of a job's execution.
func (w *world) delays(id string) (ready, start time.Duration) {
	if j := w.job(id); j != nil {
		return j.ready, j.start
	}
	return time.Second, time.Second
}

func (w *world) trace(format string, args ...any) {
	if w.Trace {
		w.saidMu.Lock()
		defer w.saidMu.Unlock()
		w.timeline = append(w.timeline, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// traceStep traces a step, after what was logged since the last one by goroutines that were in no order.
func (w *world) traceStep(name string) {
	w.saidMu.Lock()
	slices.Sort(w.logged)
	w.timeline = append(w.timeline, w.logged...)
	w.logged = nil
	w.saidMu.Unlock()
	w.trace("step %s", name)
}

// close ends everything, so that the bubble can end.
func (w *world) close() {
	close(w.loop.ended)
	for _, c := range slices.Backward(w.closers) {
		c()
	}
	w.cloudRun.Close()
	w.prefect.Close()
	time.Sleep(10 * time.Minute) // what waits to try again has to see that it is over
}

// leakDetector is where functions log: it looks for secrets.
type leakDetector struct{ w *world }

func (l *leakDetector) Write(p []byte) (int, error) {
	l.w.secret("a log line", p)
	if l.w.Trace {
		line := time.Now().Format("15:04:05.000 ") + "log " + l.w.label(strings.TrimSpace(string(p)))
		l.w.saidMu.Lock()
		defer l.w.saidMu.Unlock()
		l.w.logged = append(l.w.logged, line)
	}
	return len(p), nil
}
