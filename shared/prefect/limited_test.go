package prefect_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/prefect"
)

// TestSlotsAreTakenByPriority holds that limits and pauses of pool and queues leave out whom
// they have no slot for.
func TestSlotsAreTakenByPriority(t *testing.T) {
	const queues = `[{"id":"q2","priority":2},{"id":"q1","priority":1,"concurrency_limit":2,"active_slots":1}]`
	for rule, tt := range map[string]struct {
		pool, queues string
		want         []string
	}{
		"no limit of the pool":      {`{}`, queues, []string{"b", "a", "c"}},
		"two slots of the pool":     {`{"concurrency_limit":5,"active_slots":3}`, queues, []string{"b", "a"}},
		"more taken than there are": {`{"concurrency_limit":1,"active_slots":3}`, queues, nil},
		"a paused pool":             {`{"is_paused":true}`, queues, nil},
		"a paused queue":            {`{}`, `[{"id":"q2","priority":2,"is_paused":true},{"id":"q1","priority":1}]`, []string{"b", "d"}},
	} {
		t.Run(rule, func(t *testing.T) {
			s := &script{answers: []answer{{status: 200, body: tt.pool, queues: tt.queues}}}
			slots, err := newClient(t, s).FreeSlots(t.Context(), "etl")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, fr := range slots.Take([]prefect.FlowRun{
				{ID: "a", WorkQueueID: "q2"}, {ID: "b", WorkQueueID: "q1"}, {ID: "c", WorkQueueID: "q2"}, {ID: "d", WorkQueueID: "q1"},
			}) {
				got = append(got, fr.ID)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
