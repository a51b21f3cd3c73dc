package settle_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
	"github.com/pushpool/pushpool/shared/settle"
	"github.com/pushpool/pushpool/shared/telemetry"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const (
	project, install, region = "project", "project/pushpool", "europe-west1"
	lease, callTimeout       = 75 * time.Second, 20 * time.Second
	grace                    = 30 * time.Second // of reports, and until gone is believed
	cancelGrace              = time.Minute
	startDeadline            = 15 * time.Minute
)

// rig is Prefect's rules, some of Cloud Run, a ledger and a settler between them.
type rig struct {
	t        *testing.T
	people   *prefect.Client // what people, flows and launchers do
	prefect  settle.Prefect  // the settler's
	cloudRun *fakeCloudRun
	ledger   *losableLedger
	messages *outbox
	clock    atomic.Int64 // what has passed since start
	start    time.Time
	deployed prefect.Deployment
	settler  *settle.Settler
	apiURL   string
	told     atomic.Int32 // proposals of the settler
	calls    atomic.Int32 // of the settler to Prefect
	down     atomic.Bool  // Prefect, to the settler's proposals
	log      bytes.Buffer
}

func newRig(t *testing.T, change ...func(*settle.Config)) *rig {
	t.Helper()
	r := &rig{
		t: t, cloudRun: &fakeCloudRun{executions: map[cloudrun.ExecutionName]cloudrun.Execution{}, jobs: map[string]cloudrun.Job{}},
		ledger: &losableLedger{ledger.NewMemory()}, messages: &outbox{}, start: time.Now().UTC().Truncate(time.Second),
	}
	server := prefecttest.New(prefecttest.Options{Now: r.now})
	t.Cleanup(server.Close)
	r.apiURL = server.URL()
	client := func(onCall func(method, path string, status int, took time.Duration)) *prefect.Client {
		c, err := prefect.New(prefect.Config{
			APIURL: r.apiURL, RequestsPerMinute: 60_000, OnCall: onCall, HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		})
		r.must(err)
		return c
	}
	r.people, r.prefect = client(nil), client(func(string, string, int, time.Duration) { r.calls.Add(1) })
	r.must(r.people.CreateWorkPool(t.Context(), "etl", "cloud-run-v2", nil))
	flow, err := r.people.CreateFlow(t.Context(), "flow")
	r.must(err)
	r.deployed, err = r.people.CreateDeployment(t.Context(), prefect.NewDeployment{FlowID: flow.ID, Name: "prod", WorkPool: "etl"})
	r.must(err)
	cfg := settle.Config{
		Projects: []string{project}, Install: install, Regions: []string{"us-central1", region}, Lease: lease, CallTimeout: callTimeout,
		ReportGrace: grace, CancelGrace: cancelGrace, GoneAfter: grace, StartDeadline: startDeadline, Executions: r.cloudRun, Now: r.now,
	}
	for _, c := range change {
		c(&cfg)
	}
	r.settler = settle.New(r, r.cloudRun, r.ledger, r.messages, telemetry.NewLogger(&r.log, project, slog.LevelInfo), cfg)
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) now() time.Time         { return r.start.Add(time.Duration(r.clock.Load())) }
func (r *rig) later(by time.Duration) { r.clock.Add(int64(by)) }

func (r *rig) look(id string) error { return r.settler.Look(r.t.Context(), uuid.NewString(), id) }

// ended tells the settler that the launch's execution ended now.
func (r *rig) ended(id string, l flowrun.Launch, kind flowrun.OutcomeKind) error {
	return r.endedAt(id, l, kind, r.now())
}

func (r *rig) endedAt(id string, l flowrun.Launch, kind flowrun.OutcomeKind, at time.Time) error {
	return r.settler.Ended(r.t.Context(), uuid.NewString(), id, settle.Ending{
		LaunchID: l.LaunchID, Execution: executionOf(l), Outcome: flowrun.Outcome{Kind: kind}, EndedAt: at,
	})
}

func executionOf(l flowrun.Launch) cloudrun.ExecutionName {
	return cloudrun.ExecutionName{Project: project, Region: region, Job: l.JobName, Execution: l.JobName + "-" + cloudrun.Token}
}

func (r *rig) record(id string) flowrun.Record {
	r.t.Helper()
	rec, err := r.ledger.Get(r.t.Context(), id)
	r.must(err)
	return rec
}

func (r *rig) apply(id string, events ...flowrun.Event) {
	r.t.Helper()
	for _, e := range events {
		_, err := r.ledger.Update(r.t.Context(), id, func(rec flowrun.Record) (flowrun.Record, error) { return flowrun.Apply(rec, e, r.now()) })
		r.must(err)
	}
}

func (r *rig) flowRun() prefect.FlowRun {
	r.t.Helper()
	fr, _, err := r.people.CreateFlowRun(r.t.Context(), r.deployed.ID, prefect.NewFlowRun{})
	r.must(err)
	return r.read(fr.ID)
}

func (r *rig) read(id string) prefect.FlowRun {
	r.t.Helper()
	fr, err := r.people.FlowRun(r.t.Context(), id)
	r.must(err)
	return fr
}

// claimed makes the flow run PENDING of ours, and claimed in the ledger, at which its launcher died.
func (r *rig) claimed(id string) flowrun.Launch {
	r.t.Helper()
	fr := r.read(id)
	l := flowrun.Launch{LaunchID: flowrun.NewLaunchID(install, id, fr.StateID)}
	l.JobName = jobtemplate.JobID(fr.Name, l.LaunchID)
	r.apply(id, flowrun.Scheduled{
		Lease: flowrun.Lease{Holder: "launcher", Until: r.now()}, LaunchID: l.LaunchID, StateAt: fr.State.Timestamp, WorkPool: "etl",
	})
	r.propose(id, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(l.LaunchID)})
	return l
}

// launch launches a flow run as the launcher does; command is its container's.
func (r *rig) launch(id string, command ...string) flowrun.Launch {
	r.t.Helper()
	l := r.claimed(id)
	r.apply(id,
		flowrun.Attempted{Holder: "launcher", LaunchID: l.LaunchID, Region: region, JobName: l.JobName},
		flowrun.Launched{Holder: "launcher", LaunchID: l.LaunchID, ExecutionName: executionOf(l).String()})
	r.must(r.people.UpdateFlowRun(r.t.Context(), id, map[string]any{"infrastructure_pid": l.JobName}))
	r.cloudRun.start(l, command...)
	return l
}

func (r *rig) propose(id string, p prefect.Proposal) {
	r.t.Helper()
	_, err := r.people.SetState(r.t.Context(), id, p)
	r.must(err)
}

// set proposes states, as the flow or a person does.
func (r *rig) set(id string, states ...flowrun.StateType) {
	r.t.Helper()
	for _, s := range states {
		r.propose(id, prefect.Proposal{Type: s})
	}
}

// send makes a call that our client does not make.
func (r *rig) send(method, path string, body any) {
	r.t.Helper()
	data, err := json.Marshal(body)
	r.must(err)
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.apiURL+path, bytes.NewReader(data))
	r.must(err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	r.must(err)
	_ = resp.Body.Close()
	if resp.StatusCode > 299 {
		r.t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// force sets a state as the dying engine does.
func (r *rig) force(id string, s flowrun.StateType) {
	r.t.Helper()
	r.send(http.MethodPost, "/flow_runs/"+id+"/set_state", map[string]any{"state": map[string]any{"type": s}, "force": true})
}

func (r *rig) state(id string) flowrun.StateType { return r.read(id).StateType }

// FlowRun, FlowRunStates and SetState are settle.Prefect.
func (r *rig) FlowRun(ctx context.Context, id string) (prefect.FlowRun, error) {
	return r.prefect.FlowRun(ctx, id)
}

func (r *rig) FlowRunStates(ctx context.Context, id string) ([]prefect.State, error) {
	return r.prefect.FlowRunStates(ctx, id)
}

func (r *rig) SetState(ctx context.Context, id string, p prefect.Proposal) (prefect.Answer, error) {
	r.told.Add(1)
	if r.down.Load() {
		return prefect.Answer{}, &flowrun.Error{Fault: flowrun.Unclear, Act: "propose a state", Err: errDown}
	}
	return r.prefect.SetState(ctx, id, p)
}

var errDown = errors.New("it is down")

type losableLedger struct{ *ledger.Memory }

func (l *losableLedger) lose() { l.Memory = ledger.NewMemory() }

// fakeCloudRun has jobs and executions by name, as Cloud Run shows them.
type fakeCloudRun struct {
	executions map[cloudrun.ExecutionName]cloudrun.Execution
	jobs       map[string]cloudrun.Job // by name
	// stopped holds what was cancelled or deleted, in order.
	stopped []string
}

func (f *fakeCloudRun) start(l flowrun.Launch, command ...string) {
	labels := map[string]string{cloudrun.LabelLaunch: string(l.LaunchID)}
	f.jobs[executionOf(l).JobName().String()] = cloudrun.Job{Name: executionOf(l).JobName(), Labels: labels}
	f.executions[executionOf(l)] = cloudrun.Execution{Name: executionOf(l), Labels: labels, Command: command}
}

// end ends the launch's execution.
func (f *fakeCloudRun) end(l flowrun.Launch, kind flowrun.OutcomeKind, at time.Time) {
	x := f.executions[executionOf(l)]
	x.Outcome, x.CompletionTime = &flowrun.Outcome{Kind: kind}, at
	f.executions[executionOf(l)] = x
}

// vanish removes job and execution.
func (f *fakeCloudRun) vanish(l flowrun.Launch) {
	delete(f.executions, executionOf(l))
	delete(f.jobs, executionOf(l).JobName().String())
}

// unstarted makes the launch's job one that has not started its execution.
func (f *fakeCloudRun) unstarted(l flowrun.Launch, j cloudrun.Job) {
	delete(f.executions, executionOf(l))
	j.Name, j.Labels = executionOf(l).JobName(), f.jobs[executionOf(l).JobName().String()].Labels
	f.jobs[executionOf(l).JobName().String()] = j
}

func (f *fakeCloudRun) Job(_ context.Context, n cloudrun.JobName) (cloudrun.Job, error) {
	j, ok := f.jobs[n.String()]
	if !ok {
		return j, &flowrun.Error{Fault: flowrun.NotFound, Act: "read job " + n.String()}
	}
	return j, nil
}

func (f *fakeCloudRun) Execution(_ context.Context, n cloudrun.ExecutionName) (cloudrun.Execution, error) {
	x, ok := f.executions[n]
	if !ok {
		return x, &flowrun.Error{Fault: flowrun.NotFound, Act: "read execution " + n.String()}
	}
	return x, nil
}

// Executions is cloudrun.Client's.
func (f *fakeCloudRun) Executions(_ context.Context, project, region string) iter.Seq2[cloudrun.Execution, error] {
	return func(yield func(cloudrun.Execution, error) bool) {
		for n, x := range f.executions {
			if n.Project == project && n.Region == region && !yield(x, nil) {
				return
			}
		}
	}
}

func (f *fakeCloudRun) CancelExecution(_ context.Context, n cloudrun.ExecutionName) error {
	f.stopped = append(f.stopped, "cancel "+n.Execution)
	return nil
}

func (f *fakeCloudRun) DeleteJob(_ context.Context, n cloudrun.JobName) error {
	f.stopped = append(f.stopped, "delete "+n.Region+"/"+n.Job)
	delete(f.jobs, n.String())
	return nil
}

// outbox keeps what was sent.
type outbox struct {
	mu   sync.Mutex
	sent []sent
	fail bool
}

// sent is a message: to look at a flow run, at a time if it is not zero, or that a slot came free.
type sent struct {
	FlowRunID, Cause, Freed string
	At                      time.Time
}

func (o *outbox) add(s sent) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fail {
		return errDown
	}
	o.sent = append(o.sent, s)
	return nil
}

// take returns what was sent since it was last called, what concerns flow runs first.
func (o *outbox) take() []sent {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.sent
	o.sent = nil
	slices.SortStableFunc(s, func(a, b sent) int { return cmp.Compare(a.Freed, b.Freed) })
	return s
}

func (o *outbox) Dispatch(_ context.Context, id string) error { return o.add(sent{FlowRunID: id}) }

func (o *outbox) DispatchAt(_ context.Context, id string, at time.Time, cause string) error {
	return o.add(sent{FlowRunID: id, At: at, Cause: cause})
}

func (o *outbox) Freed(_ context.Context, pool, _ string) error { return o.add(sent{Freed: pool}) }
