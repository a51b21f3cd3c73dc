package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// Preview tells how the job of a flow run in a work pool would differ from the one that a
// worker would make there, empty if in nothing but our labels. The error is why there would be none.
type Preview func(ctx context.Context, d prefect.Deployment, pool string) (difference string, err error)

// Plan is a migration before it begins.
type Plan struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Create: the work pool is not there and becomes a copy of the old one.
	Create bool `json:"create_work_pool"`
	// Queues are those that the new work pool lacks; they are made like the old ones.
	Queues      []string  `json:"create_work_queues"`
	Deployments []Planned `json:"deployments"`
	Stays       Stays     `json:"stays"`
	Warnings    []string  `json:"warnings"`

	from   prefect.WorkPool
	queues []prefect.WorkQueue
}

// Planned is a deployment that is to be moved.
type Planned struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Queue string `json:"work_queue"`
	// Difference is between the worker's job and ours, as a diff.
	Difference string `json:"difference,omitempty"`
	// Refused is why no job could be made; such a deployment is not moved.
	Refused string `json:"refused,omitempty"`
}

// Stays is what the worker of the old work pool still has to see to its end.
type Stays struct {
	FlowRuns map[flowrun.StateType]int `json:"flow_runs"`
	// LastDue is when the last of them that wait is due; zero where none does.
	LastDue time.Time `json:"last_due,omitzero"`
}

// Count is of all of them.
func (s Stays) Count() (n int) {
	for _, m := range s.FlowRuns {
		n += m
	}
	return n
}

// Refused reports whether some deployment cannot be moved.
func (plan Plan) Refused() bool {
	return slices.ContainsFunc(plan.Deployments, func(d Planned) bool { return d.Refused != "" })
}

// types are the work pools that we launch.
var types = []string{"cloud-run-v2", "cloud-run"}

// Make makes the plan to move deployments, all of the pool if none is named, and changes nothing.
// served are the work pools of the installation.
func Make(ctx context.Context, p *prefect.Client, from, to string, names, served []string, preview Preview) (Plan, error) {
	plan := Plan{From: from, To: to, Queues: []string{}, Deployments: []Planned{}, Warnings: []string{}}
	switch {
	case from == to:
		return plan, errors.New("--from and --to are the same work pool; name the worker's and one of this installation's")
	case !slices.Contains(served, to):
		return plan, fmt.Errorf("--to: work pool %q is none of this installation's (%s); add it to WORK_POOLS first (work_pools in Terraform) and apply", to, strings.Join(served, ", "))
	case slices.Contains(served, from):
		return plan, fmt.Errorf("--from: work pool %q is this installation's already; if a worker serves it, too, stop the worker: both beside each other do no harm, and nothing has to be moved", from)
	}
	var err error
	if plan.from, err = p.WorkPool(ctx, from); err != nil {
		return plan, err
	}
	pool, err := p.WorkPool(ctx, to)
	switch {
	case err == nil:
		if err := plan.compare(pool); err != nil {
			return plan, err
		}
	case flowrun.FaultOf(err) != flowrun.NotFound:
		return plan, err
	case !slices.Contains(types, plan.from.Type):
		return plan, fmt.Errorf("--to: work pool %q is not there, and no copy of %q, which is of type %s, would do; make it with `pushpool connect`", to, from, plan.from.Type)
	default:
		plan.Create = true
	}
	if err := plan.missingQueues(ctx, p); err != nil {
		return plan, err
	}
	if err := plan.deployments(ctx, p, names, preview); err != nil {
		return plan, err
	}
	plan.Stays, err = Remaining(ctx, p, from)
	return plan, err
}

// compare notes what differs between the two work pools.
func (plan *Plan) compare(to prefect.WorkPool) error {
	warn := func(format string, args ...any) { plan.Warnings = append(plan.Warnings, fmt.Sprintf(format, args...)) }
	if !slices.Contains(types, to.Type) {
		return fmt.Errorf("--to: work pool %q is of type %s, which pushpool does not launch; name one of type %s", to.Name, to.Type, strings.Join(types, " or "))
	}
	if to.IsPaused {
		warn("work pool %s is paused: what is moved there waits until it is resumed (`prefect work-pool resume %s`)", to.Name, to.Name)
	}
	if to.Type != plan.from.Type {
		warn("the work pools are of different types (%s and %s): job variables of the one may mean nothing in the other", plan.from.Type, to.Type)
	} else if !sameJSON(plan.from.BaseJobTemplate, to.BaseJobTemplate) {
		warn("the base job templates differ; compare: diff <(prefect work-pool inspect %s --output json) <(prefect work-pool inspect %s --output json)", plan.from.Name, to.Name)
	}
	if limit := plan.from.ConcurrencyLimit; limit != nil {
		if to.ConcurrencyLimit == nil || *to.ConcurrencyLimit != *limit {
			warn("work pool %s has a limit of %d, work pool %s another; set it: prefect work-pool set-concurrency-limit %s %d", plan.from.Name, *limit, to.Name, to.Name, *limit)
		}
		warn("each work pool keeps its own limit: while both serve, up to twice %d may be under way", *limit)
	}
	return nil
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

func (plan *Plan) missingQueues(ctx context.Context, p *prefect.Client) error {
	old, err := p.WorkQueues(ctx, plan.From)
	if err != nil {
		return err
	}
	have := []prefect.WorkQueue{{Name: "default"}} // of a pool that is yet to be created
	if !plan.Create {
		if have, err = p.WorkQueues(ctx, plan.To); err != nil {
			return err
		}
	}
	for _, q := range old {
		if !slices.ContainsFunc(have, func(h prefect.WorkQueue) bool { return h.Name == q.Name }) {
			plan.Queues = append(plan.Queues, q.Name)
			plan.queues = append(plan.queues, q)
		}
	}
	return nil
}

func (plan *Plan) deployments(ctx context.Context, p *prefect.Client, names []string, preview Preview) error {
	all, err := p.Deployments(ctx, plan.From)
	if err != nil {
		return err
	}
	left := slices.Clone(names)
	for _, d := range all {
		flow, err := p.Flow(ctx, d.FlowID)
		if err != nil {
			return err
		}
		name := flow.Name + "/" + d.Name
		if i := slices.IndexFunc(left, func(n string) bool { return n == name || n == d.ID }); i >= 0 {
			left = slices.Delete(left, i, i+1)
		} else if len(names) > 0 {
			continue
		}
		planned := Planned{ID: d.ID, Name: name, Queue: d.WorkQueueName}
		pool := plan.To
		if plan.Create {
			pool = plan.From // of which it becomes a copy
		}
		if planned.Difference, err = preview(ctx, d, pool); err != nil {
			planned.Refused = err.Error()
		}
		plan.Deployments = append(plan.Deployments, planned)
	}
	if len(left) > 0 {
		return fmt.Errorf("--deployment: work pool %q has none that is called %s; write FLOW/DEPLOYMENT as `prefect deployment ls` shows it", plan.From, strings.Join(left, ", "))
	}
	return nil
}

// Remaining returns which flow runs of a work pool have not ended.
func Remaining(ctx context.Context, p *prefect.Client, pool string) (Stays, error) {
	s := Stays{FlowRuns: map[flowrun.StateType]int{}}
	f := prefect.Filter{WorkPools: []string{pool}, Sort: prefect.OldestFirst, StateTypes: []prefect.StateType{
		flowrun.StateScheduled, flowrun.StatePending, flowrun.StateRunning, flowrun.StatePaused, flowrun.StateCancelling,
	}}
	for fr, err := range prefect.EachFlowRun(ctx, p.FlowRuns, f) {
		if err != nil {
			return s, err
		}
		s.FlowRuns[fr.StateType]++
		if fr.StateType == flowrun.StateScheduled && fr.Due().After(s.LastDue) {
			s.LastDue = fr.Due()
		}
	}
	return s, nil
}

// Prepare creates what the plan's new work pool lacks.
func (plan *Plan) Prepare(ctx context.Context, p *prefect.Client) error {
	if plan.Create {
		if err := p.CopyWorkPool(ctx, plan.from, plan.To); err != nil {
			return err
		}
	}
	slices.SortFunc(plan.queues, func(a, b prefect.WorkQueue) int { return a.Priority - b.Priority }) // a new one pushes others down
	for _, q := range plan.queues {
		if err := p.CreateWorkQueue(ctx, plan.To, q); err != nil {
			return err
		}
	}
	return nil
}

// Resume returns the migration of the plan: the one that was saved, if there is one between
// the same work pools, with what the plan has beside.
func (plan *Plan) Resume(saved State) (State, error) {
	s := saved
	if s.From == "" {
		s.From, s.To = plan.From, plan.To
	}
	if s.From != plan.From || s.To != plan.To {
		return s, fmt.Errorf("the file holds the migration from %s to %s; finish it, take it back, or name another file with --state", s.From, s.To)
	}
	for _, d := range plan.Deployments {
		i := slices.IndexFunc(s.Deployments, func(m Moved) bool { return m.ID == d.ID })
		if i < 0 {
			s.Deployments = append(s.Deployments, Moved{ID: d.ID, Name: d.Name, Queue: d.Queue})
		} else { // it is in the old work pool, whatever became of an earlier migration
			s.Deployments[i].Moved, s.Deployments[i].Queue = false, d.Queue
		}
	}
	return s, nil
}

// Print shows the plan to people.
func (plan Plan) Print(w io.Writer) {
	if plan.Create {
		fmt.Fprintf(w, "create  work pool %s, as a copy of %s\n", plan.To, plan.From)
	}
	for _, q := range plan.Queues {
		fmt.Fprintf(w, "create  work queue %s of work pool %s, like that of %s\n", q, plan.To, plan.From)
	}
	for _, d := range plan.Deployments {
		switch {
		case d.Refused != "":
			fmt.Fprintf(w, "REFUSED %s: %s\n", d.Name, strings.ReplaceAll(d.Refused, "\n", "; "))
		case d.Difference != "":
			fmt.Fprintf(w, "move    %s, whose job differs from the worker's:\n", d.Name)
			for line := range strings.Lines(d.Difference) {
				fmt.Fprintf(w, "          %s", line)
			}
		default:
			fmt.Fprintf(w, "move    %s, whose job is as the worker's\n", d.Name)
		}
	}
	if len(plan.Deployments) == 0 {
		fmt.Fprintf(w, "nothing is left to be moved: work pool %s has no deployments\n", plan.From)
	}
	plan.Stays.Print(w, plan.From)
	for _, warning := range plan.Warnings {
		fmt.Fprintln(w, "warning "+warning)
	}
	if len(plan.Deployments) > 0 {
		fmt.Fprintf(w, "note    write the new work pool in each prefect.yaml, too, or the next `prefect deploy` moves its deployment back\n")
	}
}

// Print says to people what stays with the worker.
func (s Stays) Print(w io.Writer, pool string) {
	if s.Count() == 0 {
		fmt.Fprintf(w, "stay    nothing is under way in work pool %s\n", pool)
		return
	}
	var b bytes.Buffer
	for _, t := range []flowrun.StateType{flowrun.StateScheduled, flowrun.StatePending, flowrun.StateRunning, flowrun.StatePaused, flowrun.StateCancelling} {
		if n := s.FlowRuns[t]; n > 0 {
			fmt.Fprintf(&b, ", %d %s", n, t)
		}
	}
	fmt.Fprintf(w, "stay    %s in work pool %s with its worker, but for what schedules laid ahead\n", b.String()[2:], pool)
}
