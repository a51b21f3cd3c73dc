package sweep

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

const (
	// maxStrays bounds the executions that one sweep looks at because the ledger does not hold them.
	maxStrays = 20
	// defaultDeletes is Config.MaxDeletes where that is zero: of Cloud Run's default quota.
	defaultDeletes = 90
)

// sight is what a sweep has seen of Cloud Run and of the ledger.
type sight struct {
	jobs map[cloudrun.JobName]cloudrun.Job
	// open holds what is open in the ledger, by flow run; nil where that could not be read.
	open   map[string]*flowrun.Record
	failed []error

	mu sync.Mutex
	// listed holds the flow runs under way in the pools that are served. It is nil where not
	// all of them could be listed.
	listed map[string]bool
}

// survey lists all jobs and then reads the ledger: what launched a job is in the ledger before
// the job is there.
func (s *Sweeper) survey(ctx context.Context) *sight {
	seen := &sight{jobs: map[cloudrun.JobName]cloudrun.Job{}, listed: map[string]bool{}}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, project := range s.cfg.Projects {
		for _, region := range s.cfg.Regions {
			group.Go(func() error {
				for job, err := range s.cloudRun.Jobs(ctx, project, region) {
					seen.mu.Lock()
					if err != nil {
						seen.failed = append(seen.failed, err)
					} else {
						seen.jobs[job.Name] = job
					}
					seen.mu.Unlock()
				}
				return nil
			})
		}
	}
	_ = group.Wait()
	records, err := s.ledger.Open(ctx)
	if err != nil {
		seen.failed = append(seen.failed, err)
		return seen
	}
	seen.open = make(map[string]*flowrun.Record, len(records))
	for i := range records {
		seen.open[records[i].FlowRunID] = &records[i]
	}
	return seen
}

func (n *sight) list(flowRuns []prefect.FlowRun) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, fr := range flowRuns {
		if n.listed != nil {
			n.listed[fr.ID] = true
		}
	}
}

// blind notes that the flow runs of a pool could not be listed.
func (n *sight) blind() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listed = nil
}

// job returns the job that was listed for the record's launch.
func (n *sight) job(rec flowrun.Record) (cloudrun.Job, bool) {
	name, err := cloudrun.ParseExecutionName(rec.ExecutionName)
	if err != nil {
		return cloudrun.Job{}, false
	}
	job, ok := n.jobs[name.JobName()]
	return job, ok && job.Labels[cloudrun.LabelLaunch] == string(rec.LaunchID)
}

// alive reports whether the listing shows the record's execution alive, or about to be started.
func (n *sight) alive(rec flowrun.Record) bool {
	job, ok := n.job(rec)
	return ok && (job.Alive() && job.Latest.Execution == path.Base(rec.ExecutionName) || job.Reconciling)
}

// endedAfter reports whether the listing shows that the record's execution ended after t.
func (n *sight) endedAfter(rec flowrun.Record, t time.Time) bool {
	job, ok := n.job(rec)
	return ok && job.Latest.Execution == path.Base(rec.ExecutionName) && job.Latest.Completed.After(t)
}

// word says what the listing shows of the record's execution.
func (n *sight) word(rec flowrun.Record) string {
	job, ok := n.job(rec)
	switch {
	case !ok:
		return "no such job listed"
	case job.Failure != nil:
		return "job that cannot start"
	case job.Reconciling:
		return "job not ready"
	case n.alive(rec):
		return "execution alive"
	case job.Latest.Execution == path.Base(rec.ExecutionName):
		return "execution ended"
	}
	return "execution not listed"
}

// ours returns the jobs of this installation, the oldest first.
func (s *Sweeper) ours(seen *sight) []cloudrun.Job {
	jobs := slices.Collect(maps.Values(seen.jobs))
	jobs = slices.DeleteFunc(jobs, func(j cloudrun.Job) bool {
		return j.Labels[cloudrun.LabelInstall] != s.cfg.Name || j.Labels[cloudrun.LabelFlowRun] == "" || j.Labels[cloudrun.LabelLaunch] == ""
	})
	slices.SortFunc(jobs, byAge)
	return jobs
}

// byAge orders the oldest first.
func byAge(a, b cloudrun.Job) int {
	return cmp.Or(a.CreateTime.Compare(b.CreateTime), cmp.Compare(a.Name.String(), b.Name.String()))
}

// strays has executions settled that are alive although the ledger does not hold them for the
// current launch of their flow run. Those of a flow run under way, of which nothing is open in
// the ledger, are settled with it.
func (s *Sweeper) strays(ctx context.Context, seen *sight, count int, w *work) {
	if seen.listed == nil {
		return
	}
	var strays []cloudrun.Job
	for _, job := range s.ours(seen) {
		id := job.Labels[cloudrun.LabelFlowRun]
		rec, open := seen.open[id]
		if job.Alive() && (open && job.Labels[cloudrun.LabelLaunch] != string(rec.LaunchID) || !open && !seen.listed[id]) {
			strays = append(strays, job)
		}
	}
	for i, job := range turn(strays, maxStrays, count) {
		w.count(Strays)
		w.start(func() error {
			id := job.Labels[cloudrun.LabelFlowRun]
			name := cloudrun.ExecutionName{Project: job.Name.Project, Region: job.Name.Region, Job: job.Name.Job, Execution: job.Latest.Execution}
			ctx := about(ctx, id, "execution "+job.Latest.Execution+" is alive and nobody's")
			return w.looked(id, s.settler.Stray(ctx, fmt.Sprintf("%s/stray%d", w.holder, i), id, name))
		})
	}
}

// cleanUp deletes jobs whose execution ended long enough ago, or at all where there are nearly
// as many as the quota allows, the oldest first: no job of anybody else, none that is to be
// kept, none whose launch has not been settled. It takes the times that the write quota leaves.
func (s *Sweeper) cleanUp(ctx context.Context, seen *sight, w *work) error {
	total := map[string]int{} // by region of a project, jobs of anybody
	for name := range seen.jobs {
		total[regionOf(name)]++
	}
	old := map[string][]cloudrun.Job{}
	for _, job := range s.ours(seen) {
		region := regionOf(job.Name)
		rec, open := seen.open[job.Labels[cloudrun.LabelFlowRun]]
		since, ended := job.Ended()
		switch {
		case !ended || job.Keep || job.Name.Slot() || len(old[region]) == cmp.Or(s.cfg.MaxDeletes, defaultDeletes):
		case open && string(rec.LaunchID) == job.Labels[cloudrun.LabelLaunch]:
		case s.writes.NearCap(total[region]) || !s.cfg.Now().Before(since.Add(s.cfg.KeepJobsFor)):
			old[region] = append(old[region], job)
		}
	}
	for _, region := range slices.Sorted(maps.Keys(total)) {
		w.start(func() error {
			if err := s.writes.Counted(ctx, region, total[region]); err != nil {
				return err
			}
			settled, err := s.settled(ctx, old[region])
			if err != nil || len(settled) == 0 {
				return err
			}
			return s.delete(ctx, region, settled)
		})
	}
	return nil
}

// regionOf is where a quota counts.
func regionOf(n cloudrun.JobName) string { return n.Project + "/" + n.Region }

// delete deletes the jobs of a region, each at the time that the write quota grants it, until
// no time or quota is left. The next sweep goes on.
func (s *Sweeper) delete(ctx context.Context, region string, jobs []cloudrun.Job) error {
	until := s.cfg.Now().Add(Timeout)
	if deadline, ok := ctx.Deadline(); ok {
		until = s.cfg.Now().Add(time.Until(deadline))
	}
	times, err := s.writes.Deletions(ctx, region, len(jobs), until.Add(-cloudrun.CallTimeout/2))
	if err != nil {
		return err
	}
	for i, at := range times {
		select {
		case <-time.After(at.Sub(s.cfg.Now())):
		case <-ctx.Done():
			return nil
		}
		since, _ := jobs[i].Ended()
		err := s.cloudRun.DeleteJob(about(ctx, jobs[i].Labels[cloudrun.LabelFlowRun], "job ended "+since.UTC().Format(time.RFC3339)), jobs[i].Name)
		if err != nil && flowrun.FaultOf(err) == flowrun.Refused {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settled returns those of the jobs whose launch is over and reported, by the ledger or, where
// that has forgotten it, because its flow run has ended or is gone.
func (s *Sweeper) settled(ctx context.Context, jobs []cloudrun.Job) ([]cloudrun.Job, error) {
	var mu sync.Mutex
	var settled []cloudrun.Job
	forgotten := map[string][]cloudrun.Job{} // by flow run
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, job := range jobs {
		group.Go(func() error {
			id, launch := job.Labels[cloudrun.LabelFlowRun], flowrun.LaunchID(job.Labels[cloudrun.LabelLaunch])
			rec, err := s.ledger.Get(ctx, id)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			launches := append([]flowrun.Launch{rec.Launch}, rec.Previous...)
			i := slices.IndexFunc(launches, func(l flowrun.Launch) bool { return l.LaunchID == launch })
			switch {
			case i < 0:
				forgotten[id] = append(forgotten[id], job)
			case !launches[i].Open():
				settled = append(settled, job)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(forgotten)), prefect.MaxPage) {
		flowRuns, err := s.prefect.FlowRuns(ctx, prefect.Filter{IDs: ids})
		if err != nil {
			return nil, err
		}
		for _, fr := range flowRuns {
			if !fr.StateType.Terminal() {
				delete(forgotten, fr.ID)
			}
		}
	}
	for id := range forgotten {
		settled = append(settled, forgotten[id]...)
	}
	slices.SortFunc(settled, byAge)
	return settled, nil
}
