package sweep

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

// Kind is a kind of what a sweep does: its reports count by it, and metrics are made of them.
type Kind string

// The kinds. A state proposed to Prefect is of the kind "propose_" and its type.
const (
	Dispatch        Kind = "dispatch"         // the dispatcher is to look at a flow run now
	Timer           Kind = "timer"            // … at a time
	Wake            Kind = "wake"             // what waits in a pool is to be taken
	WakeTimer       Kind = "wake_timer"       // … at a time
	CancelExecution Kind = "cancel_execution" // an execution was stopped
	DeleteJob       Kind = "delete_job"       // a job was deleted
	RenewLease      Kind = "renew_lease"      // the slot of a deployment's limit was held
	Heartbeat       Kind = "heartbeat"        // Prefect was told that the pool is served
	Poll            Kind = "poll"             // Prefect was told that queues and deployments are served
	proposed             = "propose_"

	// What is counted and changes nothing.
	Looks   Kind = "looks"   // flow runs that did not agree with their records were looked at
	Checks  Kind = "checks"  // executions were read that their jobs say are alive
	Strays  Kind = "strays"  // executions that the ledger does not hold were looked at
	Busy    Kind = "busy"    // somebody else was at it, or an execution is being stopped
	Overdue Kind = "overdue" // flow runs should have been launched by now, and wait for no limit, pause or capacity
	// Outlives: an execution is alive although its flow run ended longer ago than the grace.
	Outlives Kind = "outlives"
)

// Act is one thing that a sweep did, or, in a dry run, would have done.
type Act struct {
	Kind Kind `json:"kind"`
	// FlowRunID and Found are empty where it is not about one flow run. Found is what was
	// found out of order.
	FlowRunID string `json:"flow_run_id"`
	Found     string `json:"found"`
	// Detail is for a person.
	Detail string `json:"detail"`
}

// Acts counts and logs what goes through it to Prefect, Cloud Run and the dispatcher. In a dry
// run nothing goes through.
type Acts struct {
	log *slog.Logger
	dry bool

	mu   sync.Mutex
	acts []Act
}

// NewActs returns Acts that log repairs.
func NewActs(log *slog.Logger) *Acts { return &Acts{log: log} }

func (a *Acts) take() []Act {
	a.mu.Lock()
	defer a.mu.Unlock()
	acts := a.acts
	a.acts = nil
	return acts
}

// do does one thing, unless this is a dry run.
func (a *Acts) do(ctx context.Context, kind Kind, detail string, act func() error) error {
	if !a.dry {
		if err := act(); err != nil {
			return err
		}
	}
	done := Act{Kind: kind, Detail: detail}
	if on, ok := ctx.Value(subjectKey{}).(subject); ok {
		done.FlowRunID, done.Found = on.flowRunID, on.found
		if !a.dry {
			a.log.InfoContext(ctx, "repaired", "kind", string(kind), "flow_run_id", on.flowRunID, "found", on.found, "did", detail)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.acts = append(a.acts, done)
	return nil
}

// leave counts and logs what is out of order and left as it is, and why.
func (a *Acts) leave(ctx context.Context, kind Kind, why string) {
	on, _ := ctx.Value(subjectKey{}).(subject)
	if !a.dry {
		a.log.WarnContext(ctx, "left alone", "kind", string(kind), "flow_run_id", on.flowRunID, "found", on.found, "why", why)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.acts = append(a.acts, Act{Kind: kind, FlowRunID: on.flowRunID, Found: on.found, Detail: why})
}

// subject is the flow run that is being looked at, and what was found of it.
type subject struct{ flowRunID, found string }

type subjectKey struct{}

func about(ctx context.Context, flowRunID, found string) context.Context {
	return context.WithValue(ctx, subjectKey{}, subject{flowRunID, found})
}

// Settling is the configuration of a settler. In a dry run it copies no lines to a flow run's log.
func (a *Acts) Settling(cfg settle.Config) settle.Config {
	if a.dry {
		cfg.Lines, cfg.Logs = nil, nil
	}
	return cfg
}

// Prefect is Prefect for a settler.
func (a *Acts) Prefect(p settle.Prefect) settle.Prefect { return actingPrefect{p, a} }

type actingPrefect struct {
	settle.Prefect
	acts *Acts
}

func (p actingPrefect) SetState(ctx context.Context, id string, s prefect.Proposal) (answer prefect.Answer, err error) {
	answer.Status = prefect.StatusAccept // a dry run's
	err = p.acts.do(ctx, Kind(proposed+strings.ToLower(string(s.Type))), s.Message, func() error {
		answer, err = p.Prefect.SetState(ctx, id, s)
		return err
	})
	return answer, err
}

// FullCloudRun is what a settler and a sweeper ask of Cloud Run.
type FullCloudRun interface {
	settle.CloudRun
	Jobs(ctx context.Context, project, region string) iter.Seq2[cloudrun.Job, error]
}

// CloudRun is Cloud Run for a settler and a sweeper.
func (a *Acts) CloudRun(c FullCloudRun) FullCloudRun { return actingCloudRun{c, a} }

type actingCloudRun struct {
	FullCloudRun
	acts *Acts
}

func (c actingCloudRun) CancelExecution(ctx context.Context, n cloudrun.ExecutionName) error {
	return c.acts.do(ctx, CancelExecution, "cancel "+n.String(), func() error { return c.FullCloudRun.CancelExecution(ctx, n) })
}

func (c actingCloudRun) DeleteJob(ctx context.Context, n cloudrun.JobName) error {
	return c.acts.do(ctx, DeleteJob, "delete "+n.String(), func() error { return c.FullCloudRun.DeleteJob(ctx, n) })
}

// FullMessages is what a settler and a sweeper send.
type FullMessages interface {
	settle.Messages
	Wake(ctx context.Context, w message.Wake) error
	WakeAt(ctx context.Context, w message.Wake, at time.Time, cause string) error
}

// Messages is the sender for a settler and a sweeper.
func (a *Acts) Messages(m FullMessages) FullMessages { return actingMessages{m, a} }

type actingMessages struct {
	FullMessages
	acts *Acts
}

func (m actingMessages) Dispatch(ctx context.Context, id string) error {
	return m.acts.do(ctx, Dispatch, "dispatch flow run "+id, func() error { return m.FullMessages.Dispatch(ctx, id) })
}

func (m actingMessages) DispatchAt(ctx context.Context, id string, at time.Time, cause string) error {
	return m.acts.do(ctx, Timer, fmt.Sprintf("dispatch flow run %s at %s", id, at.UTC().Format(time.RFC3339)), func() error {
		return m.FullMessages.DispatchAt(ctx, id, at, cause)
	})
}

func (m actingMessages) Freed(ctx context.Context, workPool, deploymentID string) error {
	if m.acts.dry {
		return nil
	}
	return m.FullMessages.Freed(ctx, workPool, deploymentID)
}

func (m actingMessages) Wake(ctx context.Context, w message.Wake) error {
	return m.acts.do(ctx, Wake, "wake "+w.WorkPool+w.DeploymentID, func() error { return m.FullMessages.Wake(ctx, w) })
}

func (m actingMessages) WakeAt(ctx context.Context, w message.Wake, at time.Time, cause string) error {
	return m.acts.do(ctx, WakeTimer, fmt.Sprintf("wake %s%s at %s", w.WorkPool, w.DeploymentID, at.UTC().Format(time.RFC3339)), func() error {
		return m.FullMessages.WakeAt(ctx, w, at, cause)
	})
}

// Pools is Prefect's pools for a sweeper.
func (a *Acts) Pools(p Pools) Pools { return actingPools{p, a} }

type actingPools struct {
	pools Pools
	acts  *Acts
}

func (p actingPools) Heartbeat(ctx context.Context, pool, worker string, every time.Duration) error {
	return p.acts.do(ctx, Heartbeat, "send a heartbeat to work pool "+pool, func() error { return p.pools.Heartbeat(ctx, pool, worker, every) })
}

func (p actingPools) ScheduledFlowRuns(ctx context.Context, pool string, before time.Time, limit int) (found []prefect.FlowRun, err error) {
	err = p.acts.do(ctx, Poll, "ask what is scheduled in work pool "+pool, func() error {
		found, err = p.pools.ScheduledFlowRuns(ctx, pool, before, limit)
		return err
	})
	return found, err
}

func (p actingPools) RenewLease(ctx context.Context, id string, lease time.Duration) error {
	return p.acts.do(ctx, RenewLease, "renew lease "+id, func() error { return p.pools.RenewLease(ctx, id, lease) })
}
