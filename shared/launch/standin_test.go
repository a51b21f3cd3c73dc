package launch_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/prefect"
)

// FlowRun and the methods below are launch.FlowRuns, so that a test can put something between.
func (r *rig) FlowRun(ctx context.Context, id string) (prefect.FlowRun, error) {
	return r.flowRuns.FlowRun(ctx, id)
}

func (r *rig) SetState(ctx context.Context, id string, p prefect.Proposal) (prefect.Answer, error) {
	return r.flowRuns.SetState(ctx, id, p)
}

func (r *rig) FlowRunStates(ctx context.Context, id string) ([]prefect.State, error) {
	return r.flowRuns.FlowRunStates(ctx, id)
}

func (r *rig) UpdateFlowRun(ctx context.Context, id string, fields map[string]any) error {
	return r.flowRuns.UpdateFlowRun(ctx, id, fields)
}

func (r *rig) ScheduledFlowRuns(ctx context.Context, pool string, before time.Time, limit int) ([]prefect.FlowRun, error) {
	return r.flowRuns.ScheduledFlowRuns(ctx, pool, before, limit)
}

func (r *rig) FlowRuns(ctx context.Context, f prefect.Filter) ([]prefect.FlowRun, error) {
	return r.flowRuns.FlowRuns(ctx, f)
}

func (r *rig) FreeSlots(ctx context.Context, pool string) (prefect.Slots, error) {
	return r.flowRuns.FreeSlots(ctx, pool)
}

func (r *rig) Limited(ctx context.Context, pool string) (bool, error) {
	return r.flowRuns.Limited(ctx, pool)
}

func (r *rig) onPrefect(w http.ResponseWriter, req *http.Request, next http.Handler) {
	r.mu.Lock()
	fault := r.prefectFault
	r.mu.Unlock()
	if fault == nil || !fault(w, req, next) {
		next.ServeHTTP(w, req)
	}
}

func (r *rig) onCloudRun(method string, phase cloudruntest.Phase) error {
	r.mu.Lock()
	fault := r.cloudFault
	r.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(method, phase)
}

// strikePrefect has fault strike Prefect's calls from now on, nil none; what it answered goes no further.
func (r *rig) strikePrefect(fault func(w http.ResponseWriter, r *http.Request, next http.Handler) (answered bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prefectFault = fault
}

// strikeCloudRun has fault strike Cloud Run's calls from now on, nil none.
func (r *rig) strikeCloudRun(fault func(method string, phase cloudruntest.Phase) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cloudFault = fault
}

// onceLost loses Prefect's answer to the next proposal of a state, which takes effect.
func (r *rig) onceLost() {
	var done atomic.Bool
	r.strikePrefect(func(_ http.ResponseWriter, req *http.Request, next http.Handler) bool {
		if !strings.HasSuffix(req.URL.Path, "/set_state") || done.Swap(true) {
			return false
		}
		next.ServeHTTP(httptest.NewRecorder(), req)
		panic(http.ErrAbortHandler)
	})
}

// answer makes Cloud Run answer the next call of a method with an error.
func (r *rig) answer(method string, phase cloudruntest.Phase, err error) {
	var done atomic.Bool
	r.strikeCloudRun(func(m string, p cloudruntest.Phase) error {
		if m != method || p != phase || done.Swap(true) {
			return nil
		}
		return err
	})
}

// unclear makes a flow run whose job Cloud Run creates without saying so.
func (r *rig) unclear() prefect.FlowRun {
	r.t.Helper()
	fr := r.flowRun(prefect.NewFlowRun{})
	r.answer("CreateJob", cloudruntest.After, status.Error(codes.Unavailable, "the service is unavailable"))
	r.fails(fr.ID)
	return fr
}

// fallibleLedger is a ledger that can be lost or out of reach.
type fallibleLedger struct {
	*ledger.Memory
	down atomic.Bool
}

var errDown = errors.New("the ledger cannot be reached")

func (l *fallibleLedger) Update(ctx context.Context, id string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error) {
	if l.down.Load() {
		return flowrun.Record{}, errDown
	}
	return l.Memory.Update(ctx, id, change)
}

// lose forgets everything.
func (l *fallibleLedger) lose() { l.Memory = ledger.NewMemory() }

// outbox keeps what was sent.
type outbox struct {
	mu   sync.Mutex
	sent []sent
}

// sent is a message: to look at a flow run, at a time if it is not zero, or that a slot came free.
type sent struct {
	FlowRunID, Cause, Freed string
	At                      time.Time
}

func (o *outbox) add(s sent) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent = append(o.sent, s)
	return nil
}

// take returns what was sent since it was last called.
func (o *outbox) take() []sent {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.sent
	o.sent = nil
	return s
}

func (o *outbox) Dispatch(_ context.Context, id string) error { return o.add(sent{FlowRunID: id}) }

func (o *outbox) DispatchAt(_ context.Context, id string, at time.Time, cause string) error {
	return o.add(sent{FlowRunID: id, At: at, Cause: cause})
}

func (o *outbox) Freed(_ context.Context, pool, _ string) error { return o.add(sent{Freed: pool}) }
