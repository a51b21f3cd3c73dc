// Package demo shows flow runs going through the local stack, and checks that they end true.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// patience bounds every wait of a scenario. It is far beyond what a wait should take, on any machine.
const patience = 2 * time.Minute

type scenario struct {
	title string
	show  func(ctx context.Context, d *demo) (figures, error)
}

// Each is one thing that the system promises.
var scenarios = []scenario{
	{"a run request published on the topic flow-runs", runRequest},
	{"a flow run created in Prefect, as Quick Run does", quickRun},
	{"a cron schedule, whose flow runs emit no event", schedule},
	{"ten deliveries of one message, a crash, a worker beside", exactlyOnce},
	{"a container killed by SIGKILL", killed},
	{"a flow run cancelled while it runs", cancelled},
	{"the webhook switched off", sweptUp},
	{"each way in which an execution can end badly", eachEnd},
}

type demo struct {
	*local.Stack
	out io.Writer
	// guide and scheduled are the flow's deployments.
	guide, scheduled prefect.Deployment
	// cloudRun is a client of the stack's Cloud Run, for what people do there.
	cloudRun   *cloudrun.Client
	readyCalls readyCalls
}

// result of a scenario.
type result struct {
	number  int
	title   string
	figures figures
	err     error
}

// Run shows the scenarios with the given numbers, or all, and reports whether all went as
// they should. With keep it then waits until ctx ends before it stops the stack.
func Run(ctx context.Context, out io.Writer, o local.Options, numbers []int, keep bool) (ok bool, err error) {
	return run(ctx, out, o, scenarios, numbers, keep)
}

// Drill does the same with the drills.
func Drill(ctx context.Context, out io.Writer, o local.Options, numbers []int) (ok bool, err error) {
	return run(ctx, out, o, drills, numbers, false)
}

func run(ctx context.Context, out io.Writer, o local.Options, scenarios []scenario, numbers []int, keep bool) (ok bool, err error) {
	if len(numbers) == 0 {
		for i := range scenarios {
			numbers = append(numbers, i+1)
		}
	}
	for _, n := range numbers {
		if n < 1 || n > len(scenarios) {
			return false, fmt.Errorf("there is no scenario %d; write a number from 1 to %d", n, len(scenarios))
		}
	}
	d := &demo{out: out}
	o.OnPrefectCall = d.readyCalls.add
	stack, err := local.Start(ctx, o)
	if err != nil {
		return false, err
	}
	defer stack.Close()
	fmt.Fprintln(out, stack.Describe())
	d.Stack = stack
	if stack.CloudRun != nil {
		if d.cloudRun, err = cloudrun.New(ctx, stack.CloudRun.ClientOptions()...); err != nil {
			return false, err
		}
		defer func() { _ = d.cloudRun.Close() }()
	}
	if d.guide, err = stack.Prefect.DeploymentByName(ctx, "weather/guide"); err != nil {
		return false, err
	}
	if d.scheduled, err = stack.Prefect.DeploymentByName(ctx, "weather/scheduled"); err != nil {
		return false, err
	}
	var results []result
	for _, n := range numbers {
		sc := scenarios[n-1]
		fmt.Fprintf(out, "\n%d. %s\n", n, sc.title)
		f, err := sc.show(ctx, d)
		if ctx.Err() != nil {
			return false, errors.New("interrupted")
		}
		if err != nil {
			fmt.Fprintf(out, "   FAILED: %v\n", err)
		}
		results = append(results, result{n, sc.title, f, err})
	}
	table(out, results)
	if keep {
		fmt.Fprintf(out, "\nEverything keeps running; Ctrl-C stops it.\n%s\n", stack.Describe())
		<-ctx.Done()
	}
	return !slices.ContainsFunc(results, func(r result) bool { return r.err != nil }), nil
}

func table(out io.Writer, results []result) {
	fmt.Fprintf(out, "\n%-3s %-57s %-6s %12s %10s\n", "", "scenario", "result", "event→launch", "end→final")
	seconds := func(d time.Duration) string {
		if d <= 0 {
			return "–"
		}
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	for _, r := range results {
		verdict := "ok"
		if r.err != nil {
			verdict = "FAILED"
		}
		fmt.Fprintf(out, "%-3d %-57s %-6s %12s %10s\n", r.number, r.title, verdict, seconds(r.figures.eventToLaunch), seconds(r.figures.endToFinal))
	}
}

// say writes a line of a scenario.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "   "+format+"\n", args...)
}

// until waits until what is so, and says what it waited for when patience ends.
func until(ctx context.Context, what string, so func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		ok, err := so(ctx)
		if ok {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for this: %s (%w)", patience, what, errors.Join(last, ctx.Err()))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// reaches waits until the flow run is in one of the states, or in any terminal one.
func (d *demo) reaches(ctx context.Context, id string, states ...flowrun.StateType) (fr prefect.FlowRun, err error) {
	err = until(ctx, fmt.Sprintf("flow run %s is %v", id, states), func(ctx context.Context) (bool, error) {
		fr, err = d.Prefect.FlowRun(ctx, id)
		return err == nil && (slices.Contains(states, fr.StateType) || fr.StateType.Terminal()), err
	})
	if err == nil && !slices.Contains(states, fr.StateType) {
		message := ""
		if fr.State != nil {
			message = ": " + fr.State.Message
		}
		err = fmt.Errorf("flow run %s is %s%s", id, fr.StateType, message)
	}
	return fr, err
}

// finished waits until the finalizer has handled the end of the flow run's execution.
func (d *demo) finished(ctx context.Context, id string) error {
	return until(ctx, "the finalizer has handled the execution's end of flow run "+id, func(context.Context) (bool, error) {
		for _, l := range d.Functions.Lines(id) {
			if l.Function == "finalizer" && l.Verdict == "acknowledged" {
				return true, nil
			}
		}
		return false, nil
	})
}

// told prints the flow run's timeline once its execution's end was handled.
func (d *demo) told(ctx context.Context, id string, event moment) (figures, error) {
	if err := d.finished(ctx, id); err != nil {
		return figures{}, err
	}
	moments, f, err := trace(ctx, d.Stack, id, event)
	if err == nil {
		print(d.out, moments)
	}
	return f, err
}

// once fails unless exactly one execution was ever made for the flow run.
func (d *demo) once(id string) error {
	if n := len(executions(d.Stack, id)); n != 1 && d.CloudRun != nil {
		return fmt.Errorf("flow run %s has %d executions, not 1", id, n)
	}
	return nil
}

// completes sees a flow run to its end: COMPLETED, one execution, the report is there.
func (d *demo) completes(ctx context.Context, id, city string, event moment) (figures, error) {
	if _, err := d.reaches(ctx, id, flowrun.StateCompleted); err != nil {
		return figures{}, err
	}
	f, err := d.told(ctx, id, event)
	if err != nil {
		return f, err
	}
	text, err := markdown(ctx, d.Prefect, id)
	if err != nil {
		return f, err
	}
	if !strings.Contains(text, city) {
		return f, fmt.Errorf("the artifact is not about %s: %q", city, text)
	}
	d.say("Completed; its artifact weather-report: %s", shorten(text))
	return f, d.once(id)
}
