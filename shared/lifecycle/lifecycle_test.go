package lifecycle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/lifecycle"
	"github.com/pushpool/pushpool/shared/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	flowRunID = "ef614d27-5bc3-45f1-8f0e-ec2b77b8415f"
	holder    = "h"
)

// topic keeps what was published; publish, if set, decides first.
type topic struct {
	publish func(context.Context) error

	mu   sync.Mutex
	told []event
}

// event is what a reader of the topic sees.
type event struct {
	Type string
	Data map[string]any
}

func (t *topic) Publish(ctx context.Context, data []byte, _ map[string]string) (string, error) {
	if t.publish != nil {
		if err := t.publish(ctx); err != nil {
			return "", err
		}
	}
	var e event
	if err := json.Unmarshal(data, &e); err != nil {
		return "", err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told = append(t.told, e)
	return "1", nil
}

func (t *topic) steps() (steps []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.told {
		steps = append(steps, strings.TrimPrefix(e.Type, "io.pushpool.launch.v1."))
	}
	return steps
}

// TestEachStepThatTheLedgerRecordsIsTold holds that followers see what happens to a launch,
// once and in its order, whoever records it, and nothing that Prefect has not accepted.
func TestEachStepThatTheLedgerRecordsIsTold(t *testing.T) {
	now := time.Date(2026, 1, 1, 6, 0, 0, 0, time.UTC)
	lease := flowrun.Lease{Holder: holder, Until: now.Add(time.Hour)}
	scheduled := func(id flowrun.LaunchID) flowrun.Event {
		return flowrun.Scheduled{Lease: lease, LaunchID: id, StateAt: now, WorkPool: "etl", DeploymentID: "d"}
	}
	attempted := flowrun.Attempted{Holder: holder, LaunchID: "1", Project: "p", Region: "r", JobName: "j"}
	launched := flowrun.Launched{Holder: holder, LaunchID: "1", ExecutionName: "x"}
	ended := func(id flowrun.LaunchID) flowrun.Event {
		return flowrun.Ended{Holder: holder, LaunchID: id, ExecutionName: "x", Outcome: flowrun.Outcome{Kind: flowrun.Succeeded}, StartedAt: now, EndedAt: now}
	}
	again := &flowrun.Report{Type: flowrun.StateScheduled, Name: "AwaitingCapacity", ScheduledTime: now.Add(time.Minute)}
	crashed := &flowrun.Report{Type: flowrun.StateCrashed}
	for name, tt := range map[string]struct {
		events []flowrun.Event
		want   []string
	}{
		"from the claim to the end": {
			[]flowrun.Event{scheduled("1"), attempted, launched, flowrun.Taken{Lease: lease}, ended("1")},
			[]string{"claimed", "launched", "finished"},
		},
		"a candidate that Prefect did not accept": {[]flowrun.Event{scheduled("1"), flowrun.Discarded{Holder: holder, LaunchID: "1"}}, nil},
		"another region is no second claim":       {[]flowrun.Event{scheduled("1"), attempted, flowrun.Attempted{Holder: holder, LaunchID: "1", Project: "p", Region: "s", JobName: "j"}}, []string{"claimed"}},
		"rejected before it had a place":          {[]flowrun.Event{scheduled("1"), flowrun.Rejected{Holder: holder, Reason: "why", Report: crashed}}, []string{"claimed", "rejected"}},
		"put back for lack of capacity":           {[]flowrun.Event{scheduled("1"), attempted, flowrun.PutBack{Holder: holder, Reason: "why", Report: again}}, []string{"claimed", "put_back"}},
		"stopped":                                 {[]flowrun.Event{scheduled("1"), attempted, launched, flowrun.Taken{Lease: lease}, flowrun.Abandon{Holder: holder}, ended("1")}, []string{"claimed", "launched", "abandoned", "finished"}},
		"an end that overtakes the launch":        {[]flowrun.Event{scheduled("1"), attempted, ended("1")}, []string{"claimed", "launched", "finished"}},
		"an ended execution that is tried again": {
			[]flowrun.Event{scheduled("1"), attempted, launched, flowrun.Taken{Lease: lease}, flowrun.Ended{
				Holder: holder, LaunchID: "1", ExecutionName: "x", Outcome: flowrun.Outcome{Kind: flowrun.Platform}, EndedAt: now, Report: again,
			}},
			[]string{"claimed", "launched", "finished", "put_back"},
		},
		"a second launch has its own steps": {
			[]flowrun.Event{
				scheduled("1"), attempted, launched, flowrun.Taken{Lease: lease}, ended("1"),
				scheduled("2"), flowrun.Attempted{Holder: holder, LaunchID: "2", Project: "p", Region: "r", JobName: "j2"},
			},
			[]string{"claimed", "launched", "finished", "claimed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			top := &topic{}
			l := lifecycle.New(ledger.NewMemory(), top, "pushpool", slog.New(slog.DiscardHandler), func() time.Time { return now })
			for _, e := range tt.events {
				if _, err := l.Update(t.Context(), flowRunID, func(r flowrun.Record) (flowrun.Record, error) { return flowrun.Apply(r, e, now) }); err != nil {
					t.Fatalf("%T: %v", e, err)
				}
			}
			if diff := cmp.Diff(tt.want, top.steps()); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
}

// claim records a place for a new launch, which tells one step.
func claim(ctx context.Context, l *lifecycle.Ledger) error {
	_, err := l.Update(ctx, flowRunID, func(r flowrun.Record) (flowrun.Record, error) {
		r.LaunchID, r.Status, r.Region = "1", flowrun.StatusClaimed, "r"
		return r, nil
	})
	return err
}

// TestAFollowerNeverHoldsALaunchUp holds that what is told costs the work no time, that its
// answer waits for it, and that a topic out of reach fails nothing and is logged.
func TestAFollowerNeverHoldsALaunchUp(t *testing.T) {
	for name, failure := range map[string]error{"told": nil, "out of reach": errors.New("the topic is gone")} {
		t.Run(name, func(t *testing.T) {
			released := make(chan struct{})
			top := &topic{publish: func(ctx context.Context) error {
				select {
				case <-released:
				case <-ctx.Done():
					return ctx.Err()
				}
				return failure
			}}
			var log bytes.Buffer
			l := lifecycle.New(ledger.NewMemory(), top, "pushpool", telemetry.NewLogger(&log, "p", slog.LevelInfo), time.Now)
			request, cancel := context.WithCancel(t.Context())
			ctx, told := lifecycle.Beside(request)
			if err := claim(ctx, l); err != nil { // returns although nobody has released the topic
				t.Fatal(err)
			}
			cancel() // whoever called has gone; what was recorded is told all the same
			close(released)
			told()
			if got := len(top.steps()) == 1; got != (failure == nil) {
				t.Errorf("told: %t", got)
			}
			if got := strings.Contains(log.String(), "not told on the topic lifecycle") && strings.Contains(log.String(), flowRunID); got != (failure != nil) {
				t.Errorf("log: %s", &log)
			}
		})
	}
}

// TestWhatFailedIsNotTold holds that followers hear of nothing that was not recorded.
func TestWhatFailedIsNotTold(t *testing.T) {
	top := &topic{}
	l := lifecycle.New(ledger.NewMemory(), top, "pushpool", slog.New(slog.DiscardHandler), time.Now)
	refused := errors.New("refused")
	_, err := l.Update(t.Context(), flowRunID, func(r flowrun.Record) (flowrun.Record, error) {
		r.LaunchID, r.Status = "1", flowrun.StatusRejected
		return r, refused
	})
	if !errors.Is(err, refused) || slices.Contains(top.steps(), "rejected") {
		t.Errorf("error %v, told %v", err, top.steps())
	}
}
