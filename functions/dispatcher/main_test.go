package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/followup"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

func TestMain(m *testing.M) {
	// A client library that wire.go imports starts this one and never ends it: one per process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// created is a flow run, and the deployment, that were passed on as they were read.
type created struct{ FlowRun, WorkPool, Deployment string }

// launcher keeps what it was asked to do.
type launcher struct {
	dispatched []string
	created    []created
	woken      []message.Wake
	published  time.Time
	holders    map[string]bool
	fail, wake error
}

func (l *launcher) Dispatch(_ context.Context, holder, flowRunID string, published time.Time) error {
	l.dispatched, l.published = append(l.dispatched, flowRunID), published
	l.note(holder)
	return l.fail
}

func (l *launcher) DispatchEvent(ctx context.Context, holder string, e message.PrefectEvent, published time.Time) error {
	return l.Dispatch(ctx, holder, e.FlowRunID, published)
}

func (l *launcher) DispatchCreated(_ context.Context, holder string, fr prefect.FlowRun, d prefect.Deployment) error {
	l.created = append(l.created, created{fr.ID, fr.WorkPoolName, d.ID})
	l.note(holder)
	return l.fail
}

func (l *launcher) Wake(_ context.Context, holder string, w message.Wake) error {
	l.woken = append(l.woken, w)
	l.note(holder)
	return l.wake
}

func (l *launcher) note(holder string) {
	if l.holders == nil {
		l.holders = map[string]bool{}
	}
	l.holders[holder] = true
}

// installation is a dispatcher of the pools etl and capped, at a server with the deployments
// flow/prod, flow/queued and flow/capped, and flow/foreign in a pool of somebody else. The
// ledger knows that flow runs wait for a slot of the pool capped, and of flow/queued.
type installation struct {
	*Dispatcher
	launcher *launcher
	ledger   *ledger.Memory
	prefect  *prefect.Client
	ids      map[string]string // of deployments
	refuse   atomic.Int32      // the status with which Prefect answers each creation, if set
}

func start(t *testing.T) *installation {
	t.Helper()
	in := &installation{launcher: &launcher{}, ids: map[string]string{}}
	server := prefecttest.New(prefecttest.Options{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if status := int(in.refuse.Load()); status != 0 && strings.HasSuffix(r.URL.Path, "/create_flow_run") {
			w.WriteHeader(status)
			fmt.Fprint(w, `{"detail":"no"}`)
			return
		}
		next.ServeHTTP(w, r)
	}})
	t.Cleanup(server.Close)
	c, err := prefect.New(prefect.Config{
		APIURL: server.URL(), RequestsPerMinute: 60_000,
		HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	in.prefect = c
	in.ledger = ledger.NewMemory()
	in.Dispatcher = &Dispatcher{
		launcher: in.launcher, deployments: c, waiting: followup.New(nil, nil, in.ledger, time.Now), ledger: in.ledger, flowRuns: c,
		workPools: []string{"etl", "capped"}, now: time.Now,
	}
	flow, err := c.CreateFlow(t.Context(), "flow")
	if err != nil {
		t.Fatal(err)
	}
	for name, pool := range map[string]string{"prod": "etl", "queued": "etl", "capped": "capped", "foreign": "somebody-elses"} {
		if err := c.CreateWorkPool(t.Context(), pool, "cloud-run-v2", nil); err != nil {
			t.Fatal(err)
		}
		d, err := c.CreateDeployment(t.Context(), prefect.NewDeployment{FlowID: flow.ID, Name: name, WorkPool: pool})
		if err != nil {
			t.Fatal(err)
		}
		in.ids[name] = d.ID
	}
	_, err = in.ledger.UpdatePool(t.Context(), "capped", func(p flowrun.Pool) (flowrun.Pool, error) { p.Waits = true; return p, nil })
	_, err2 := in.ledger.UpdateDeployment(t.Context(), in.ids["queued"], func(d flowrun.Deployment) (flowrun.Deployment, error) { d.Waits = true; return d, nil })
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	call(t, server, http.MethodPatch, "/deployments/"+in.ids["prod"], `{
		"parameter_openapi_schema":{"type":"object","properties":{"day":{"type":"string"}}},"enforce_parameter_schema":true}`)
	return in
}

// call makes a call that the product itself does not make.
func call(t *testing.T, server *prefecttest.Server, method, path, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, server.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode > 299 {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// flowRuns returns the flow runs of all pools.
func (in *installation) flowRuns(t *testing.T) []prefect.FlowRun {
	t.Helper()
	all, err := in.prefect.FlowRuns(t.Context(), prefect.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (in *installation) create(t *testing.T, deployment string, at *time.Time) prefect.FlowRun {
	t.Helper()
	fr, _, err := in.prefect.CreateFlowRun(t.Context(), in.ids[deployment], prefect.NewFlowRun{ScheduledTime: at})
	if err != nil {
		t.Fatal(err)
	}
	return fr
}

func delivered(data string) delivery.Delivery {
	return delivery.Delivery{MessageID: "17", PublishTime: time.Now().Add(-time.Minute).Truncate(time.Second), Data: []byte(data), Attempt: 1}
}
