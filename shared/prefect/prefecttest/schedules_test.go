package prefecttest_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// schedules holds that schedules lay flow runs ahead, and that pausing takes them away.
func schedules(t *testing.T, p *prefectServer) {
	d := p.deploy(t, prefect.NewDeployment{
		Paused:    true,
		Schedules: []prefect.Schedule{{Interval: 30 * time.Minute}, {Cron: "0 3 * * *", Timezone: "Europe/Berlin"}, {Cron: "0 4 * * *", Inactive: true}},
	})
	ahead := func() []prefect.FlowRun {
		f, err := p.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{d.ID}, StateTypes: []flowrun.StateType{scheduled}})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	p.rule(t, "a paused deployment's schedules make no flow runs", func(t *testing.T) {
		if got := ahead(); len(got) != 0 {
			t.Errorf("%d flow runs of a paused deployment", len(got))
		}
	})
	if err := p.SetDeploymentPaused(t.Context(), d.ID, false); err != nil {
		t.Fatal(err)
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	p.rule(t, "a schedule's flow runs lie ahead, at its times in its time zone, and are marked as its", func(t *testing.T) {
		eventually(t, "there are none", func() bool {
			atThree, others := map[time.Time]bool{}, map[time.Time]bool{}
			for _, f := range ahead() {
				if !f.AutoScheduled {
					t.Fatal("a flow run of a schedule is not marked so")
				}
				if at := f.NextScheduledStartTime.In(berlin); at.Hour() == 3 && at.Minute() == 0 && at.Second() == 0 && at.Nanosecond() == 0 {
					atThree[at] = true
				} else {
					others[at] = true
				}
			}
			return len(atThree) >= 3 && len(others) >= 3
		})
	})
	if err := p.SetDeploymentPaused(t.Context(), d.ID, true); err != nil {
		t.Fatal(err)
	}
	p.rule(t, "pausing takes a schedule's flow runs away", func(t *testing.T) {
		eventually(t, "it leaves some", func() bool { return len(ahead()) == 0 })
	})
	moved(t, p)
}

// moved holds what `pushpool migrate` builds on: a deployment that is moved to another work pool
// leaves what was asked for in the old one, what its schedule lays ahead is made anew in the new
// one under the same idempotency keys, and one that somebody else made under its key stays the only one.
func moved(t *testing.T, p *prefectServer) {
	from, to := p.newPool(t), p.newPool(t)
	d := p.deploy(t, prefect.NewDeployment{WorkPool: from, Schedules: []prefect.Schedule{{Interval: 20 * time.Minute}}})
	ahead := func(pool string) map[string]prefect.FlowRun {
		found, err := p.FlowRuns(t.Context(), prefect.Filter{DeploymentIDs: []string{d.ID}, WorkPools: []string{pool}, StateTypes: []flowrun.StateType{scheduled}})
		if err != nil {
			t.Fatal(err)
		}
		byKey := map[string]prefect.FlowRun{}
		for _, f := range found {
			if _, twice := byKey[f.IdempotencyKey]; twice {
				t.Errorf("there are two flow runs of key %q", f.IdempotencyKey)
			}
			byKey[f.IdempotencyKey] = f
		}
		return byKey
	}
	eventually(t, "the schedule makes no flow runs", func() bool { return len(ahead(from)) >= 3 })
	before := ahead(from)
	later := time.Now().Add(time.Hour)
	p.create(t, d.ID, prefect.NewFlowRun{ScheduledTime: &later, IdempotencyKey: "asked"})
	if err := p.CreateWorkQueue(t.Context(), to, prefect.WorkQueue{Name: "urgent", Priority: 1}); err != nil {
		t.Fatal(err)
	}
	if err := p.MoveDeployment(t.Context(), d.ID, to, "urgent"); err != nil {
		t.Fatal(err)
	}
	p.rule(t, "a deployment that is moved leaves in its old pool what was asked for, and nothing that a schedule made", func(t *testing.T) {
		if left := ahead(from); len(left) != 1 || left["asked"].ID == "" {
			t.Errorf("in the old work pool there are %d flow runs, of keys %v", len(left), slices.Collect(maps.Keys(left)))
		}
	})
	var key string
	for key = range before {
		break
	}
	due := before[key].Due()
	ours, _, err := p.CreateFlowRun(t.Context(), d.ID, prefect.NewFlowRun{IdempotencyKey: key, ScheduledTime: &due})
	if err != nil {
		t.Fatal(err)
	}
	p.rule(t, "a moved deployment's schedule makes its flow runs anew under the same keys, but for one that somebody else made", func(t *testing.T) {
		eventually(t, "the schedule makes no flow runs in the new work pool", func() bool { return len(ahead(to)) >= len(before) })
		after := ahead(to)
		for k, f := range before {
			switch a := after[k]; {
			case a.ID == "" || a.ID == f.ID || a.WorkQueueName != "urgent" || !a.Due().Equal(f.Due()):
				t.Errorf("key %q: flow run %s, queue %q, due %s; it was %s, due %s", k, a.ID, a.WorkQueueName, a.Due(), f.ID, f.Due())
			case k == key && a.ID != ours.ID:
				t.Errorf("key %q: flow run %s, and %s was made", k, a.ID, ours.ID)
			}
		}
	})
	p.rule(t, "a moved deployment is listed in its new pool only", func(t *testing.T) {
		listed, err := p.Deployments(t.Context(), to)
		if err != nil || len(listed) != 1 || listed[0].ID != d.ID || listed[0].WorkQueueName != "urgent" {
			t.Errorf("deployments of the new work pool: %+v, error %v", listed, err)
		}
		if listed, err = p.Deployments(t.Context(), from); err != nil || len(listed) != 0 {
			t.Errorf("deployments of the old work pool: %+v, error %v", listed, err)
		}
	})
}
