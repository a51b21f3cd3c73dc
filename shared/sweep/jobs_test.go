package sweep

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
)

func TestWhichJobsAreDeleted_Prefect16007(t *testing.T) {
	const day = 24 * time.Hour
	settled := flowrun.Launch{Status: flowrun.StatusFinished, FinishedAt: time.Now(), ReportedAt: time.Now()}
	job := func(change func(j *cloudrun.Job)) func(*world) {
		return func(w *world) {
			j := w.jobs["a"]
			change(&j)
			w.jobs["a"] = j
		}
	}
	for rule, tt := range map[string]struct {
		ended   time.Duration // ago
		ledger  *flowrun.Launch
		change  func(*world)
		deletes bool
	}{
		"past its time":                       {day, &settled, nil, true},
		"not before it":                       {day - time.Second, &settled, nil, false},
		"not while its execution is alive":    {0, &settled, nil, false},
		"not while its launch is under way":   {day, &flowrun.Launch{Status: flowrun.StatusLaunched}, nil, false},
		"not while its verdict is untold":     {day, &flowrun.Launch{Status: flowrun.StatusFinished, FinishedAt: time.Now()}, nil, false},
		"not where somebody asked to keep it": {day, &settled, job(func(j *cloudrun.Job) { j.Keep = true }), false},
		"not another installation's":          {day, &settled, job(func(j *cloudrun.Job) { j.Labels[cloudrun.LabelInstall] = "other" }), false},
		"not a slot, which executes the flow runs of others, too": {day, &settled, func(w *world) {
			j := w.jobs["a"]
			j.Name.Job = "pp-slot-pushpool-001"
			w.jobs["a"] = j
		}, false},
		"not a user's own":                                        {day, &settled, job(func(j *cloudrun.Job) { j.Labels = nil }), false},
		"one that could never start":                              {0, &settled, job(func(j *cloudrun.Job) { j.Failure, j.CreateTime = &flowrun.Outcome{}, j.CreateTime.Add(-day) }), true},
		"forgotten by the ledger, its flow run gone":              {day, nil, nil, true},
		"forgotten, its flow run over":                            {day, nil, func(w *world) { w.add("a", "etl", flowrun.StateCompleted, 0) }, true},
		"not forgotten while its flow run is to be launched anew": {day, nil, func(w *world) { w.add("a", "etl", flowrun.StateScheduled, time.Hour) }, false},
		"an earlier launch of a flow run under way": {day, nil, func(w *world) {
			w.launched("a", "etl", flowrun.StateRunning)
			w.job("a", time.Now().Add(-day))
			_, _ = w.Update(t.Context(), "a", func(r flowrun.Record) (flowrun.Record, error) {
				earlier := settled
				earlier.LaunchID = "launch of a"
				r.LaunchID, r.Previous = "the next", []flowrun.Launch{earlier}
				return r, nil
			})
			w.apart["a"] = true
		}, true},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				s := w.sweeper(t, "etl")
				if tt.ledger != nil {
					w.put("a", *tt.ledger)
				}
				ended := time.Time{}
				if tt.ended > 0 {
					ended = time.Now().Add(-tt.ended)
				}
				w.job("a", ended)
				if tt.change != nil {
					tt.change(w)
				}
				report := swept(t, s)
				if (report[DeleteJob] == 1) != tt.deletes || report[DeleteJob] > 1 {
					t.Errorf("did %v, deleted %t, want %t", w.did(), report[DeleteJob] > 0, tt.deletes)
				}
			})
		})
	}
}

// Near the quota of jobs, what has ended is deleted at once, the oldest first, in the times that
// the write quota leaves. What it does not leave time for, the next sweep does.
func TestNearTheQuotaOfJobsTheOldestAreDeletedFirst_Prefect16007(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.sweeper(t, "etl")
		for i := range 600 {
			id := fmt.Sprintf("%03d", i)
			w.put(id, flowrun.Launch{Status: flowrun.StatusFinished, FinishedAt: time.Now(), ReportedAt: time.Now()})
			w.job(id, time.Now())
			time.Sleep(time.Millisecond)
		}
		var deleted []string
		for range 2 {
			swept(t, s)
			did := w.did()
			deleted = append(deleted, did...)
			if n := len(did); n < 40 || n > 60 {
				t.Errorf("%d jobs deleted, want as many as there were times", n)
			}
			for _, d := range did {
				delete(w.jobs, d[len("delete pp-"):])
			}
			s.writes = alwaysNear{w}
		}
		var want []string
		for i := range deleted {
			want = append(want, fmt.Sprintf("delete pp-%03d", i))
		}
		if diff := cmp.Diff(want, deleted, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("deleted (-want +got):\n%s", diff)
		}
	})
	t.Run("out of quota it goes on in the next sweep", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			s := w.sweeper(t, "etl")
			for _, id := range []string{"a", "b"} {
				w.put(id, flowrun.Launch{Status: flowrun.StatusFinished, FinishedAt: time.Now(), ReportedAt: time.Now()})
				w.job(id, time.Now().Add(-25*time.Hour))
				time.Sleep(time.Millisecond)
			}
			w.looking["pp-a"] = &flowrun.Error{Fault: flowrun.Refused}
			if report := swept(t, s); report[DeleteJob] != 0 {
				t.Errorf("did %v", report)
			}
			w.looking["pp-a"] = nil
			if report := swept(t, s); report[DeleteJob] != 2 {
				t.Errorf("did %v, want both deleted", report)
			}
		})
	})
}

type alwaysNear struct{ *world }

func (alwaysNear) NearCap(int) bool { return true }
