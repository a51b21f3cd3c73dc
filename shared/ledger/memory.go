package ledger

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Memory is a ledger in one process's memory: for tests and for one machine. It is lost
// with the process, which the system survives.
type Memory struct {
	mu          sync.Mutex
	records     map[string]flowrun.Record
	pools       map[string]flowrun.Pool
	regions     map[string]flowrun.Region
	deployments map[string]flowrun.Deployment
	sweep       flowrun.Sweep
}

// NewMemory returns an empty ledger.
func NewMemory() *Memory {
	return &Memory{
		records: map[string]flowrun.Record{}, pools: map[string]flowrun.Pool{},
		regions: map[string]flowrun.Region{}, deployments: map[string]flowrun.Deployment{},
	}
}

// Get implements Ledger.
func (m *Memory) Get(_ context.Context, flowRunID string) (flowrun.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.get(flowRunID), nil
}

// Update implements Ledger.
func (m *Memory) Update(ctx context.Context, flowRunID string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error) {
	if err := ctx.Err(); err != nil {
		return flowrun.Record{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.get(flowRunID)
	after, err := change(before)
	if err != nil {
		return before, err
	}
	m.records[flowRunID] = clone(after)
	return after, nil
}

// Open implements Ledger.
func (m *Memory) Open(context.Context) ([]flowrun.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []flowrun.Record
	for _, r := range m.records {
		if r.Open() {
			found = append(found, clone(r))
		}
	}
	return found, nil
}

// ByExecution implements Ledger.
func (m *Memory) ByExecution(_ context.Context, name string) (flowrun.Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.records {
		if name != "" && r.ExecutionName == name {
			return clone(r), true, nil
		}
	}
	return flowrun.Record{}, false, nil
}

// UpdatePool implements Ledger.
func (m *Memory) UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error) {
	return updated(ctx, m, m.pools, name, func(p flowrun.Pool) flowrun.Pool { p.Name = name; return p }, change)
}

// UpdateDeployment implements Ledger.
func (m *Memory) UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error) {
	return updated(ctx, m, m.deployments, id, func(d flowrun.Deployment) flowrun.Deployment { d.ID = id; return d }, change)
}

// UpdateRegion implements Ledger.
func (m *Memory) UpdateRegion(ctx context.Context, name string, change func(flowrun.Region) (flowrun.Region, error)) (flowrun.Region, error) {
	return updated(ctx, m, m.regions, name, func(r flowrun.Region) flowrun.Region {
		r.Name, r.Spans, r.Deletions, r.Slots = name, slices.Clone(r.Spans), slices.Clone(r.Deletions), slices.Clone(r.Slots)
		return r
	}, change)
}

// updated changes one of the values. own names it, and copies what it points to.
func updated[T any](ctx context.Context, m *Memory, in map[string]T, key string, own func(T) T, change func(T) (T, error)) (T, error) {
	if err := ctx.Err(); err != nil {
		var none T
		return none, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := own(in[key])
	after, err := change(before)
	if err != nil {
		return before, err
	}
	in[key] = own(after)
	return after, nil
}

// UpdateSweep implements Ledger.
func (m *Memory) UpdateSweep(ctx context.Context, change func(flowrun.Sweep) (flowrun.Sweep, error)) (flowrun.Sweep, error) {
	if err := ctx.Err(); err != nil {
		return flowrun.Sweep{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	after, err := change(m.sweep)
	if err != nil {
		return m.sweep, err
	}
	m.sweep = after
	return after, nil
}

func (m *Memory) get(flowRunID string) flowrun.Record {
	r := clone(m.records[flowRunID])
	r.FlowRunID = flowRunID
	return r
}

// clone copies what a record points to: as with a database, nobody shares what is stored.
func clone(r flowrun.Record) flowrun.Record {
	r.Launch, r.Previous, r.Retried = cloneLaunch(r.Launch), slices.Clone(r.Previous), maps.Clone(r.Retried)
	for i, l := range r.Previous {
		r.Previous[i] = cloneLaunch(l)
	}
	return r
}

func cloneLaunch(l flowrun.Launch) flowrun.Launch {
	if l.Retries != nil {
		retries := *l.Retries
		retries.Budget = maps.Clone(retries.Budget)
		l.Retries = &retries
	}
	if l.Report != nil {
		report := *l.Report
		l.Report = &report
	}
	return l
}
