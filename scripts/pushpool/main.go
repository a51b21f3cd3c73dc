// Command pushpool is the operator's command.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/willabides/kongplete"

	"github.com/pushpool/pushpool/scripts/pushpool/bench"
	"github.com/pushpool/pushpool/scripts/pushpool/demo"
	"github.com/pushpool/pushpool/scripts/pushpool/local"
)

type command struct {
	Request        requestCommand        `cmd:"" help:"Ask for a flow run of a deployment, and follow it to its end."`
	Explain        explainCommand        `cmd:"" help:"Say where a flow run stands and why, and what happens next."`
	Doctor         doctorCommand         `cmd:"" help:"Examine the installation: what is wrong, why it matters, what to do."`
	Render         renderCommand         `cmd:"" help:"Print the Cloud Run job that would be created for a flow run of a deployment."`
	Connect        connectCommand        `cmd:"" help:"Make Prefect work with the installation: work pools, webhook block, automation."`
	Migrate        migrateCommand        `cmd:"" help:"Move deployments from a worker's work pool to the installation's, and back, while both serve."`
	DeadLetters    deadLettersCommand    `cmd:"" name:"deadletters" help:"Messages that could not be processed: list, show, replay or drop them."`
	Drain          drainCommand          `cmd:"" help:"Bring the installation to rest: nothing starts, what is under way ends, its jobs are deleted."`
	UninstallCheck uninstallCheckCommand `cmd:"" help:"Say what terraform destroy would leave behind."`

	Serve serveCommand `cmd:"" help:"Serve the four functions, configured by environment variables as when deployed, at /webhook, /dispatcher, /finalizer and /reconciler."`
	Local localCommand `cmd:"" help:"Run everything on this machine until Ctrl-C: Prefect, Pub/Sub, Cloud Tasks, Cloud Run Jobs, the four functions."`
	Demo  demoCommand  `cmd:"" help:"Show flow runs going through the local stack, one scenario after the other."`
	Drill drillCommand `cmd:"" help:"Take away what the local stack stands on, under a hundred flow runs, and check that all end true."`
	Soak  soakCommand  `cmd:"" help:"Run the local stack under load for some time while everything goes wrong: all flow runs end true, memory and goroutines stay flat."`
	Sweep sweepCommand `cmd:"" help:"Show what differs between Prefect, Cloud Run and the ledger, and what the reconciler would do about it."`
	Bench benchCommand `cmd:"" help:"Measure the local stack: one JSON object in a line for each figure."`

	Completion completions `cmd:"" help:"Print what has the shell complete this command."`

	ReadEvent readEventCommand `cmd:"" help:"Print as JSON what the finalizer reads in an audit log entry of an execution's end."`

	StandIn        standInCommand        `cmd:"" hidden:"" help:"Be the flow of the embedded stack."`
	FindPython     findPythonCommand     `cmd:"" hidden:"" help:"Print the Python that Prefect is installed with."`
	InstallPrefect installPrefectCommand `cmd:"" hidden:"" help:"Print a virtual environment with Prefect 3 or 2, made if it is not there."`
	Compatibility  compatibilityCommand  `cmd:"" hidden:"" help:"Show what scripts/prefect-compat found out."`
	FreePort       freePortCommand       `cmd:"" hidden:"" help:"Print a free port of 127.0.0.1."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	parser := newParser(kong.BindTo(ctx, (*context.Context)(nil)))
	kongplete.Complete(parser, kongplete.WithPredictors(predictors()))
	k, err := parser.Parse(os.Args[1:])
	parser.FatalIfErrorf(err)
	err = k.Run()
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err != nil && interrupted:
		fmt.Fprintf(os.Stderr, "pushpool: interrupted: %v\n", err)
		os.Exit(130) // as shells say it of SIGINT
	case errors.Is(err, errUnknown):
		os.Exit(2)
	case errors.Is(err, errQuiet):
		os.Exit(1)
	case err != nil:
		fmt.Fprintf(os.Stderr, "pushpool: %v\n", err)
		os.Exit(1)
	}
}

func newParser(opts ...kong.Option) *kong.Kong {
	return kong.Must(&command{}, append(opts, kong.Name("pushpool"), kong.Description("Prefect flow runs on Google Cloud Run Jobs without a worker."), kong.UsageOnError())...)
}

// errQuiet: what went wrong has been shown already.
var errQuiet = errors.New("")

// errUnknown: nothing is known to be wrong, and something could not be found out.
var errUnknown = errors.New("")

// stackFlags are what local and demo have in common.
type stackFlags struct {
	Embedded   bool          `help:"A stand-in for the Prefect server and for the flow: no Python."`
	LightFlow  bool          `help:"A stand-in for the flow only. With PREFECT_API_URL it needs no Python, and takes a server of 2.20 as well."`
	PoolType   string        `help:"The work pool's type: cloud-run-v2, or cloud-run, as the guide makes it." enum:"cloud-run-v2,cloud-run" default:"cloud-run-v2"`
	Python     string        `help:"The Python to make Prefect's virtual environment with (3.10 to 3.13); found by itself if not given." placeholder:"PATH"`
	Port       int           `help:"The port of the functions; 0 takes a free one." default:"0"`
	EntryDelay time.Duration `help:"How long after an execution's end its audit log entry is published." default:"3s"`
	Sweep      time.Duration `help:"How often the reconciler is called; once a minute when deployed." default:"5s"`
	Live       bool          `help:"Fetch the weather from the public API instead of a canned answer."`
	Verbose    bool          `short:"v" help:"Show the functions' and the containers' log lines."`
}

func (f stackFlags) options() local.Options {
	o := local.Options{
		Embedded: f.Embedded, LightFlow: f.LightFlow, PoolType: f.PoolType, Python: f.Python, Port: f.Port, LiveWeather: f.Live,
		EntryDelay: f.EntryDelay, SweepEvery: f.Sweep, Say: say,
	}
	if f.Verbose {
		o.Output = os.Stderr
	}
	return o
}

type localCommand struct {
	stackFlags
	EnvOut string `help:"The file to write the variables to by which the operator's commands find the stack." placeholder:"FILE" default:".cache/local.env"`
}

// Help shows examples.
func (localCommand) Help() string {
	return `Needs Python 3.10 to 3.13 for Prefect, which it installs into .cache; --embedded needs none. Any part can be your own: PREFECT_API_URL,
PUBSUB_EMULATOR_HOST, FIRESTORE_EMULATOR_HOST, CLOUD_RUN_EMULATOR_HOST and CLOUD_TASKS_EMULATOR_HOST name it.

Examples:

  pushpool local
  pushpool local --embedded --verbose`
}

// Run runs the stack until ctx ends.
func (c *localCommand) Run(ctx context.Context) error {
	stack, err := local.Start(ctx, c.options())
	if err != nil {
		return err
	}
	defer stack.Close()
	if err := stack.WriteEnv(c.EnvOut); err != nil {
		return err
	}
	fmt.Printf("%s\n\nIn another terminal:\n\n  export PUSHPOOL_ENV_FILE=%s\n  go run ./scripts/pushpool request weather/guide --param city=Madrid --wait\n\n"+
		"or publish {\"deployment\": \"weather/guide\", …} without it:\n\n  %s\n\nCtrl-C stops it all.\n", stack.Describe(), c.EnvOut, stack.Ask())
	<-ctx.Done()
	return nil
}

type demoCommand struct {
	stackFlags
	Scenario []int `arg:"" optional:"" help:"The scenarios to show, 1 to 8; all if none is given."`
	Keep     bool  `help:"Leave everything running at the end, until Ctrl-C, and print the URLs."`
	Limits   bool  `help:"Show instead how limits of work pools and deployments are kept, alone, beside a second installation, and beside Prefect's own worker: scenarios 1 to 4, which need Python."`
}

// Help shows examples.
func (demoCommand) Help() string {
	return `Examples:

  pushpool demo
  pushpool demo 4 --verbose
  pushpool demo --embedded --keep`
}

// Run shows the scenarios.
func (c *demoCommand) Run(ctx context.Context) error {
	show := demo.Run
	if c.Limits {
		show = demo.RunLimits
	}
	ok, err := show(ctx, os.Stdout, c.options(), c.Scenario, c.Keep)
	if err == nil && !ok {
		return errQuiet
	}
	return err
}

type drillCommand struct {
	stackFlags
	Drill []int `arg:"" optional:"" help:"The drills: 1 loses every event, 2 deletes the ledger, 3 watches what Prefect shows as ready, 4 kills the functions again and again; all if none is given."`
}

// Help shows examples.
func (drillCommand) Help() string {
	return `A hundred flow runs take Python some minutes; --light-flow has a stand-in for the flow. With FIRESTORE_EMULATOR_HOST the ledger is
deleted there, else with the functions' process.

Examples:

  pushpool drill 1 2 --light-flow
  pushpool drill 3 --sweep 1m`
}

// Run does the drills.
func (c *drillCommand) Run(ctx context.Context) error {
	ok, err := demo.Drill(ctx, os.Stdout, c.options(), c.Drill)
	if err == nil && !ok {
		return errQuiet
	}
	return err
}

type soakCommand struct {
	stackFlags
	For time.Duration `help:"How long." default:"10m"`
}

// Help shows examples.
func (soakCommand) Help() string {
	return `Two processes serve the functions, with their ledger in the Firestore emulator of the Google Cloud SDK: one is killed every few seconds,
the other one measured. The last line is a JSON object; the exit status is 1 if a flow run ended wrong, or memory or goroutines grew from
the first third of the time to the last.

Examples:

  pushpool soak --light-flow
  pushpool soak --embedded --for 1m`
}

// Run soaks.
func (c *soakCommand) Run(ctx context.Context) error {
	ok, err := demo.Soak(ctx, os.Stdout, c.options(), c.For)
	if err == nil && !ok {
		return errQuiet
	}
	return err
}

type benchCommand struct {
	stackFlags
	Name []string `arg:"" optional:"" help:"The benchmarks to run; all if none is given."`
}

// Help shows examples.
func (benchCommand) Help() string {
	return `scripts/bench keeps the figures in docs/benchmarks.md.

Examples:

  pushpool bench
  pushpool bench dispatch`
}

// Run measures.
func (c *benchCommand) Run(ctx context.Context) error {
	o := c.options()
	o.Say = func(format string, args ...any) { fmt.Fprintf(os.Stderr, "· "+format+"\n", args...) }
	return bench.Run(ctx, os.Stdout, o, c.Name)
}

type standInCommand struct {
	Args []string `arg:"" optional:"" passthrough:""`
}

// Run runs the flow.
func (c *standInCommand) Run(ctx context.Context) error {
	return local.StandIn(ctx, os.Environ(), c.Args)
}

func say(format string, args ...any) { fmt.Printf("· "+format+"\n", args...) }
