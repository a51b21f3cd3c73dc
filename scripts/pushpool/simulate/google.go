package simulate

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/run/apiv2/runpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
)

// registrar knows the methods of gRPC services and calls them without a network.
type registrar map[string]func(ctx context.Context, req any) (any, error)

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(d *grpc.ServiceDesc, impl any) {
	for _, m := range d.Methods {
		r["/"+d.ServiceName+"/"+m.MethodName] = func(ctx context.Context, req any) (any, error) {
			return m.Handler(impl, ctx, func(into any) error {
				proto.Merge(into.(proto.Message), req.(proto.Message)) //nolint:forcetypeassert // both are gRPC's
				return nil
			}, nil)
		}
	}
}

// google carries an instance's calls to Google's APIs.
func (i *instance) google(ctx context.Context, method string, req, reply any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
	w := i.w
	to, what, flowRun := w.describe(method, req)
	f, err := i.begin(ctx, to, what, flowRun)
	if err != nil {
		return status.FromContextError(err).Err()
	}
	switch f.kind {
	case CloudRun429:
		return status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Write requests' and limit 'Write requests per minute per region'")
	case CloudRun503Before:
		return status.Error(codes.Unavailable, "The service is currently unavailable.")
	case PublishUnavailable:
		if w.dice.of("lost "+f.name).IntN(2) == 0 {
			return status.Error(codes.Unavailable, "The service is currently unavailable.")
		}
	}
	if r, ok := req.(*runpb.CreateJobRequest); ok {
		req = w.creates(r, f)
	}
	call := w.services[method]
	if call == nil {
		return status.Errorf(codes.Unimplemented, "the simulator has no %s", method)
	}
	answer, err := call(ctx, req)
	if end := i.end(ctx, f); end != nil {
		return status.FromContextError(end).Err()
	}
	if f.kind == CloudRun503After || f.kind == PublishUnavailable {
		return status.Error(codes.Unavailable, "The service is currently unavailable.")
	}
	if err != nil {
		return err
	}
	proto.Merge(reply.(proto.Message), answer.(proto.Message)) //nolint:forcetypeassert // both are gRPC's
	return nil
}

// describe says whom a call is for and what it asks, in words that are the same in every run.
func (w *world) describe(method string, req any) (to service, what, flowRun string) {
	to = toCloudRun
	about := ""
	switch r := req.(type) {
	case *pubsubpb.PublishRequest:
		to = toTopic
		about = path.Base(r.GetTopic()) + " " + w.label(string(r.GetMessages()[0].GetData()))
	case *cloudtaskspb.CreateTaskRequest:
		to = toTimer
		about = w.label(string(taskData(r.GetTask())))
	case *cloudtaskspb.GetTaskRequest:
		to = toTimer
	case *runpb.CreateJobRequest:
		flowRun = w.names[r.GetJob().GetLabels()[cloudrun.LabelFlowRun]]
		about = r.GetParent() + " " + flowRun
	case interface{ GetName() string }:
		parts := strings.Split(r.GetName(), "/")
		if len(parts) > 5 {
			if j := w.jobs[parts[5]]; j != nil {
				flowRun = j.flowRun
			}
			about = parts[3] + " " + flowRun
		}
	}
	return to, path.Base(method) + " " + about, flowRun
}

// job is what the simulator knows of a job of ours.
type job struct {
	flowRun      string // label
	launch       flowrun.LaunchID
	ready, start time.Duration
	noEntry      bool
}

// creates notes a job that is about to be created, and lets a fault change what comes of it.
func (w *world) creates(r *runpb.CreateJobRequest, f fault) *runpb.CreateJobRequest {
	labels := r.GetJob().GetLabels()
	if w.jobs[r.GetJobId()] == nil {
		chance := w.dice.of("job " + f.name)
		w.jobs[r.GetJobId()] = &job{
			flowRun: w.names[labels[cloudrun.LabelFlowRun]], launch: flowrun.LaunchID(labels[cloudrun.LabelLaunch]),
			ready: between(chance, time.Second, 8*time.Second), start: between(chance, time.Second, 5*time.Second),
		}
	}
	j := w.jobs[r.GetJobId()]
	switch f.kind {
	case SlowReadiness:
		j.ready += between(w.dice.of("slow "+f.name), 30*time.Second, 4*time.Minute)
	case EndWithoutEntry:
		j.noEntry = true
	case StartFailure:
		r = proto.CloneOf(r)
		r.GetJob().GetTemplate().GetTemplate().GetContainers()[0].Image = "registry/missing"
		w.excuse(j.flowRun, "its image is missing")
	}
	return r
}

// ledgerCalls carries an instance's calls to the ledger. Methods that are not here go through
// without a fault.
type ledgerCalls struct {
	ledger.Ledger
	of *instance
}

// ledgerTimeout is that of the ledger in Firestore.
const ledgerTimeout = 20 * time.Second

var errLedger = status.Error(codes.Unavailable, "the ledger is unavailable")

func onLedger[T any](ctx context.Context, l *ledgerCalls, what, flowRun string, effect func(ctx context.Context, contended bool) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	f, err := l.of.begin(ctx, toLedger, what, flowRun)
	if err != nil {
		return none, err
	}
	after := f.kind == LedgerUnavailable && l.of.w.dice.of("after "+f.name).IntN(2) == 0
	if f.kind == LedgerUnavailable && !after {
		return none, fmt.Errorf("%s: %w", what, errLedger)
	}
	contended := f.kind == LedgerContention
	if contended && l.of.w.dice.of("after "+f.name).IntN(2) == 0 {
		return none, fmt.Errorf("%s: %w", what, status.Error(codes.Aborted, "Too much contention on these documents. Please try again."))
	}
	v, err := effect(ctx, contended)
	if end := l.of.end(ctx, f); end != nil {
		return none, end
	}
	if after {
		return none, fmt.Errorf("%s: %w", what, errLedger)
	}
	return v, err
}

func (l *ledgerCalls) Get(ctx context.Context, id string) (flowrun.Record, error) {
	name := l.of.w.names[id]
	return onLedger(ctx, l, "ledger get "+name, name, func(ctx context.Context, _ bool) (flowrun.Record, error) { return l.Ledger.Get(ctx, id) })
}

func (l *ledgerCalls) Update(ctx context.Context, id string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error) {
	name := l.of.w.names[id]
	return onLedger(ctx, l, "ledger update "+name, name, func(ctx context.Context, contended bool) (flowrun.Record, error) {
		if contended { // the function of a transaction that has to be repeated is called again
			if before, err := l.Ledger.Get(ctx, id); err == nil {
				_, _ = change(before)
			}
		}
		return l.Ledger.Update(ctx, id, change)
	})
}

func (l *ledgerCalls) UpdatePool(ctx context.Context, pool string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error) {
	return onLedger(ctx, l, "ledger pool "+pool, "", func(ctx context.Context, _ bool) (flowrun.Pool, error) { return l.Ledger.UpdatePool(ctx, pool, change) })
}

func (l *ledgerCalls) Unreported(ctx context.Context, before time.Time, limit int) ([]flowrun.Record, error) {
	return onLedger(ctx, l, "ledger unreported", "", func(ctx context.Context, _ bool) ([]flowrun.Record, error) {
		return l.Ledger.Unreported(ctx, before, limit)
	})
}

func (l *ledgerCalls) ByExecution(ctx context.Context, execution string) (flowrun.Record, bool, error) {
	type found struct {
		r  flowrun.Record
		ok bool
	}
	v, err := onLedger(ctx, l, "ledger by execution", "", func(ctx context.Context, _ bool) (found, error) {
		r, ok, err := l.Ledger.ByExecution(ctx, execution)
		return found{r, ok}, err
	})
	return v.r, v.ok, err
}
