package simulate

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
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
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
)

// registrar knows the methods of gRPC services and calls them without a network.
type registrar map[string]func(ctx context.Context, req any) (any, error)

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(d *grpc.ServiceDesc, impl any) {
	var intercept grpc.UnaryServerInterceptor
	if s, ok := impl.(*cloudruntest.Server); ok {
		intercept = s.Intercept
	}
	for _, m := range d.Methods {
		r["/"+d.ServiceName+"/"+m.MethodName] = func(ctx context.Context, req any) (any, error) {
			return m.Handler(impl, ctx, func(into any) error {
				proto.Merge(into.(proto.Message), req.(proto.Message)) //nolint:forcetypeassert // both are gRPC's
				return nil
			}, intercept)
		}
	}
}

// google carries an instance's calls to Google's APIs.
func (i *instance) google(ctx context.Context, method string, req, reply any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
	w := i.w
	to, what, flowRun := w.describe(method, req)
	var answer any
	var failed error
	err := i.call(ctx, to, what, flowRun, func(f fault) {
		unavailable := status.Error(codes.Unavailable, "The service is currently unavailable.")
		switch {
		case f.kind == CloudRun429, w.refuses(method):
			failed = status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Write requests' and limit 'Write requests per minute per region'")
			return
		case f.kind == CloudRun503Before, f.kind == PublishUnavailable && w.dice.of("lost "+f.name).IntN(2) == 0:
			failed = unavailable
			return
		}
		if r, ok := req.(*runpb.CreateJobRequest); ok {
			req = w.creates(r, f)
		}
		call := w.services[method]
		if call == nil {
			failed = status.Errorf(codes.Unimplemented, "the simulator has no %s", method)
			return
		}
		answer, failed = call(w.ctx, req)
		w.answered(method, failed)
		if f.kind == CloudRun503After || f.kind == PublishUnavailable {
			failed = unavailable
		}
	})
	if err != nil {
		return status.FromContextError(err).Err()
	}
	if failed != nil {
		return failed
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
		// What was published at the same moment comes in one call, in no order.
		slices.SortFunc(r.GetMessages(), func(a, b *pubsubpb.PubsubMessage) int { return bytes.Compare(a.GetData(), b.GetData()) })
		about = path.Base(r.GetTopic()) + " " + w.label(string(r.GetMessages()[0].GetData()))
	case *cloudtaskspb.CreateTaskRequest:
		to = toTimer
		about = w.label(string(taskData(r.GetTask())))
	case *cloudtaskspb.GetTaskRequest:
		to = toTimer
	case *runpb.CreateJobRequest:
		flowRun = w.flowRun(r.GetJob().GetLabels()[cloudrun.LabelFlowRun])
		about = r.GetParent() + " " + flowRun
	case interface{ GetName() string }:
		parts := strings.Split(r.GetName(), "/")
		if len(parts) > 5 {
			if j := w.job(parts[5]); j != nil {
				flowRun = j.flowRun
			}
			about = parts[3] + " " + flowRun
		}
	}
	return to, path.Base(method) + " " + about, flowRun
}

// creates notes a job that is about to be created, and lets a fault change what comes of it.
func (w *world) creates(r *runpb.CreateJobRequest, f fault) *runpb.CreateJobRequest {
	labels := r.GetJob().GetLabels()
	j := w.job(r.GetJobId())
	if j == nil {
		chance := w.dice.of("job " + f.name)
		j = &job{
			id: r.GetJobId(), flowRun: w.flowRun(labels[cloudrun.LabelFlowRun]), launch: flowrun.LaunchID(labels[cloudrun.LabelLaunch]),
			ready: between(chance, time.Second, cmp.Or(w.readyAtMost, 8*time.Second)), start: between(chance, time.Second, 5*time.Second),
		}
		w.add(j)
	}
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

// ledgerCalls carries an instance's calls to the ledger.
type ledgerCalls struct{ of *instance }

func (l *ledgerCalls) now() ledger.Ledger { return l.of.of.ledger.now() }

var _ ledger.Ledger = (*ledgerCalls)(nil)

// ledgerTimeout is that of the ledger in Firestore.
const ledgerTimeout = 20 * time.Second

var errLedger = status.Error(codes.Unavailable, "the ledger is unavailable")

func onLedger[T any](ctx context.Context, l *ledgerCalls, what, flowRun string, effect func(ctx context.Context, contended bool) (T, error)) (T, error) {
	var none, v T
	var failed error
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	err := l.of.call(ctx, toLedger, what, flowRun, func(f fault) {
		half := l.of.w.dice.of("half "+f.name).IntN(2) == 0
		switch {
		case f.kind == LedgerUnavailable && half:
			failed = fmt.Errorf("%s: %w", what, errLedger)
			return
		case f.kind == LedgerContention && half:
			failed = fmt.Errorf("%s: %w", what, status.Error(codes.Aborted, "Too much contention on these documents. Please try again."))
			return
		}
		v, failed = effect(ctx, f.kind == LedgerContention)
		if f.kind == LedgerUnavailable { // it was written nevertheless
			v, failed = none, fmt.Errorf("%s: %w", what, errLedger)
		}
	})
	if err != nil {
		return none, err
	}
	return v, failed
}

func (l *ledgerCalls) Get(ctx context.Context, id string) (flowrun.Record, error) {
	name := l.of.w.flowRun(id)
	return onLedger(ctx, l, "ledger get "+name, name, func(ctx context.Context, _ bool) (flowrun.Record, error) { return l.now().Get(ctx, id) })
}

func (l *ledgerCalls) Update(ctx context.Context, id string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error) {
	name := l.of.w.flowRun(id)
	return onLedger(ctx, l, "ledger update "+name, name, func(ctx context.Context, contended bool) (flowrun.Record, error) {
		if contended { // the function of a transaction that has to be repeated is called again
			if before, err := l.now().Get(ctx, id); err == nil {
				_, _ = change(before)
			}
		}
		return l.now().Update(ctx, id, change)
	})
}

func (l *ledgerCalls) UpdatePool(ctx context.Context, pool string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error) {
	return onLedger(ctx, l, "ledger pool "+pool, "", func(ctx context.Context, _ bool) (flowrun.Pool, error) { return l.now().UpdatePool(ctx, pool, change) })
}

func (l *ledgerCalls) UpdateRegion(ctx context.Context, region string, change func(flowrun.Region) (flowrun.Region, error)) (flowrun.Region, error) {
	return onLedger(ctx, l, "ledger region "+region, "", func(ctx context.Context, _ bool) (flowrun.Region, error) {
		return l.now().UpdateRegion(ctx, region, change)
	})
}

func (l *ledgerCalls) UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error) {
	return onLedger(ctx, l, "ledger deployment", "", func(ctx context.Context, _ bool) (flowrun.Deployment, error) {
		return l.now().UpdateDeployment(ctx, id, change)
	})
}

func (l *ledgerCalls) UpdateSweep(ctx context.Context, change func(flowrun.Sweep) (flowrun.Sweep, error)) (flowrun.Sweep, error) {
	return onLedger(ctx, l, "ledger sweep", "", func(ctx context.Context, _ bool) (flowrun.Sweep, error) { return l.now().UpdateSweep(ctx, change) })
}

func (l *ledgerCalls) Open(ctx context.Context) ([]flowrun.Record, error) {
	return onLedger(ctx, l, "ledger open", "", func(ctx context.Context, _ bool) ([]flowrun.Record, error) { return l.now().Open(ctx) })
}

func (l *ledgerCalls) ByExecution(ctx context.Context, execution string) (flowrun.Record, bool, error) {
	type found struct {
		r  flowrun.Record
		ok bool
	}
	v, err := onLedger(ctx, l, "ledger by execution", "", func(ctx context.Context, _ bool) (found, error) {
		r, ok, err := l.now().ByExecution(ctx, execution)
		return found{r, ok}, err
	})
	return v.r, v.ok, err
}
