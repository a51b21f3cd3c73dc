package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

func runRequest(ctx context.Context, d *demo) (figures, error) {
	id, event, err := d.publish(ctx, map[string]any{"deployment": "weather/guide", "parameters": map[string]any{"city": "Madrid"}})
	if err != nil {
		return figures{}, err
	}
	return d.completes(ctx, id, "Madrid", event)
}

func quickRun(ctx context.Context, d *demo) (figures, error) {
	fr, event, err := d.create(ctx, prefect.NewFlowRun{Parameters: map[string]any{"city": "Tokyo"}})
	if err != nil {
		return figures{}, err
	}
	f, err := d.completes(ctx, fr.ID, "Tokyo", event)
	if err == nil && !d.heard(fr.ID) {
		err = errors.New("the webhook was not called; something else found the flow run")
	}
	return f, err
}

func schedule(ctx context.Context, d *demo) (figures, error) {
	d.say("the deployment's schedule, every 10 s, is switched on until two flow runs have started")
	if err := d.Prefect.SetDeploymentPaused(ctx, d.scheduled.ID, false); err != nil {
		return figures{}, err
	}
	var started []prefect.FlowRun
	err := until(ctx, "two flow runs of the schedule have started", func(ctx context.Context) (bool, error) {
		all, err := d.Prefect.FlowRuns(ctx, prefect.Filter{
			DeploymentIDs: []string{d.scheduled.ID}, Sort: prefect.OldestFirst,
			StateTypes: []prefect.StateType{flowrun.StateRunning, flowrun.StateCompleted, flowrun.StateFailed, flowrun.StateCrashed},
		})
		// A flow run that is made less than a sweep ahead is found when it is due already.
		started = slices.DeleteFunc(all, func(fr prefect.FlowRun) bool {
			return fr.ExpectedStartTime == nil || fr.ExpectedStartTime.Sub(fr.Created) < d.SweepEvery
		})
		return len(started) >= 2, err
	})
	err = errors.Join(err, d.Prefect.SetDeploymentPaused(ctx, d.scheduled.ID, true))
	if err != nil {
		return figures{}, err
	}
	var f figures
	for _, fr := range started[:2] {
		d.say("%s", fr.Name)
		if f, err = d.completes(ctx, fr.ID, "Paris", moment{*fr.ExpectedStartTime, "due", "by its schedule"}); err != nil {
			return f, err
		}
		if d.heard(fr.ID) {
			return f, errors.New("the webhook was called about a flow run of the schedule before it was claimed, so its timer was not needed")
		}
	}
	return f, nil
}

func exactlyOnce(ctx context.Context, d *demo) (figures, error) {
	if d.CloudRun == nil {
		return figures{}, errors.New("this needs the stack's own Cloud Run emulator; unset CLOUD_RUN_EMULATOR_HOST")
	}
	others, err := d.workersFlowRun(ctx)
	if err != nil {
		return figures{}, err
	}
	// Each attempt to deliver is made ten times at once.
	d.OnPush(func(deliverytest.Push) deliverytest.Fault { return deliverytest.Fault{Copies: 9} })
	defer d.OnPush(nil)
	var crashes atomic.Int32
	d.OnCall(func(method string, phase cloudruntest.Phase) error {
		if method != "CreateJob" || phase != cloudruntest.After || crashes.Add(1) > 1 {
			return nil
		}
		d.Functions.Kill()
		return status.Error(codes.Unavailable, "nobody is left to be answered")
	})
	defer d.OnCall(nil)

	d.say("each message is delivered ten times at once; the functions are killed when Cloud Run has the job")
	d.say("and before they know it; their ledger, in memory, is lost with them")
	event := moment{time.Now(), "event", "ten deliveries of one run request"}
	messageID, err := d.FlowRuns.Publish(ctx, encode(map[string]any{"deployment": "weather/guide", "parameters": map[string]any{"city": "London"}}), nil)
	if err != nil {
		return figures{}, err
	}
	if err := until(ctx, "the functions were killed", func(context.Context) (bool, error) { return crashes.Load() > 0, nil }); err != nil {
		return figures{}, err
	}
	if err := d.Functions.Start(ctx); err != nil {
		return figures{}, err
	}
	d.say("killed once, started again")
	id, err := d.flowRunOf(ctx, messageID)
	if err != nil {
		return figures{}, err
	}
	f, err := d.completes(ctx, id, "London", event)
	if err != nil {
		return f, err
	}
	requested, err := d.Prefect.FlowRuns(ctx, prefect.Filter{DeploymentIDs: []string{d.guide.ID}, Sort: prefect.NewestFirst})
	if err != nil {
		return f, err
	}
	same := 0
	for _, fr := range requested {
		if fr.IdempotencyKey == messageID {
			same++
		}
	}
	if same != 1 {
		return f, fmt.Errorf("one message made %d flow runs", same)
	}
	d.say("one message, one flow run, one execution")
	return f, d.leftAlone(ctx, others)
}

// workersFlowRun makes a flow run that a worker has claimed, and tells the dispatcher of it.
func (d *demo) workersFlowRun(ctx context.Context) (string, error) {
	later := time.Now().Add(time.Hour) // so that nobody takes it before the worker does
	fr, _, err := d.Prefect.CreateFlowRun(ctx, d.guide.ID, prefect.NewFlowRun{Name: "claimed-by-a-worker", ScheduledTime: &later})
	if err != nil {
		return "", err
	}
	answer, err := local.SetState(ctx, d.Prefect, fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: uuid.NewString()})
	if err != nil {
		return "", err
	}
	if answer.Status != prefect.StatusAccept {
		return "", fmt.Errorf("the worker's claim was answered with %s: %s", answer.Status, answer.Reason)
	}
	_, err = d.FlowRuns.Publish(ctx, message.EncodeDispatch(message.Dispatch{FlowRunID: fr.ID}), nil)
	return fr.ID, err
}

// leftAlone checks that nobody wrote to the worker's flow run, and removes it.
func (d *demo) leftAlone(ctx context.Context, id string) error {
	err := until(ctx, "the dispatcher was told of the worker's flow run", func(context.Context) (bool, error) {
		return len(d.Functions.Lines(id)) > 0, nil
	})
	if err != nil {
		return err
	}
	states, err := d.Prefect.FlowRunStates(ctx, id)
	if err != nil {
		return err
	}
	if len(states) != 2 || len(executions(d.Stack, id)) > 0 {
		return fmt.Errorf("the worker's flow run %s was touched: it has %d states, not 2", id, len(states))
	}
	d.say("the worker's flow run %s is as the worker left it: PENDING", id)
	_, err = local.SetState(ctx, d.Prefect, id, prefect.Proposal{Type: flowrun.StateCancelled, Message: "The demo is over."})
	return err
}

func killed(ctx context.Context, d *demo) (figures, error) {
	fr, event, err := d.running(ctx, nil)
	if err != nil {
		return figures{}, err
	}
	d.say("the process is killed")
	if err := d.CloudRun.Kill(executions(d.Stack, fr.ID)[0].Name); err != nil {
		return figures{}, err
	}
	if fr, err = d.reaches(ctx, fr.ID, flowrun.StateCrashed); err != nil {
		return figures{}, err
	}
	f, err := d.told(ctx, fr.ID, event)
	if err != nil {
		return f, err
	}
	if fr.State == nil || !strings.Contains(fr.State.Message, signal9) || !strings.Contains(fr.State.Message, "raise the job variable") {
		return f, fmt.Errorf("the message does not say what happened and what to do: %+v", fr.State)
	}
	d.say("Crashed: %s", fr.State.Message)
	return f, nil
}

// cancelled cancels a flow run that ends itself, and one whose container we have to stop.
func cancelled(ctx context.Context, d *demo) (figures, error) {
	f, err := d.cancels(ctx, nil, "flow-run execute")
	if err != nil {
		return f, err
	}
	d.say("once more, started fast: nobody in the container listens")
	_, err = d.cancels(ctx, map[string]any{"pushpool_fast_start": true}, "prefect.engine")
	return f, err
}

// cancels cancels a flow run while it is RUNNING under the command.
func (d *demo) cancels(ctx context.Context, jobVariables map[string]any, command string) (figures, error) {
	fr, event, err := d.running(ctx, jobVariables)
	if err != nil {
		return figures{}, err
	}
	pid := executions(d.Stack, fr.ID)[0].PID
	process, err := exec.CommandContext(ctx, "ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if err != nil || !strings.Contains(string(process), command) {
		return figures{}, fmt.Errorf("process %d is %q, not %q: %w", pid, process, command, err)
	}
	d.say("the flow run is cancelled in Prefect; its process is %d", pid)
	if _, err := local.SetState(ctx, d.Prefect, fr.ID, prefect.Proposal{Type: flowrun.StateCancelling}); err != nil {
		return figures{}, err
	}
	// An engine that is stopped says CRASHED, which the finalizer corrects.
	err = until(ctx, fmt.Sprintf("flow run %s is CANCELLED", fr.ID), func(ctx context.Context) (bool, error) {
		now, err := d.Prefect.FlowRun(ctx, fr.ID)
		return now.StateType == flowrun.StateCancelled, err
	})
	if err != nil {
		return figures{}, err
	}
	err = until(ctx, fmt.Sprintf("process %d is gone", pid), func(context.Context) (bool, error) {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH), nil
	})
	if err != nil {
		return figures{}, err
	}
	f, err := d.told(ctx, fr.ID, event)
	if err == nil {
		d.say("Cancelled, and process %d is gone", pid)
	}
	return f, err
}

func sweptUp(ctx context.Context, d *demo) (figures, error) {
	d.say("the automation is disabled: Prefect tells nobody")
	err := d.Prefect.SetAutomationEnabled(ctx, local.Automation, false)
	without := flowrun.FaultOf(err) == flowrun.Permanent && err != nil // the server has no events at all
	if err != nil && !without {
		return figures{}, err
	}
	time.Sleep(2 * time.Second) // a real server goes on with what it has loaded for a moment
	fr, event, err := d.create(ctx, prefect.NewFlowRun{Parameters: map[string]any{"city": "Berlin"}})
	if err != nil {
		return figures{}, err
	}
	f, err := d.completes(ctx, fr.ID, "Berlin", event)
	if err == nil && d.heard(fr.ID) {
		err = errors.New("the webhook was called all the same")
	}
	if without {
		return f, err
	}
	return f, errors.Join(err, d.Prefect.SetAutomationEnabled(ctx, local.Automation, true))
}

// publish publishes a run request and returns the flow run that it made.
func (d *demo) publish(ctx context.Context, request map[string]any) (flowRunID string, event moment, err error) {
	event = moment{time.Now(), "event", "run request on the topic " + local.TopicFlowRuns}
	messageID, err := d.FlowRuns.Publish(ctx, encode(request), nil)
	if err != nil {
		return "", event, err
	}
	flowRunID, err = d.flowRunOf(ctx, messageID)
	return flowRunID, event, err
}

// flowRunOf returns the flow run that a run request made, from the dispatcher's log.
func (d *demo) flowRunOf(ctx context.Context, messageID string) (flowRunID string, err error) {
	err = until(ctx, "the dispatcher has handled message "+messageID, func(context.Context) (bool, error) {
		for _, l := range d.Functions.Lines("") {
			if l.MessageID == messageID && l.Verdict == "dead-lettered" {
				return true, nil
			}
			if l.MessageID == messageID && l.FlowRunID != "" {
				flowRunID = l.FlowRunID
				return true, nil
			}
		}
		return false, nil
	})
	if err == nil && flowRunID == "" {
		err = fmt.Errorf("message %s was moved to the dead-letter topic", messageID)
	}
	return flowRunID, err
}

// create creates a flow run of the guide's deployment as Quick Run does.
func (d *demo) create(ctx context.Context, n prefect.NewFlowRun) (prefect.FlowRun, moment, error) {
	event := moment{time.Now(), "event", "a flow run is created in Prefect"}
	fr, _, err := d.Prefect.CreateFlowRun(ctx, d.guide.ID, n)
	return fr, event, err
}

// running creates a flow run that lasts, and waits until it is RUNNING.
func (d *demo) running(ctx context.Context, jobVariables map[string]any) (prefect.FlowRun, moment, error) {
	if d.CloudRun == nil {
		return prefect.FlowRun{}, moment{}, errors.New("this needs the stack's own Cloud Run emulator; unset CLOUD_RUN_EMULATOR_HOST")
	}
	fr, event, err := d.create(ctx, prefect.NewFlowRun{Parameters: map[string]any{"pause_seconds": 120}, JobVariables: jobVariables})
	if err != nil {
		return fr, event, err
	}
	fr, err = d.reaches(ctx, fr.ID, flowrun.StateRunning)
	return fr, event, err
}

// heard reports whether the webhook was told of the flow run when it was SCHEDULED.
func (d *demo) heard(flowRunID string) bool {
	for _, l := range d.Functions.Lines(flowRunID) {
		if l.Function == "webhook" && l.StateType == string(flowrun.StateScheduled) {
			return true
		}
	}
	return false
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps of strings always encode
	}
	return b
}
