package prefecttest_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// creation holds that a key makes a creation repeatable, and what a flow run takes from its deployment.
func creation(t *testing.T, p *prefectServer) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	d := p.deploy(t, prefect.NewDeployment{
		Parameters: map[string]any{"a": 1, "b": 1}, JobVariables: map[string]any{"cpu": "1"}, Tags: []string{"one"}, Entrypoint: "f.py:f",
	})
	n := prefect.NewFlowRun{
		Name: "n", Parameters: map[string]any{"b": "two"}, JobVariables: map[string]any{"memory": "1Gi"}, Tags: []string{"two"},
		IdempotencyKey: "k", ScheduledTime: &at, Labels: map[string]any{prefect.LabelTraceparent: trace},
	}
	first, created, err := p.CreateFlowRun(t.Context(), d.ID, n)
	if err != nil || !created {
		t.Fatalf("first: created %t, error %v", created, err)
	}
	again, created, err := p.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{IdempotencyKey: "k"})
	p.rule(t, "a flow run is created once for each idempotency key", func(t *testing.T) {
		if err != nil || created || again.ID != first.ID {
			t.Errorf("again: flow run %s, created %t, error %v; want %s", again.ID, created, err, first.ID)
		}
	})
	f := p.read(t, first.ID)
	// What the creation answers is taken for what a reading would: nothing is read again before the launch.
	p.rule(t, "a creation answers what a reading would, the first time and again", func(t *testing.T) {
		seen := func(f prefect.FlowRun) []any {
			return []any{f.ID, f.FlowID, f.DeploymentID, f.WorkPoolName, f.WorkQueueID, f.StateType, f.StateName, f.StateID, f.State, f.Due(), f.Created}
		}
		for _, answer := range []prefect.FlowRun{first, again} {
			if diff := cmp.Diff(seen(f), seen(answer)); diff != "" {
				t.Errorf("the creation's answer (-read +answered):\n%s", diff)
			}
		}
	})
	p.rule(t, "a flow run takes its deployment's pool, queue and tags, and the parameters that it is not given", func(t *testing.T) {
		slices.Sort(f.Tags)
		got := []any{f.Parameters, f.Tags, f.WorkPoolName, f.WorkQueueName, f.DeploymentID}
		want := []any{map[string]any{"a": json.Number("1"), "b": "two"}, []string{"one", "two"}, d.WorkPoolName, "default", d.ID}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("flow run (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "a flow run shows its own name, time and job variables, without its deployment's", func(t *testing.T) {
		got := []any{f.Name, f.StateName, f.NextScheduledStartTime.UTC(), decoded(t, f.JobVariables), f.AutoScheduled}
		if diff := cmp.Diff([]any{"n", "Scheduled", at, map[string]any{"memory": "1Gi"}, false}, got); diff != "" {
			t.Errorf("flow run (-want +got):\n%s", diff)
		}
	})
	p.rule(t, hasLabels, func(t *testing.T) {
		if got := f.Labels[prefect.LabelTraceparent] == trace; got != expected[bool](p, hasLabels) {
			t.Errorf("labels %v", f.Labels)
		}
	})
	p.rule(t, "a deployment shows its job variables, entrypoint and tags", func(t *testing.T) {
		read, err := p.Deployment(t.Context(), d.ID)
		if err != nil {
			t.Fatal(err)
		}
		got := []any{decoded(t, read.JobVariables), read.Entrypoint, read.Tags}
		if diff := cmp.Diff([]any{map[string]any{"cpu": "1"}, "f.py:f", []string{"one"}}, got); diff != "" {
			t.Errorf("deployment (-want +got):\n%s", diff)
		}
	})
}

// deletedDeployment holds what becomes of a deployment's flow runs when it is deleted.
func deletedDeployment(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	waiting := p.create(t, d.ID, prefect.NewFlowRun{})
	again := p.started(t, d.ID, pending, running, failed, scheduled)
	claimed, other := p.started(t, d.ID, pending), p.started(t, d.ID, pending)
	p.done(t, http.MethodDelete, "/deployments/"+d.ID, nil)
	p.rule(t, "a flow run that waits for its first start is deleted with its deployment", func(t *testing.T) {
		_, err := p.FlowRun(t.Context(), waiting.ID)
		wantFault(t, err, flowrun.NotFound)
	})
	p.rule(t, outlives, func(t *testing.T) {
		f, err := p.FlowRun(t.Context(), again.ID)
		if !expected[bool](p, outlives) {
			wantFault(t, err, flowrun.NotFound)
		} else if err != nil || f.DeploymentID != d.ID {
			t.Errorf("it is of deployment %q, error %v; want %s", f.DeploymentID, err, d.ID)
		}
	})
	p.rule(t, "a flow run that is PENDING keeps the id of its deleted deployment, and may be CANCELLED", func(t *testing.T) {
		if f := p.read(t, other.ID); f.DeploymentID != d.ID || f.WorkPoolName != d.WorkPoolName {
			t.Errorf("it is of deployment %q in pool %q, want %s in %s", f.DeploymentID, f.WorkPoolName, d.ID, d.WorkPoolName)
		}
		if a := p.set(t, other.ID, prefect.Proposal{Type: cancelled, Message: "m"}); a.Status != prefect.StatusAccept || a.State.Message != "m" {
			t.Errorf("CANCELLED: %+v", a)
		}
	})
	p.set(t, claimed.ID, prefect.Proposal{Type: scheduled})
	p.rule(t, unclaimable, func(t *testing.T) {
		a := p.set(t, claimed.ID, prefect.Proposal{Type: pending})
		if diff := cmp.Diff(expected[outcome](p, unclaimable), outcome{a.Status, a.State.Type, a.State.Name}); diff != "" {
			t.Error(diff)
		}
	})
	p.rule(t, "it may be CANCELLED all the same", func(t *testing.T) {
		if a := p.set(t, claimed.ID, prefect.Proposal{Type: cancelled}); a.Status != prefect.StatusAccept {
			t.Errorf("CANCELLED: %+v", a)
		}
	})
}

// jobVariables holds that they are checked against the pool's schema, and fixed once claimed.
func jobVariables(t *testing.T, p *prefectServer) {
	template, err := p.WorkerMetadataTemplate(t.Context(), "cloud-run-v2")
	p.rule(t, "the server has the base job template of cloud-run-v2", func(t *testing.T) {
		if configuration, _ := template["job_configuration"].(map[string]any); err != nil || configuration["job_body"] == nil {
			t.Errorf("the template has no job body, error %v", err)
		}
	})
	name := "pool " + uuid.NewString()
	p.rule(t, "a work pool that exists already may be created again", func(t *testing.T) {
		for range 2 {
			if err := p.CreateWorkPool(t.Context(), name, "cloud-run-v2", template); err != nil {
				t.Error(err)
			}
		}
	})
	d := p.deploy(t, prefect.NewDeployment{WorkPool: name})
	p.rule(t, "job variables that the pool's schema forbids are refused at the creation", func(t *testing.T) {
		_, _, err := p.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{JobVariables: map[string]any{"timeout": "soon"}})
		wantFault(t, err, flowrun.Permanent)
	})
	var f prefect.FlowRun
	p.rule(t, "job variables that the pool's schema does not know are taken", func(t *testing.T) {
		f = p.create(t, d.ID, prefect.NewFlowRun{JobVariables: map[string]any{"timeout": 60, "unknown": true}})
	})
	change := map[string]any{"job_variables": map[string]any{"timeout": 90}}
	p.rule(t, "job variables may be changed while the flow run is SCHEDULED", func(t *testing.T) {
		if err := p.UpdateFlowRun(t.Context(), f.ID, change); err != nil {
			t.Error(err)
		}
	})
	p.rule(t, "job variables may not be changed once the flow run is PENDING", func(t *testing.T) {
		p.set(t, f.ID, prefect.Proposal{Type: pending})
		wantFault(t, p.UpdateFlowRun(t.Context(), f.ID, change), flowrun.Permanent)
	})
}

// missingObjects holds that what is not there is told from what cannot be reached.
func missingObjects(t *testing.T, p *prefectServer) {
	id := uuid.NewString()
	deleted := p.create(t, p.deploy(t, prefect.NewDeployment{}).ID, prefect.NewFlowRun{})
	p.admin(t, http.MethodDelete, "/flow_runs/"+deleted.ID, nil, nil)
	for name, call := range map[string]func() error{
		"a flow run": func() error { _, err := p.FlowRun(t.Context(), deleted.ID); return err },
		"a proposal's flow run": func() error {
			_, err := p.SetState(t.Context(), deleted.ID, prefect.Proposal{Type: pending})
			return err
		},
		"a changed flow run":          func() error { return p.UpdateFlowRun(t.Context(), deleted.ID, map[string]any{"name": "n"}) },
		"a deployment":                func() error { _, err := p.Deployment(t.Context(), id); return err },
		"a deployment by name":        func() error { _, err := p.DeploymentByName(t.Context(), "f/d"); return err },
		"a new flow run's deployment": func() error { _, _, err := p.CreateFlowRun(t.Context(), id, prefect.NewFlowRun{}); return err },
		"a flow":                      func() error { _, err := p.Flow(t.Context(), id); return err },
		"a work pool":                 func() error { _, err := p.WorkPool(t.Context(), "no pool"); return err },
		"a pool whose flow runs are asked for": func() error {
			_, err := p.ScheduledFlowRuns(t.Context(), "no pool", time.Now(), 1)
			return err
		},
		"a block document":       func() error { _, err := p.BlockDocument(t.Context(), "secret", "none"); return err },
		"a block document by id": func() error { _, err := p.BlockDocumentByID(t.Context(), id); return err },
		"an automation":          func() error { return p.SetAutomationEnabled(t.Context(), id, true) },
	} {
		if name == "an automation" && p.noEvents {
			continue // the server has none at all
		}
		p.rule(t, name+" that does not exist is NotFound", func(t *testing.T) { wantFault(t, call(), flowrun.NotFound) })
	}
	p.rule(t, "a variable that does not exist is told from one that is null", func(t *testing.T) {
		if v, found, err := p.Variable(t.Context(), "none"); v != nil || found || err != nil {
			t.Errorf("%v, found %t, error %v", v, found, err)
		}
	})
}

// filter holds that flow runs are found by pool, state and time, in order.
func filter(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{})
	now := time.Now()
	soon, late := now.Add(time.Minute), now.Add(time.Hour)
	p.create(t, d.ID, prefect.NewFlowRun{Name: "late", ScheduledTime: &late})
	soonest := p.create(t, d.ID, prefect.NewFlowRun{Name: "soon", ScheduledTime: &soon})
	claimed := p.create(t, d.ID, prefect.NewFlowRun{Name: "claimed"})
	p.set(t, claimed.ID, prefect.Proposal{Type: pending})
	p.create(t, p.deploy(t, prefect.NewDeployment{}).ID, prefect.NewFlowRun{Name: "of another pool"})
	pools := []string{d.WorkPoolName}
	for name, tt := range map[string]struct {
		filter prefect.Filter
		want   []string
	}{
		"a list by state is in the order of times":                      {prefect.Filter{WorkPools: pools, StateTypes: []flowrun.StateType{scheduled}}, []string{"soon", "late"}},
		"a list by several states holds those of each":                  {prefect.Filter{WorkPools: pools, StateTypes: []flowrun.StateType{pending, running}}, []string{"claimed"}},
		"a list of what is scheduled before a time":                     {prefect.Filter{WorkPools: pools, ScheduledBefore: now.Add(10 * time.Minute)}, []string{"soon"}},
		"a list of what is scheduled from a time on, which is included": {prefect.Filter{WorkPools: pools, ScheduledFrom: *soonest.NextScheduledStartTime}, []string{"soon", "late"}},
		"a list of what is scheduled up to a time, which is included":   {prefect.Filter{WorkPools: pools, ScheduledBefore: *soonest.NextScheduledStartTime}, []string{"soon"}},
		"a page of a list": {prefect.Filter{WorkPools: pools, StateTypes: []flowrun.StateType{scheduled}, Limit: 1, Offset: 1}, []string{"late"}},
		"a list by ids":    {prefect.Filter{IDs: []string{soonest.ID}}, []string{"soon"}},
		"a list by a pool that there is not is empty": {prefect.Filter{WorkPools: []string{"no pool"}}, nil},
		"a list by deployment, oldest first":          {prefect.Filter{DeploymentIDs: []string{d.ID}, Sort: prefect.OldestFirst}, []string{"claimed", "soon", "late"}},
		"a list by a state that none has is empty":    {prefect.Filter{WorkPools: pools, StateTypes: []flowrun.StateType{crashed}}, nil},
	} {
		p.rule(t, name, func(t *testing.T) {
			found, err := p.FlowRuns(t.Context(), tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range found {
				got = append(got, f.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("flow runs (-want +got):\n%s", diff)
			}
		})
	}
}

// records holds that what is written about a flow run can be read: logs, artifacts, variables.
func records(t *testing.T, p *prefectServer) {
	f := p.create(t, p.deploy(t, prefect.NewDeployment{}).ID, prefect.NewFlowRun{})
	p.rule(t, "a line written to a flow run's log can be read", func(t *testing.T) {
		if err := p.Log(t.Context(), f.ID, prefect.LogLine{Time: time.Now(), Level: 40, Message: "boom"}); err != nil {
			t.Error(err)
		}
		eventually(t, "the log line does not show", func() bool {
			lines, err := p.Logs(t.Context(), f.ID)
			return err == nil && len(lines) == 1 && lines[0].Message == "boom" && lines[0].Level == 40
		})
	})
	p.rule(t, "a flow run's artifacts can be read, oldest first", func(t *testing.T) {
		for _, key := range []string{"first", "second"} {
			if err := p.CreateArtifact(t.Context(), f.ID, prefect.Artifact{Key: key, Type: "markdown", Data: "# " + key}); err != nil {
				t.Error(err)
			}
		}
		artifacts, err := p.Artifacts(t.Context(), f.ID)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range artifacts {
			got = append(got, a.Key, a.Type, a.Data.(string))
		}
		if diff := cmp.Diff([]string{"first", "markdown", "# first", "second", "markdown", "# second"}, got); diff != "" {
			t.Errorf("artifacts (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "a variable can be read by its name", func(t *testing.T) {
		name := "v_" + uuid.NewString()[:8]
		p.done(t, http.MethodPost, "/variables/", map[string]any{"name": name, "value": "w"})
		if v, found, err := p.Variable(t.Context(), name); string(v) != `"w"` || !found || err != nil {
			t.Errorf("variable: %s, found %t, error %v", v, found, err)
		}
	})
}

// decoded returns a JSON object's members.
func decoded(t *testing.T, object json.RawMessage) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(object, &m); err != nil {
		t.Fatal(err)
	}
	return m
}
