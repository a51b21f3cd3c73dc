package launch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/lifecycle"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
	"github.com/pushpool/pushpool/shared/quota"
	"github.com/pushpool/pushpool/shared/settle"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const (
	project, install, region = "project", "project/pushpool", "us-central1"
	lease, callTimeout       = 75 * time.Second, 20 * time.Second
)

// rig is Prefect's rules, Cloud Run's emulator, a ledger and a launcher between them.
type rig struct {
	t        *testing.T
	people   *prefect.Client // what people, flows and workers do
	prefect  *prefect.Client // what the launcher does
	flowRuns interface {     // the launcher's, if it is not prefect itself
		launch.FlowRuns
		launch.Waiting
	}
	cloudRun *cloudrun.Client
	server   *prefecttest.Server // Prefect, unless it is a real one
	emulator *cloudruntest.Server
	budget   *quota.Budget
	ledger   *fallibleLedger
	follower follower
	messages *outbox
	ahead    atomic.Int64 // of the real clock
	deployed prefect.Deployment
	settler  *settle.Settler
	launcher *launch.Launcher
	apiURL   string
	calls    atomic.Int32 // of the launcher and the settler to Prefect
	shared   atomic.Int32 // of them those whose answer is kept for all flow runs of the pool

	mu           sync.Mutex
	prefectFault func(w http.ResponseWriter, r *http.Request, next http.Handler) (answered bool)
	cloudFault   func(method string, phase cloudruntest.Phase) error
}

// newRig starts a rig whose work pool "etl" runs commands of a shell, `sleep 600` if none is given.
func newRig(t *testing.T, change ...func(*launch.Config)) *rig {
	t.Helper()
	return newRigOf(t, cloudruntest.Options{StopGrace: time.Second}, change...)
}

// newRigOf is newRig with an emulator of Cloud Run that behaves as told.
func newRigOf(t *testing.T, o cloudruntest.Options, change ...func(*launch.Config)) *rig {
	t.Helper()
	r := &rig{t: t, ledger: &fallibleLedger{Memory: ledger.NewMemory()}, messages: &outbox{}}
	server := prefecttest.New(prefecttest.Options{Now: r.now, Intercept: r.onPrefect})
	t.Cleanup(server.Close)
	r.server = server
	return r.start(server.URL(), o, change...)
}

// start starts a rig at a Prefect server.
func (r *rig) start(apiURL string, o cloudruntest.Options, change ...func(*launch.Config)) *rig {
	t := r.t
	t.Helper()
	r.apiURL = apiURL
	o.Env = []string{"PATH=/usr/bin:/bin"}
	o.Intercept = func(_ context.Context, method string, phase cloudruntest.Phase, _ any) error {
		return r.onCloudRun(method, phase)
	}
	emulator, err := cloudruntest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(emulator.Close)
	r.emulator = emulator
	if r.cloudRun, err = cloudrun.New(t.Context(), emulator.ClientOptions()...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cloudRun.Close() })
	r.people, r.prefect = r.client(nil, patient{}), r.client(r.count, &http.Transport{DisableKeepAlives: true})
	r.must(r.people.CreateWorkPool(t.Context(), "etl", "cloud-run-v2", template()))
	flow, err := r.people.CreateFlow(t.Context(), "flow")
	r.must(err)
	r.deployed = r.deploy(prefect.NewDeployment{FlowID: flow.ID, Name: "prod", WorkPool: "etl"})
	log := slog.New(slog.DiscardHandler)
	told := lifecycle.New(r.ledger, &r.follower, "pushpool", log, r.now)
	r.settler = settle.New(r.prefect, r.cloudRun, told, r.messages, log, settle.Config{
		Projects: []string{project}, Install: install, Regions: []string{region}, Lease: lease, CallTimeout: callTimeout,
		ReportGrace: 30 * time.Second, CancelGrace: time.Minute, GoneAfter: 30 * time.Second, Executions: r.cloudRun, Now: r.now,
		RetryDelay: time.Second, RetryMemory: 1536 << 20,
	})
	cfg := launch.Config{
		Projects: []string{project}, Install: install, Name: "pushpool", Regions: []string{region}, Lease: lease, CallTimeout: callTimeout,
		LookAhead: 150 * time.Second, EarlyRead: 30 * time.Second, Slots: 3, InPlace: time.Second, CapacityWait: 24 * time.Hour, Jobs: r.cloudRun.Jobs, Now: r.now,
	}
	for _, c := range change {
		c(&cfg)
	}
	r.budget = quota.New(r.ledger, flowrun.Quota{Writes: 180, Jobs: 1000}, r.now)
	r.launcher = launch.New(r, r, r.prefect, launch.Lookup(r.prefect), r.cloudRun, r.budget, r.budget, told, r.settler, r.messages, log, []string{"etl", "guide"}, cfg)
	r.flowRuns = r.prefect
	return r
}

func (r *rig) client(onCall func(method, path string, status int, took time.Duration), calls http.RoundTripper) *prefect.Client {
	r.t.Helper()
	c, err := prefect.New(prefect.Config{
		APIURL: r.apiURL, AuthString: os.Getenv("PUSHPOOL_TEST_PREFECT_AUTH"), RequestsPerMinute: 60_000, OnCall: onCall,
		HTTPClient: &http.Client{Transport: calls},
	})
	r.must(err)
	return c
}

// count counts a call. What a busy server refuses is made again, and no other call for that; nor
// does a flow run cost the token that an instance fetches once in an hour.
func (r *rig) count(_, path string, status int, _ time.Duration) {
	switch {
	case status == 0, status == http.StatusServiceUnavailable, status == http.StatusForbidden, strings.HasPrefix(path, "/csrf-token"):
		return
	}
	r.calls.Add(1)
	if strings.HasPrefix(path, "/work_pools/") {
		r.shared.Add(1)
	}
}

// template is a base job template as small as Cloud Run allows.
func template() map[string]any {
	type m = map[string]any
	return m{
		"job_configuration": m{
			"name": "{{ name }}", "region": "{{ region }}", "labels": "{{ labels }}", "env": "{{ env }}", "credentials": "{{ credentials }}",
			"command": "{{ command }}", "timeout": "{{ timeout }}",
			"job_body": m{"template": m{"template": m{
				"maxRetries": 0, "timeout": "{{ timeout }}", "serviceAccount": "{{ service_account_name }}",
				"containers": []any{m{"image": "{{ image }}", "command": "{{ command }}", "env": []any{}}},
			}}},
		},
		"variables": m{"type": "object", "properties": m{
			"name": m{"type": "string"}, "region": m{"type": "string", "default": region}, "labels": m{"type": "object"}, "env": m{"type": "object"},
			"command": m{"type": "string", "default": "sleep 600"}, "timeout": m{"type": "integer", "default": 600},
			"image": m{"type": "string", "default": "flows"}, "service_account_name": m{"type": "string"}, "credentials": m{"type": "object"},
		}},
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) now() time.Time         { return time.Now().Add(time.Duration(r.ahead.Load())) }
func (r *rig) later(by time.Duration) { r.ahead.Add(int64(by)) }
func (r *rig) holder() string         { return uuid.NewString() }
func (r *rig) dispatch(id string) error {
	return r.launcher.Dispatch(r.t.Context(), r.holder(), id, r.now())
}

// fails dispatches the flow run, which is not to be acknowledged.
func (r *rig) fails(id string) {
	r.t.Helper()
	if err := r.dispatch(id); err == nil {
		r.t.Fatal("the delivery was acknowledged")
	}
}

func (r *rig) wake() error {
	return r.launcher.Wake(r.t.Context(), r.holder(), message.Wake{WorkPool: "etl"})
}
func (r *rig) record(id string) flowrun.Record {
	rec, err := r.ledger.Memory.Get(r.t.Context(), id)
	r.must(err)
	return rec
}

func (r *rig) deploy(n prefect.NewDeployment) prefect.Deployment {
	r.t.Helper()
	d, err := r.people.CreateDeployment(r.t.Context(), n)
	r.must(err)
	return d
}

// flowRun creates a flow run of the deployment.
func (r *rig) flowRun(n prefect.NewFlowRun) prefect.FlowRun {
	r.t.Helper()
	fr, _, err := r.people.CreateFlowRun(r.t.Context(), r.deployed.ID, n)
	r.must(err)
	return r.read(fr.ID)
}

func (r *rig) read(id string) prefect.FlowRun {
	r.t.Helper()
	fr, err := r.people.FlowRun(r.t.Context(), id)
	r.must(err)
	return fr
}

// state returns the flow run's state as TYPE/Name.
func (r *rig) state(id string) string {
	r.t.Helper()
	fr := r.read(id)
	return string(fr.StateType) + "/" + fr.StateName
}

// set proposes states for the flow run, as its container or a person does.
func (r *rig) set(id string, states ...flowrun.StateType) {
	r.t.Helper()
	for _, s := range states {
		_, err := r.people.SetState(r.t.Context(), id, prefect.Proposal{Type: s})
		r.must(err)
	}
}

// retries gives the flow run retries, as its flow does.
func (r *rig) retries(id string, n int) {
	r.t.Helper()
	r.must(r.people.UpdateFlowRun(r.t.Context(), id, map[string]any{"empirical_policy": map[string]any{"retries": n, "retry_delay": 0}}))
}

// ended tells the settler that the flow run's last execution ended.
func (r *rig) ended(id string, o flowrun.Outcome) error {
	r.t.Helper()
	rec := r.record(id)
	name, err := cloudrun.ParseExecutionName(rec.ExecutionName)
	r.must(err)
	return r.settler.Ended(r.t.Context(), r.holder(), id, settle.Ending{LaunchID: rec.LaunchID, Execution: name, Outcome: o, EndedAt: r.now()})
}

// shortLease is just longer than the part of a lease in which no call is made.
func shortLease(c *launch.Config) { c.Lease = callTimeout/2 + 200*time.Millisecond }

// launchID is the id of the launch that answers the flow run's present state.
func launchID(fr prefect.FlowRun) flowrun.LaunchID {
	return flowrun.NewLaunchID(install, fr.ID, fr.StateID)
}

// patch changes an object of Prefect as the user interface does.
func (r *rig) patch(path string, fields map[string]any) {
	r.t.Helper()
	r.send(http.MethodPatch, path, fields)
}

// send makes a call to Prefect that nobody but people makes.
func (r *rig) send(method, path string, fields map[string]any) {
	r.t.Helper()
	body, err := json.Marshal(fields)
	r.must(err)
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.apiURL+path, bytes.NewReader(body))
	r.must(err)
	if auth := os.Getenv("PUSHPOOL_TEST_PREFECT_AUTH"); auth != "" {
		r.authorize(req, auth)
	}
	resp, err := patient{}.RoundTrip(req)
	r.must(err)
	_ = resp.Body.Close()
	if resp.StatusCode >= http.StatusMultipleChoices {
		r.t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// executions are those of a flow run, alive and ended.
func (r *rig) executions(id string) (all []cloudruntest.Execution) {
	for _, x := range r.emulator.Executions() {
		if x.Labels[cloudrun.LabelFlowRun] == id {
			all = append(all, x)
		}
	}
	return all
}

// deleteJob deletes an execution's job, as a person does, and returns when its process is gone.
func (r *rig) deleteJob(execution string) {
	name, err := cloudrun.ParseExecutionName(execution)
	r.must(err)
	r.must(r.cloudRun.DeleteJob(r.t.Context(), name.JobName()))
	for deadline := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(deadline); {
		_, err = r.cloudRun.Job(r.t.Context(), name.JobName())
	}
}

// launchedOnce fails the test unless the flow run is PENDING with one execution, as recorded.
func (r *rig) launchedOnce(id string) {
	r.t.Helper()
	x := r.executions(id)
	if got := r.state(id); got != "PENDING/Pending" || len(x) != 1 {
		r.t.Fatalf("the flow run is %s with %d executions, want PENDING with one", got, len(x))
	}
	rec := r.record(id)
	if rec.Status != flowrun.StatusLaunched || rec.ExecutionName != x[0].Name || rec.LeaseHolder != "" {
		r.t.Errorf("the ledger has %s %q held by %q, want Launched %q, held by nobody", rec.Status, rec.ExecutionName, rec.LeaseHolder, x[0].Name)
	}
}
