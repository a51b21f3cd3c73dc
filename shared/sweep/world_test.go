package sweep

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/lookahead"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// world is all that a sweep works with. Its settler settles nothing.
type world struct {
	mu       sync.Mutex
	flowRuns []prefect.FlowRun
	jobs     map[string]cloudrun.Job // by flow run
	limited  map[string]bool
	fail     map[string]error         // by work pool or region, what listing fails with
	looking  map[string]error         // by flow run, what looking at it fails with
	takes    map[string]time.Duration // by what is done, how long it takes
	apart    map[string]bool          // flow runs that do not agree with their records
	done     []string
	holders  map[string]int
	atOnce   int
	most     int // that were ever done at once
	*ledger.Memory
}

func newWorld() *world {
	return &world{
		limited: map[string]bool{}, fail: map[string]error{}, looking: map[string]error{}, takes: map[string]time.Duration{},
		apart: map[string]bool{}, holders: map[string]int{}, jobs: map[string]cloudrun.Job{}, Memory: ledger.NewMemory(),
	}
}

// add adds a flow run; due, if it is not negative, is when it is to start from now.
func (w *world) add(id, pool string, state flowrun.StateType, due time.Duration) *prefect.FlowRun {
	w.flowRuns = append(w.flowRuns, prefect.FlowRun{ID: id, WorkPoolName: pool, StateType: state, StateID: "first state of " + id})
	fr := &w.flowRuns[len(w.flowRuns)-1]
	if state == flowrun.StateScheduled {
		at := time.Now().Add(due)
		fr.NextScheduledStartTime = &at
	}
	return fr
}

// launched adds a flow run of ours, its record and its job, whose execution is alive.
func (w *world) launched(id, pool string, state flowrun.StateType) {
	w.add(id, pool, state, 0)
	w.put(id, flowrun.Launch{Status: flowrun.StatusLaunched, WorkPool: pool})
	w.job(id, time.Time{})
}

// put stores a record, with the names that follow from the flow run's id.
func (w *world) put(id string, l flowrun.Launch) {
	l.LaunchID, l.JobName, l.Region = flowrun.LaunchID("launch of "+id), "pp-"+id, region
	l.ExecutionName = jobName(id).Execution(cloudrun.Token).String()
	_, _ = w.Update(context.Background(), id, func(r flowrun.Record) (flowrun.Record, error) {
		r.Launch = l
		return r, nil
	})
}

const region = "us-east1"

func jobName(id string) cloudrun.JobName {
	return cloudrun.JobName{Project: "p", Region: region, Job: "pp-" + id}
}

// job adds the flow run's job, whose execution has ended unless completed is zero.
func (w *world) job(id string, completed time.Time) {
	j := cloudrun.Job{Name: jobName(id), CreateTime: time.Now(), Labels: map[string]string{
		cloudrun.LabelInstall: "pushpool", cloudrun.LabelFlowRun: id, cloudrun.LabelLaunch: "launch of " + id,
	}}
	j.Latest.Execution, j.Latest.Completed = j.Name.Execution(cloudrun.Token).Execution, completed
	w.jobs[id] = j
}

func (w *world) note(ctx context.Context, what string) error {
	w.mu.Lock()
	w.done = append(w.done, what)
	w.atOnce++
	w.most = max(w.most, w.atOnce)
	takes := w.takes[strings.Fields(what)[0]]
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.atOnce--
	}()
	select {
	case <-time.After(takes): // of synctest's clock
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// did returns what was done since the last call, in any order.
func (w *world) did() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	done := w.done
	w.done = nil
	slices.Sort(done)
	return done
}

func (w *world) FlowRuns(_ context.Context, f prefect.Filter) ([]prefect.FlowRun, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, pool := range f.WorkPools {
		if err := w.fail[pool]; err != nil {
			return nil, err
		}
	}
	var found []prefect.FlowRun
	for _, fr := range w.flowRuns {
		if (f.WorkPools == nil || slices.Contains(f.WorkPools, fr.WorkPoolName)) && (f.IDs == nil || slices.Contains(f.IDs, fr.ID)) &&
			(f.StateTypes == nil || slices.Contains(f.StateTypes, fr.StateType)) &&
			(f.ScheduledBefore.IsZero() || !fr.NextScheduledStartTime.After(f.ScheduledBefore)) &&
			(f.ScheduledFrom.IsZero() || !fr.NextScheduledStartTime.Before(f.ScheduledFrom)) {
			found = append(found, fr)
		}
	}
	if f.Sort == prefect.SoonestFirst {
		slices.SortStableFunc(found, func(a, b prefect.FlowRun) int { return a.NextScheduledStartTime.Compare(*b.NextScheduledStartTime) })
	}
	return found[min(f.Offset, len(found)):min(f.Offset+prefect.MaxPage, len(found))], nil
}

func (w *world) Limited(_ context.Context, pool string) (bool, error) { return w.limited[pool], nil }

func (w *world) Heartbeat(ctx context.Context, pool, worker string, every time.Duration) error {
	return w.note(ctx, fmt.Sprintf("heartbeat %s as %s, %s", pool, worker, every))
}

func (w *world) ScheduledFlowRuns(ctx context.Context, pool string, _ time.Time, _ int) ([]prefect.FlowRun, error) {
	return nil, w.note(ctx, "poll "+pool)
}

func (w *world) RenewLease(ctx context.Context, id string, lease time.Duration) error {
	return errors.Join(w.note(ctx, fmt.Sprintf("renew %s for %s", id, lease)), w.looking[id])
}

func (w *world) Jobs(_ context.Context, _, region string) iter.Seq2[cloudrun.Job, error] {
	return func(yield func(cloudrun.Job, error) bool) {
		w.mu.Lock()
		jobs, err := slices.Collect(maps.Values(w.jobs)), w.fail[region]
		w.mu.Unlock()
		for _, j := range jobs {
			if !yield(j, nil) {
				return
			}
		}
		if err != nil {
			yield(cloudrun.Job{}, err)
		}
	}
}

func (w *world) DeleteJob(ctx context.Context, n cloudrun.JobName) error {
	return errors.Join(w.note(ctx, "delete "+n.Job), w.looking[n.Job])
}

func (w *world) Agrees(fr prefect.FlowRun, rec flowrun.Record) bool {
	return rec.Status == flowrun.StatusLaunched && !w.apart[fr.ID]
}

func (w *world) Check(ctx context.Context, holder string, fr prefect.FlowRun, _ flowrun.Record) error {
	return w.settle(ctx, holder, "check", fr.ID)
}

func (w *world) Look(ctx context.Context, holder, id string) error {
	return w.settle(ctx, holder, "look", id)
}

func (w *world) Stray(ctx context.Context, holder, id string, n cloudrun.ExecutionName) error {
	return w.settle(ctx, holder, "stray "+n.Execution, id)
}

func (w *world) settle(ctx context.Context, holder, how, id string) error {
	err := w.note(ctx, how+" "+id)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holders[holder]++
	return errors.Join(err, w.looking[id])
}

func (w *world) Dispatch(ctx context.Context, id string) error { return w.note(ctx, "dispatch "+id) }

func (w *world) DispatchAt(ctx context.Context, id string, at time.Time, cause string) error {
	return w.note(ctx, fmt.Sprintf("timer %s in %s %s", id, time.Until(at), cause))
}

func (w *world) Wake(ctx context.Context, m message.Wake) error {
	return w.note(ctx, "wake "+m.WorkPool+m.DeploymentID)
}

func (w *world) WakeAt(ctx context.Context, m message.Wake, at time.Time, cause string) error {
	return w.note(ctx, fmt.Sprintf("wake %s in %s %s", m.WorkPool, time.Until(at), cause))
}

// Freed makes a world a sender for Acts, CancelExecution and the others Cloud Run.
func (w *world) Freed(context.Context, string, string) error { return nil }

func (w *world) CancelExecution(context.Context, cloudrun.ExecutionName) error { return nil }

func (w *world) Job(context.Context, cloudrun.JobName) (cloudrun.Job, error) {
	return cloudrun.Job{}, nil
}

func (w *world) Execution(context.Context, cloudrun.ExecutionName) (cloudrun.Execution, error) {
	return cloudrun.Execution{}, nil
}

// Counted and the two below are the write quota: all is granted, a second apart.
func (w *world) Counted(context.Context, string, int) error { return nil }

func (w *world) NearCap(jobs int) bool { return jobs >= 600 }

func (w *world) Deletions(_ context.Context, _ string, n int, until time.Time) (times []time.Time, _ error) {
	for at := time.Now(); len(times) < n && at.Before(until); at = at.Add(time.Second) {
		times = append(times, at)
	}
	return times, nil
}

// sweeper sweeps the pools. Heartbeats, where they are not the subject, were sent just now.
func (w *world) sweeper(t *testing.T, pools ...string) *Sweeper {
	t.Helper()
	for _, pool := range pools {
		w.beat(t, pool)
	}
	acts := NewActs(slog.New(slog.DiscardHandler))
	return New(w, acts.Pools(w), lookahead.New(w, w, acts.Messages(w), 150*time.Second, time.Now), acts.CloudRun(w), w, w, w, acts.Messages(w), acts, slog.New(slog.DiscardHandler), Config{
		WorkPools: pools, Projects: []string{"p"}, Regions: []string{region}, Name: "pushpool",
		EventGrace: 30 * time.Second, MaxLooks: 300, MaxChecks: 150, KeepJobsFor: 24 * time.Hour, Now: time.Now,
	})
}

// beat sends the pool's heartbeat.
func (w *world) beat(t *testing.T, pool string) {
	t.Helper()
	if _, err := w.UpdatePool(t.Context(), pool, func(p flowrun.Pool) (flowrun.Pool, error) {
		p.HeartbeatAt = time.Now()
		return p, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func swept(t *testing.T, s *Sweeper) Report {
	t.Helper()
	report, err := s.Sweep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return report
}
