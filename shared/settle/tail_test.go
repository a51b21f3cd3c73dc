package settle_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/containerlog"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/settle"
)

// lines are a container's last ones, and what was written to the log of its flow run.
type lines struct {
	t     *testing.T
	at    time.Time
	reads []string
	fail  error
	state func() flowrun.StateType // of the flow run
	seen  []flowrun.StateType      // when the lines were read
	busy  func() bool              // whether its lease is held
	log   map[string][]prefect.LogLine
}

func (l *lines) Last(ctx context.Context, project, job, execution string, _ time.Time) ([]containerlog.Line, error) {
	l.reads = append(l.reads, project+" "+job+" "+execution)
	l.seen = append(l.seen, l.state())
	if l.busy() {
		l.t.Error("the flow run's lease is held while lines are read")
	}
	if _, ok := ctx.Deadline(); !ok {
		l.t.Error("the read has no deadline")
	}
	return []containerlog.Line{{Time: l.at, Text: "boom"}, {Time: l.at, Text: "really", Severity: containerlog.Error}}, l.fail
}

func (l *lines) Log(ctx context.Context, id string, lines ...prefect.LogLine) error {
	if at, ok := ctx.Deadline(); !ok || time.Until(at) < enough {
		l.t.Errorf("the lines are written until %s, which leaves less than %s for a server that is busy", at, enough)
	}
	l.log[id] = append(l.log[id], lines...)
	return nil
}

// enough is what the client takes to ask a busy server six times, without the last answer:
// TestRepetition_Prefect20510 of package prefect.
const enough = 20 * time.Second

// newTailRig is a rig whose settler copies lines, and a flow run.
func newTailRig(t *testing.T, change ...func(*settle.Config)) (*rig, *lines, prefect.FlowRun) {
	t.Helper()
	l := &lines{t: t, log: map[string][]prefect.LogLine{}}
	r := newRig(t, append(change, func(c *settle.Config) { c.Lines, c.Logs = l, l })...)
	fr := r.flowRun()
	l.at, l.state = r.now(), func() flowrun.StateType { return r.state(fr.ID) }
	l.busy = func() bool { return r.record(fr.ID).LeaseHolder != "" }
	return r, l, fr
}

// TestLastLinesAreCopiedWhereALaunchEndedBadly holds which ends are worth a read, that Prefect
// was told the end before, and that it happens once.
func TestLastLinesAreCopiedWhereALaunchEndedBadly(t *testing.T) {
	for rule, tt := range map[string]struct {
		was  flowrun.StateType
		kind flowrun.OutcomeKind
		then flowrun.StateType // where lines are copied
	}{
		"an exit code":                            {flowrun.StateRunning, flowrun.ExitCode, flowrun.StateCrashed},
		"a signal":                                {flowrun.StateRunning, flowrun.Signal, flowrun.StateCrashed},
		"it is tried again":                       {flowrun.StatePending, flowrun.Platform, flowrun.StateScheduled},
		"gone, but its lines are not":             {flowrun.StateRunning, flowrun.Deleted, flowrun.StateCrashed},
		"without a report":                        {flowrun.StateRunning, flowrun.Succeeded, flowrun.StateCrashed},
		"the engine told the crash":               {flowrun.StateCrashed, flowrun.Signal, flowrun.StateCrashed},
		"it succeeded: none":                      {flowrun.StateCompleted, flowrun.Succeeded, ""},
		"the flow told its failure: none":         {flowrun.StateFailed, flowrun.Succeeded, ""},
		"cancelled: none":                         {flowrun.StateCancelling, flowrun.Cancelled, ""},
		"it never ran: none, by an image":         {flowrun.StatePending, flowrun.Image, ""},
		"it never ran: none, by a secret":         {flowrun.StatePending, flowrun.Secret, ""},
		"it never ran: none, by lack of an admin": {flowrun.StatePending, flowrun.Permission, ""},
	} {
		t.Run(rule, func(t *testing.T) {
			r, l, fr := newTailRig(t, budgets)
			launch := r.launch(fr.ID)
			r.bring(fr.ID, tt.was)
			at := r.now()
			r.later(grace)
			for _, down := range []bool{true, false, false} { // Prefect at first, and it is delivered once too often
				r.down.Store(down)
				if err := r.endedAt(fr.ID, launch, tt.kind, at); !down {
					r.must(err)
				}
				r.later(callTimeout)
			}
			if tt.then == "" {
				if len(l.reads) > 0 {
					t.Errorf("read %q", l.reads)
				}
				return
			}
			x := executionOf(launch)
			if diff := cmp.Diff([]string{project + " " + x.Job + " " + x.Execution}, l.reads); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]flowrun.StateType{tt.then}, l.seen); diff != "" {
				t.Error("Prefect's state at the read:", diff)
			}
			want := []prefect.LogLine{
				{Time: l.at, Level: 20, Message: "The last 2 lines of the container of execution " + x.Execution + "; all of them: " + x.LogsURL()},
				{Time: l.at, Level: 20, Message: "boom"}, {Time: l.at, Level: 40, Message: "really"},
			}
			if diff := cmp.Diff(want, l.log[fr.ID]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestLastLinesAreNeverInTheWay holds that a flow run is settled without them.
func TestLastLinesAreNeverInTheWay(t *testing.T) {
	r, l, fr := newTailRig(t)
	l.fail = errors.New("the reads are used up")
	launch := r.launch(fr.ID)
	r.bring(fr.ID, flowrun.StateRunning)
	r.must(r.ended(fr.ID, launch, flowrun.ExitCode))
	if got := r.state(fr.ID); got != flowrun.StateCrashed || len(l.log) > 0 {
		t.Errorf("%s, with %v", got, l.log)
	}
	if got := r.messages.take(); len(got) != 1 || got[0].Freed != "etl" {
		t.Errorf("sent %v", got)
	}
	if !strings.Contains(r.log.String(), "they are in Cloud Logging") || !strings.Contains(r.log.String(), "the reads are used up") {
		t.Errorf("logged %s", &r.log)
	}
}
