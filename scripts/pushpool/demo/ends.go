package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// end is one way in which an execution ends, and what Prefect is to say of it.
type end struct {
	title      string
	parameters map[string]any // of the flow
	variables  map[string]any // of the job
	poolType   string         // the only one that has them, if not empty
	// do ends the execution with that full name, once for each.
	do         func(d *demo, ctx context.Context, execution string) error
	executions int
	// state is the flow run's at the end, CRASHED where it is empty; its message says these.
	state flowrun.StateType
	says  []string
	// retried is in the message of each AwaitingRetry on the way, in order.
	retried []string
	// logs must be in the flow run's log, and hidden nowhere in it.
	logs, hidden string
}

// lasting is a container that is ended from outside.
const lasting = "sh -c 'echo boom; exec sleep 600'"

// everyRetry are job variables that allow all that can be allowed.
func everyRetry() map[string]any {
	return map[string]any{"pushpool_retries": map[string]any{"exit_code": 3, "signal": 3, "platform": 3}, "pushpool_retry_started": true}
}

var ends = []end{
	{
		title:     "exits with 7",
		variables: map[string]any{"command": "sh -c 'echo boom; echo connect to postgres://etl:hunter2@db; exit 7'"},
		says:      []string{"exited with code 7", "last log lines"}, logs: "boom", hidden: "hunter2", executions: 1,
	},
	{
		title: "a command that is not there", variables: map[string]any{"command": "no-such-command"},
		says: []string{"exited with code 1", "last log lines"}, logs: "no-such-command", executions: 1,
	},
	{
		title: "a shell's command that is not there", variables: map[string]any{"command": "sh -c 'no-such-command; exit $?'"},
		says: []string{"exited with code 127", "`command`"}, logs: "no-such-command", executions: 1,
	},
	{
		title: "ends without a report", variables: map[string]any{"command": "true"},
		says: []string{"exited with code 0 without reporting", "`prefect flow-run execute`"}, executions: 1,
	},
	{
		title: "a signal", variables: map[string]any{"command": "sh -c 'echo boom; kill -11 $$'"},
		says: []string{"ended by signal 11"}, logs: "boom", executions: 1,
	},
	{
		title: "killed while the flow runs, and executed again where that is allowed", do: (*demo).killRunning,
		parameters: map[string]any{"pause_seconds": 20}, variables: everyRetry(),
		state: flowrun.StateCompleted, retried: []string{"Retry 1 of 3 (signal)"}, executions: 2,
	},
	{
		title: "too little memory, executed again with twice as much", variables: map[string]any{"command": lasting}, do: (*demo).exhaust,
		says: []string{"reached its memory limit", "`memory`", "1 of 1 retries were made"}, logs: "boom", executions: 2,
		retried: []string{"It gets 1024Mi of memory instead of 512Mi."},
	},
	{
		title: "too little time", variables: map[string]any{"command": lasting, "timeout": 5},
		says: []string{"reached its timeout", "`timeout`"}, logs: "boom", executions: 1,
	},
	{
		title: "no such image, tried again once", variables: map[string]any{"image": "example.com/missing", "pushpool_retries": map[string]any{"start": 1}},
		says: []string{"image could not be used", "exists in the registry", "1 of 1 retries were made"}, retried: []string{"Retry 1 of 1 (start)"},
	},
	{
		title: "no such secret", poolType: local.PoolType,
		variables: map[string]any{
			"env_from_secrets": map[string]any{"KEY": map[string]any{"secret": "none", "version": "latest"}}, "pushpool_retries": map[string]any{"start": 0},
		},
		says: []string{"secret", "roles/secretmanager.secretAccessor"},
	},
	{
		title: "a job variable that is none", variables: map[string]any{"pushpool_retries": "many"},
		says: []string{"`pushpool_retries`", "write an object such as"},
	},
	{
		title: "cancelled outside Prefect", variables: map[string]any{"command": lasting}, do: (*demo).cancelExecution,
		says: []string{"cancelled outside Prefect", "run the flow again"}, executions: 1,
	},
	{
		title: "its job is deleted", variables: map[string]any{"command": lasting}, do: (*demo).deleteJob,
		says: []string{"was deleted", "audit log"}, executions: 1,
	},
	{
		title: "the flow says itself that it failed", parameters: map[string]any{"city": "Atlantis"}, variables: everyRetry(),
		state: flowrun.StateFailed, says: []string{"no coordinates for 'Atlantis'"}, hidden: "The last ", executions: 1,
	},
}

// eachEnd has one flow run end in each way, all at once.
func eachEnd(ctx context.Context, d *demo) (figures, error) {
	if d.CloudRun == nil {
		return figures{}, errors.New("this needs the stack's own Cloud Run emulator; unset CLOUD_RUN_EMULATOR_HOST")
	}
	ends := slices.DeleteFunc(slices.Clone(ends), func(e end) bool {
		return e.poolType != "" && d.PoolType != "" && d.PoolType != e.poolType
	})
	ids := make([]string, len(ends))
	for i, e := range ends {
		fr, _, err := d.create(ctx, prefect.NewFlowRun{Parameters: e.parameters, JobVariables: e.variables})
		if err != nil {
			return figures{}, err
		}
		ids[i] = fr.ID
	}
	var errs []error
	for i, e := range ends {
		if e.do != nil {
			errs = append(errs, e.each(ctx, d, ids[i]))
		}
	}
	for i, e := range ends {
		if err := e.check(ctx, d, ids[i]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.title, err))
		}
	}
	return figures{}, errors.Join(errs...)
}

// each ends every execution of the flow run, or all but the one that is to complete.
func (e end) each(ctx context.Context, d *demo, id string) error {
	count := e.executions
	if e.state == flowrun.StateCompleted {
		count--
	}
	for n := range count {
		var x cloudruntest.Execution
		err := until(ctx, fmt.Sprintf("execution %d of flow run %s is under way", n+1, id), func(context.Context) (bool, error) {
			all := executions(d.Stack, id)
			if len(all) > n {
				x = all[n]
			}
			return len(x.LastLines) > 0 || e.state == flowrun.StateCompleted && x.PID != 0, nil
		})
		if err == nil {
			err = e.do(d, ctx, x.Name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.title, err)
		}
	}
	return nil
}

// check sees the flow run at its end, for the reason, with its last lines in its log.
func (e end) check(ctx context.Context, d *demo, id string) error {
	fr, err := d.reaches(ctx, id, cmp.Or(e.state, flowrun.StateCrashed))
	if err != nil {
		return err
	}
	says := e.says
	if e.state == "" && e.executions > 0 { // what pushpool reports
		says = append(slices.Clone(says), "https://console.cloud.google.com/")
	}
	for _, part := range says {
		if !strings.Contains(fr.State.Message, part) {
			return fmt.Errorf("the message does not say %q: %s", part, fr.State.Message)
		}
	}
	if n := len(executions(d.Stack, id)); n != e.executions {
		return fmt.Errorf("there were %d executions, not %d", n, e.executions)
	}
	if err := e.checkRetries(ctx, d, id); err != nil {
		return err
	}
	if err := e.checkLog(ctx, d, id); err != nil {
		return err
	}
	d.say("%-69s %s: %s", e.title, fr.StateType, shorten(fr.State.Message))
	return nil
}

func (e end) checkLog(ctx context.Context, d *demo, id string) error {
	if e.logs == "" && e.hidden == "" {
		return nil
	}
	if err := d.finished(ctx, id); err != nil {
		return err
	}
	var lines string
	err := until(ctx, fmt.Sprintf("%q is in the log of flow run %s", e.logs, id), func(ctx context.Context) (bool, error) {
		all, err := d.Prefect.Logs(ctx, id)
		lines = text(all)
		return strings.Contains(lines, e.logs), err
	})
	if err != nil {
		return fmt.Errorf("%w; the log: %s", err, lines)
	}
	if e.hidden != "" && strings.Contains(lines, e.hidden) {
		return fmt.Errorf("the log of the flow run shows %q: %s", e.hidden, lines)
	}
	return nil
}

// checkRetries sees in Prefect's history what the flow run was tried again for.
func (e end) checkRetries(ctx context.Context, d *demo, id string) error {
	states, err := d.Prefect.FlowRunStates(ctx, id)
	if err != nil {
		return err
	}
	states = slices.DeleteFunc(states, func(s prefect.State) bool { return s.Name != "AwaitingRetry" })
	if len(states) != len(e.retried) {
		return fmt.Errorf("it was tried again %d times, not %d", len(states), len(e.retried))
	}
	for i, s := range states {
		if s.Type != flowrun.StateScheduled || !strings.Contains(s.Message, e.retried[i]) {
			return fmt.Errorf("its AwaitingRetry %d is %s and does not say %q: %s", i+1, s.Type, e.retried[i], s.Message)
		}
	}
	return nil
}

func text(lines []prefect.LogLine) string {
	var all []string
	for _, l := range lines {
		all = append(all, l.Message)
	}
	return strings.Join(all, "\n")
}

// killRunning kills the execution of a flow run that is RUNNING.
func (d *demo) killRunning(ctx context.Context, execution string) error {
	name, err := cloudrun.ParseExecutionName(execution)
	if err != nil {
		return err
	}
	x, err := d.cloudRun.Execution(ctx, name)
	if err != nil {
		return err
	}
	if _, err := d.reaches(ctx, x.Labels[cloudrun.LabelFlowRun], flowrun.StateRunning); err != nil {
		return err
	}
	return d.CloudRun.Kill(execution)
}

func (d *demo) exhaust(_ context.Context, execution string) error {
	return d.CloudRun.ExhaustMemory(execution)
}

func (d *demo) cancelExecution(ctx context.Context, execution string) error {
	name, err := cloudrun.ParseExecutionName(execution)
	if err != nil {
		return err
	}
	return d.cloudRun.CancelExecution(ctx, name)
}

func (d *demo) deleteJob(ctx context.Context, execution string) error {
	name, err := cloudrun.ParseExecutionName(execution)
	if err != nil {
		return err
	}
	return d.cloudRun.DeleteJob(ctx, name.JobName())
}
