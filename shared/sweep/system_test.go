package sweep_test

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/lookahead"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
	"github.com/pushpool/pushpool/shared/quota"
	"github.com/pushpool/pushpool/shared/settle"
	"github.com/pushpool/pushpool/shared/sweep"
)

const (
	project, install, region = "project", "project/pushpool", "europe-west1"
	grace, cancelGrace       = 30 * time.Second, time.Minute
)

// system is Prefect's rules, jobs, a ledger, and what a sweep is made of, under synctest's
// clock: calls are counted, none takes time.
type system struct {
	t        *testing.T
	people   *prefect.Client
	deployed prefect.Deployment
	server   *prefecttest.Server
	ledger   *ledger.Memory

	mu    sync.Mutex
	jobs  map[cloudrun.JobName]cloudrun.Job
	ends  map[cloudrun.JobName]flowrun.Outcome
	gone  []string // what was stopped or deleted
	calls int      // to Prefect
	reads int      // at Cloud Run
}

func newSystem(t *testing.T) *system {
	t.Helper()
	s := &system{t: t, server: prefecttest.NewHandler(prefecttest.Options{}), ledger: ledger.NewMemory(), jobs: map[cloudrun.JobName]cloudrun.Job{}, ends: map[cloudrun.JobName]flowrun.Outcome{}}
	t.Cleanup(s.server.Close)
	s.people = s.client(nil)
	s.must(s.people.CreateWorkPool(t.Context(), "etl", "cloud-run-v2", nil))
	flow, err := s.people.CreateFlow(t.Context(), "flow")
	s.must(err)
	s.deployed, err = s.people.CreateDeployment(t.Context(), prefect.NewDeployment{FlowID: flow.ID, Name: "prod", WorkPool: "etl"})
	s.must(err)
	return s
}

func (s *system) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// RoundTrip carries the calls to Prefect.
func (s *system) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	s.server.ServeHTTP(w, r)
	return w.Result(), nil
}

func (s *system) client(onCall func(method, path string, status int, took time.Duration)) *prefect.Client {
	perMinute := 500
	if onCall == nil {
		perMinute = 1_000_000
	}
	c, err := prefect.New(prefect.Config{APIURL: "http://prefect/api", RequestsPerMinute: perMinute, OnCall: onCall, HTTPClient: &http.Client{Transport: s}})
	s.must(err)
	return c
}

// instance is a reconciler that knows nothing yet.
func (s *system) instance(dry bool) *sweep.Sweeper {
	log := slog.New(slog.DiscardHandler)
	client := s.client(func(string, string, int, time.Duration) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls++
	})
	acts, records := sweep.NewActs(log), ledger.Ledger(s.ledger)
	if dry {
		acts, records = sweep.NewDryActs(log), sweep.DryLedger(s.ledger)
	}
	cloudRun, messages := acts.CloudRun(s), acts.Messages(messages{client})
	settler := settle.New(acts.Prefect(client), cloudRun, records, messages, log, settle.Config{
		Projects: []string{project}, Install: install, Regions: []string{region}, Lease: 75 * time.Second, CallTimeout: 20 * time.Second,
		ReportGrace: grace, CancelGrace: cancelGrace, GoneAfter: grace, StartDeadline: 15 * time.Minute, Now: time.Now,
	})
	ahead := lookahead.New(client, records, messages, 150*time.Second, time.Now)
	writes := quota.New(records, flowrun.Quota{Writes: 180, Jobs: 1000}, time.Now)
	return sweep.New(client, acts.Pools(client), ahead, cloudRun, writes, records, settler, messages, acts, log, sweep.Config{
		WorkPools: []string{"etl"}, Projects: []string{project}, Regions: []string{region}, Name: "pushpool",
		EventGrace: grace, CancelGrace: cancelGrace, MaxLooks: 166, MaxChecks: 150, Readiness: true, KeepJobsFor: 24 * time.Hour, Now: time.Now,
	})
}

// messages does what the dispatcher does on a wake.
type messages struct{ prefect *prefect.Client }

func (messages) Dispatch(context.Context, string) error                      { return nil }
func (messages) DispatchAt(context.Context, string, time.Time, string) error { return nil }
func (messages) Freed(context.Context, string, string) error                 { return nil }
func (messages) Wake(context.Context, message.Wake) error                    { return nil }

func (m messages) WakeAt(ctx context.Context, w message.Wake, at time.Time, _ string) error {
	time.AfterFunc(time.Until(at), func() {
		ctx := context.WithoutCancel(ctx)
		_, _ = m.prefect.ScheduledFlowRuns(ctx, w.WorkPool, time.Now(), 1)
	})
	return nil
}

// running makes a flow run that is launched and RUNNING.
func (s *system) running() (id string, job cloudrun.JobName) {
	s.t.Helper()
	fr, _, err := s.people.CreateFlowRun(s.t.Context(), s.deployed.ID, prefect.NewFlowRun{})
	s.must(err)
	fr, err = s.people.FlowRun(s.t.Context(), fr.ID)
	s.must(err)
	l := flowrun.Launch{LaunchID: flowrun.NewLaunchID(install, fr.ID, fr.StateID)}
	l.JobName = jobtemplate.JobID(fr.Name, l.LaunchID)
	job = cloudrun.JobName{Project: project, Region: region, Job: l.JobName}
	for _, e := range []flowrun.Event{
		flowrun.Scheduled{Lease: flowrun.Lease{Holder: "h", Until: time.Now()}, LaunchID: l.LaunchID, StateAt: fr.State.Timestamp, WorkPool: "etl"},
		flowrun.Attempted{Holder: "h", LaunchID: l.LaunchID, Project: project, Region: region, JobName: l.JobName},
		flowrun.Launched{Holder: "h", LaunchID: l.LaunchID, ExecutionName: job.Execution(cloudrun.Token).String()},
	} {
		_, err := s.ledger.Update(s.t.Context(), fr.ID, func(r flowrun.Record) (flowrun.Record, error) { return flowrun.Apply(r, e, time.Now()) })
		s.must(err)
	}
	_, err = s.people.SetState(s.t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(l.LaunchID)})
	s.must(err)
	s.must(s.people.UpdateFlowRun(s.t.Context(), fr.ID, map[string]any{"infrastructure_pid": l.JobName}))
	_, err = s.people.SetState(s.t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StateRunning})
	s.must(err)
	j := cloudrun.Job{Name: job, CreateTime: time.Now(), Labels: map[string]string{
		cloudrun.LabelInstall: "pushpool", cloudrun.LabelFlowRun: fr.ID, cloudrun.LabelLaunch: string(l.LaunchID),
	}}
	j.Latest.Execution = job.Execution(cloudrun.Token).Execution
	s.jobs[job] = j
	return fr.ID, job
}

// end ends a job's execution, and nobody is told.
func (s *system) end(job cloudrun.JobName, kind flowrun.OutcomeKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[job]
	j.Latest.Completed = time.Now()
	s.jobs[job], s.ends[job] = j, flowrun.Outcome{Kind: kind}
}

// states counts the flow runs by state.
func (s *system) states(ids []string) map[flowrun.StateType]int {
	s.t.Helper()
	count := map[flowrun.StateType]int{}
	for chunk := range slices.Chunk(ids, prefect.MaxPage) {
		page, err := s.people.FlowRuns(s.t.Context(), prefect.Filter{IDs: chunk})
		s.must(err)
		for _, fr := range page {
			count[fr.StateType]++
		}
	}
	return count
}

// pages are the reads that a list takes; TestALongListTakesAReadForEachPage counts them.
func pages(items int) int { return max(1, (items+cloudrun.PageSize-1)/cloudrun.PageSize) }

// Jobs is a read for each page.
func (s *system) Jobs(context.Context, string, string) iter.Seq2[cloudrun.Job, error] {
	s.mu.Lock()
	jobs := slices.Collect(maps.Values(s.jobs))
	s.reads += pages(len(jobs))
	s.mu.Unlock()
	return func(yield func(cloudrun.Job, error) bool) {
		for _, j := range jobs {
			if !yield(j, nil) {
				return
			}
		}
	}
}

func (s *system) Job(_ context.Context, n cloudrun.JobName) (cloudrun.Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	j, ok := s.jobs[n]
	if !ok {
		return j, &flowrun.Error{Fault: flowrun.NotFound}
	}
	return j, nil
}

func (s *system) Execution(_ context.Context, n cloudrun.ExecutionName) (cloudrun.Execution, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	j, ok := s.jobs[n.JobName()]
	if !ok {
		return cloudrun.Execution{}, &flowrun.Error{Fault: flowrun.NotFound}
	}
	x := cloudrun.Execution{Name: n, Labels: j.Labels, CompletionTime: j.Latest.Completed}
	if o, ended := s.ends[n.JobName()]; ended {
		x.Outcome = &o
	}
	return x, nil
}

func (s *system) CancelExecution(_ context.Context, n cloudrun.ExecutionName) error {
	s.mu.Lock()
	s.gone = append(s.gone, "cancel "+n.Job)
	s.mu.Unlock()
	s.end(n.JobName(), flowrun.Cancelled)
	return nil
}

func (s *system) DeleteJob(_ context.Context, n cloudrun.JobName) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = append(s.gone, "delete "+n.Job)
	delete(s.jobs, n)
	return nil
}

// minutes is an hour with PUSHPOOL_TEST_LONG=true: what a minute costs is the same in each.
func minutes() int {
	if os.Getenv("PUSHPOOL_TEST_LONG") == "true" {
		return 60
	}
	return 10
}

// TestAThousandFlowRunsForAnHour holds what it costs that they are RUNNING, whichever
// instance sweeps, and with the ledger lost half-way; and that a hundred of them that die
// without a word are found by the next two sweeps.
func TestAThousandFlowRunsForAnHour(t *testing.T) {
	const (
		most      = 1000
		maxReads  = 250
		maxCalls  = 15
		afterLoss = 500 // the budget of an instance: the ledger is rebuilt within it
	)
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		var ids []string
		var jobs []cloudrun.JobName
		for range most {
			id, job := s.running()
			ids, jobs = append(ids, id), append(jobs, job)
		}
		minute := func(sweeper *sweep.Sweeper) (calls, reads int) {
			s.mu.Lock()
			s.calls, s.reads = 0, 0
			s.mu.Unlock()
			if _, err := sweeper.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.calls, s.reads
		}
		var sweeper *sweep.Sweeper
		mostCalls, mostReads := 0, 0
		for n := range minutes() {
			if n%7 == 0 {
				sweeper = s.instance(false)
			}
			calls, reads := minute(sweeper)
			mostCalls, mostReads = max(mostCalls, calls), max(mostReads, reads)
		}
		t.Logf("%d flow runs RUNNING for %d minutes: at most %d calls a minute to Prefect, %d reads a minute at Cloud Run", most, minutes(), mostCalls, mostReads)
		if mostCalls > maxCalls || mostReads > maxReads {
			t.Errorf("at most %d calls and %d reads a minute, want %d and %d", mostCalls, mostReads, maxCalls, maxReads)
		}
		for n := range 100 {
			s.end(jobs[n], flowrun.ExitCode)
		}
		time.Sleep(grace) // the events, which are lost, would have come by now
		minute(sweeper)
		minute(sweeper)
		if diff := cmp.Diff(map[flowrun.StateType]int{flowrun.StateCrashed: 100, flowrun.StateRunning: most - 100}, s.states(ids)); diff != "" {
			t.Errorf("after two sweeps (-want +got):\n%s", diff)
		}

		*s.ledger = *ledger.NewMemory() // nobody is at it
		lost := 0
		for ; lost < 20; lost++ {
			if calls, _ := minute(s.instance(false)); calls > afterLoss {
				t.Errorf("%d calls in a minute after the ledger was lost", calls)
			}
			open, err := s.ledger.Open(t.Context())
			s.must(err)
			if len(open) == most-100 {
				break
			}
		}
		calls, reads := minute(s.instance(false))
		t.Logf("the ledger lost: rebuilt in %d sweeps; then %d calls, %d reads", lost+1, calls, reads)
		if lost == 20 || calls > maxCalls || reads > maxReads {
			t.Errorf("after %d sweeps without ledger %d calls and %d reads", lost, calls, reads)
		}
		// So many jobs are near the quota, so those that ended are deleted; none that is alive.
		if i := slices.IndexFunc(s.gone, func(act string) bool { return strings.HasPrefix(act, "cancel ") }); i >= 0 || len(s.jobs) != most-100 {
			t.Errorf("%d jobs are left; did %v", len(s.jobs), s.gone)
		}
	})
}
