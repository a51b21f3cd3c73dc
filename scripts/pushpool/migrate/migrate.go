// Package migrate moves deployments from a work pool that a worker serves to one of an installation, and back.
//
// Both serve while it goes on. What has to hold is that no flow run is launched by both, and none is
// lost. A flow run belongs to the work queue that it was created in, and only its pool is asked for it,
// so no two can have it. What can be lost is what a schedule laid ahead: moving a deployment has Prefect
// delete those (of 3.x the future ones, of 2.20 also those that are due), and its scheduler lays new ones
// from then on, after seconds to a minute: one that was due in between would be gone. So those that are
// due soon are noted before, and after the move each that is gone is created again under the idempotency
// key that the schedule gave it. The scheduler uses the same key, hence there is one of each.
package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// State is a migration as it is kept in a file: what the way back needs, and what a repetition
// after a crash does.
type State struct {
	From        string  `json:"from"`
	To          string  `json:"to"`
	Deployments []Moved `json:"deployments"`
}

// Moved is a deployment of a migration.
type Moved struct {
	ID    string `json:"id"`
	Name  string `json:"name"` // FLOW/DEPLOYMENT
	Queue string `json:"work_queue"`
	// Moved: it is in the work pool that the migration leads to.
	Moved bool `json:"moved"`
	// Caught are the flow runs that a move may have deleted and nobody has looked after yet.
	Caught []Caught `json:"caught,omitempty"`
}

// Caught is a flow run that a schedule laid ahead.
type Caught struct {
	ID             string          `json:"id"`
	Name           string          `json:"name"`
	IdempotencyKey string          `json:"idempotency_key"`
	Due            time.Time       `json:"due"`
	Parameters     map[string]any  `json:"parameters,omitempty"`
	JobVariables   json.RawMessage `json:"job_variables,omitempty"`
	Tags           []string        `json:"tags,omitempty"`
}

// ErrNoState: there is no such file.
var ErrNoState = errors.New("there is no saved migration")

// Load reads a migration. The error is ErrNoState where the file is not there.
func Load(file string) (State, error) {
	var s State
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%w in %s", ErrNoState, file)
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read the migration in %s: %w", file, err)
	}
	return s, nil
}

// save writes the migration so that a crash leaves the old file or the new one.
func (s State) save(file string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err = os.WriteFile(file+".new", append(data, '\n'), 0o600); err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		return fmt.Errorf("save the migration: %w; nothing is moved that is not noted", err)
	}
	return nil
}

// ahead is how soon a flow run has to be due for us to look after it; the scheduler, which looks
// at changed deployments every few seconds and at all once a minute, does so for the rest.
const ahead = 3 * time.Minute

// Mover moves deployments.
type Mover struct {
	prefect *prefect.Client
	file    string
	// Tell hears of each deployment that was moved.
	Tell func(name, pool string, again int)
}

// New returns a Mover that keeps its migration in the file.
func New(p *prefect.Client, file string) *Mover {
	return &Mover{prefect: p, file: file, Tell: func(string, string, int) {}}
}

// Switch moves the deployments of s that are not moved yet, and saves each step before it is
// taken. After an error or a crash it goes on where it stopped.
func (m *Mover) Switch(ctx context.Context, s *State) error {
	return m.move(ctx, s, s.From, s.To, true)
}

// Back moves those that are moved back to where they were. One that somebody moved elsewhere
// is left there; left has the names.
func (m *Mover) Back(ctx context.Context, s *State) (left []string, err error) {
	for i := range s.Deployments {
		d := &s.Deployments[i]
		if !d.Moved {
			continue
		}
		now, err := m.prefect.Deployment(ctx, d.ID)
		switch {
		case err != nil && flowrun.FaultOf(err) != flowrun.NotFound:
			return left, err
		case err != nil || now.WorkPoolName != s.To && now.WorkPoolName != s.From:
			left = append(left, d.Name)
			d.Moved = false
		}
	}
	return left, m.move(ctx, s, s.To, s.From, false)
}

func (m *Mover) move(ctx context.Context, s *State, from, to string, moved bool) error {
	if err := s.save(m.file); err != nil {
		return err
	}
	for i := range s.Deployments {
		d := &s.Deployments[i]
		if d.Moved == moved {
			continue
		}
		if err := m.one(ctx, s, d, from, to); err != nil {
			return fmt.Errorf("move deployment %s to work pool %s: %w; repeat the command, it goes on from here", d.Name, to, err)
		}
		d.Moved = moved
		if err := s.save(m.file); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mover) one(ctx context.Context, s *State, d *Moved, from, to string) error {
	due, err := m.catch(ctx, d.ID, from)
	if err != nil {
		return err
	}
	// What an earlier attempt noted is gone from Prefect, perhaps, and only known here.
	for _, c := range due {
		if !d.has(c.ID) {
			d.Caught = append(d.Caught, c)
		}
	}
	if err := s.save(m.file); err != nil {
		return err
	}
	if err := m.prefect.MoveDeployment(ctx, d.ID, to, d.Queue); err != nil {
		return err
	}
	again := 0
	for _, c := range d.Caught {
		created, err := m.lookAfter(ctx, d.ID, c)
		if err != nil {
			return err
		}
		if created {
			again++
		}
	}
	d.Caught = nil
	m.Tell(d.Name, to, again)
	return nil
}

func (d *Moved) has(id string) bool {
	for _, c := range d.Caught {
		if c.ID == id {
			return true
		}
	}
	return false
}

// catch notes the flow runs that the move may delete and that are due soon.
func (m *Mover) catch(ctx context.Context, deployment, pool string) ([]Caught, error) {
	var caught []Caught
	f := prefect.Filter{
		DeploymentIDs: []string{deployment}, WorkPools: []string{pool}, StateTypes: []prefect.StateType{flowrun.StateScheduled},
		ScheduledBefore: time.Now().Add(ahead),
	}
	for fr, err := range prefect.EachFlowRun(ctx, m.prefect.FlowRuns, f) {
		if err != nil {
			return nil, err
		}
		if fr.AutoScheduled && fr.RunCount == 0 && fr.IdempotencyKey != "" {
			caught = append(caught, Caught{fr.ID, fr.Name, fr.IdempotencyKey, fr.Due(), fr.Parameters, fr.JobVariables, fr.Tags})
		}
	}
	return caught, nil
}

// lookAfter creates a flow run again that the move deleted. One that is there has been claimed,
// or was left in its queue, and its worker has it.
func (m *Mover) lookAfter(ctx context.Context, deployment string, c Caught) (created bool, err error) {
	_, err = m.prefect.FlowRun(ctx, c.ID)
	if err == nil || flowrun.FaultOf(err) != flowrun.NotFound {
		return false, err
	}
	n := prefect.NewFlowRun{Name: c.Name, Parameters: c.Parameters, Tags: c.Tags, IdempotencyKey: c.IdempotencyKey, ScheduledTime: &c.Due}
	if err := json.Unmarshal(c.JobVariables, &n.JobVariables); err != nil && len(c.JobVariables) > 0 {
		return false, err
	}
	if len(n.JobVariables) == 0 {
		n.JobVariables = nil
	}
	_, created, err = m.prefect.CreateFlowRun(ctx, deployment, n)
	return created, err
}
