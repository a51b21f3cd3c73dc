package simulate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// directory says what ids and names are of, to any goroutine: labels of flow runs, which are
// the same in every run, in place of ids.
type directory struct {
	mu       sync.RWMutex
	flowRuns map[string]string // labels by id
	jobs     map[string]*job   // by job id
}

// job is what the simulator knows of a job of ours.
type job struct {
	id, flowRun  string // flowRun is a label
	launch       flowrun.LaunchID
	ready, start time.Duration
	noEntry      bool
}

func newDirectory() *directory {
	return &directory{flowRuns: map[string]string{}, jobs: map[string]*job{}}
}

// flowRun returns the label of the flow run with the id; empty where there is none.
func (d *directory) flowRun(id string) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.flowRuns[id]
}

func (d *directory) name(id, label string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flowRuns[id] = label
}

// job returns the job with the id, or nil.
func (d *directory) job(id string) *job {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.jobs[id]
}

func (d *directory) add(j *job) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.jobs[j.id] = j
}

// jobsOf returns the ids of the jobs that a launch made, in order.
func (d *directory) jobsOf(launch flowrun.LaunchID) []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var ids []string
	for _, j := range slices.SortedFunc(maps.Values(d.jobs), func(a, b *job) int { return cmp.Compare(a.id, b.id) }) {
		if j.launch == launch {
			ids = append(ids, j.id)
		}
	}
	return ids
}

// nth names what is said again and again.
func (w *world) nth(said string) string {
	w.saidMu.Lock()
	defer w.saidMu.Unlock()
	n := w.said[said]
	w.said[said]++
	return fmt.Sprintf("%s #%d", said, n)
}

// label replaces the ids in a text by what is the same in every run.
func (d *directory) label(s string) string {
	const length = 36
	if len(s) < length {
		return s
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	var b strings.Builder
	for i := 0; i < len(s); {
		if i+length <= len(s) && s[i+8] == '-' && s[i+13] == '-' && s[i+18] == '-' && s[i+23] == '-' {
			if name, ok := d.flowRuns[s[i:i+length]]; ok {
				b.WriteString(name)
			} else {
				b.WriteByte('*')
			}
			i += length
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

// flowRunIn is the label of the flow run that a path is of.
func (d *directory) flowRunIn(path string) string {
	if i := strings.Index(path, "/flow_runs/"); i >= 0 && len(path) >= i+11+36 {
		return d.flowRun(path[i+11 : i+11+36])
	}
	return ""
}
