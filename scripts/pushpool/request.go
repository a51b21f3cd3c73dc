package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/scripts/pushpool/request"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/publish"
)

type requestCommand struct {
	globals
	Deployment  string            `arg:"" help:"The deployment, as FLOW/DEPLOYMENT or by its id." predictor:"deployment"`
	Param       map[string]string `short:"p" help:"A parameter, as NAME=VALUE. VALUE is JSON, or text where it is none." placeholder:"K=V" mapsep:"none"`
	JobVariable map[string]string `help:"A job variable, as NAME=VALUE, likewise." placeholder:"K=V" mapsep:"none"`
	Tag         []string          `help:"A tag."`
	Name        string            `help:"The flow run's name."`
	Key         string            `help:"The idempotency key: one flow run for each. A new one if not given."`
	WorkQueue   string            `help:"The work queue, if not the deployment's."`
	At          string            `help:"When it is to start, such as 2026-01-01T06:00:00Z."`
	Delay       string            `help:"How long from now it is to start, such as 90s."`
	Expires     string            `help:"When the request is void, if nobody has taken it by then."`
	Wait        bool              `help:"Follow the flow run to its end; the exit status says whether it completed."`
	Timeout     time.Duration     `help:"How long to wait." default:"24h"`
}

// Help shows examples.
func (requestCommand) Help() string {
	return `Examples:

  pushpool request weather/guide
  pushpool request weather/guide --param city=Madrid --wait
  pushpool request etl/prod --param 'days=["2026-01-01"]' --job-variable memory=2Gi --delay 5m`
}

// Run publishes the request, and follows it where that is asked for.
func (c *requestCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	key := cmp.Or(c.Key, uuid.NewString())
	data, err := request.Fields{
		Deployment: c.Deployment, Parameters: c.Param, JobVariables: c.JobVariable, Tags: c.Tag, Name: c.Name,
		IdempotencyKey: key, WorkQueue: c.WorkQueue, ScheduledTime: c.At, Delay: c.Delay, Expiry: c.Expires,
	}.Encode()
	if err != nil {
		return err
	}
	stop := progress("publishing a run request for %s", c.Deployment)
	defer stop()
	if err := request.Check(ctx, in.Prefect, c.Deployment, in.WorkPools); err != nil {
		return err
	}
	client, err := in.PubSub(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	topic := publish.New(client, in.FlowRuns)
	defer topic.Close()
	id, err := topic.Publish(ctx, data, nil)
	if err != nil {
		return err
	}
	stop()
	switch {
	case c.JSON && !c.Wait:
		return printJSON(map[string]string{"message_id": id, "idempotency_key": key})
	case !c.JSON:
		fmt.Printf("published message %s on topic %s, idempotency key %s\n", id, in.FlowRuns, key)
	}
	if !c.Wait {
		return nil
	}
	return c.follow(ctx, in.Prefect, key, in.UIURL())
}

func (c *requestCommand) follow(ctx context.Context, p request.Prefect, key, ui string) error {
	var first time.Time
	still := progressEvery(30*time.Second, "no new state of the flow run; Ctrl-C ends the following, not the flow run")
	defer still()
	last, err := request.Follow(ctx, p, key, c.Timeout, func(u request.Update) {
		if c.JSON {
			_ = json.NewEncoder(os.Stdout).Encode(u)
			return
		}
		if first.IsZero() {
			first = u.At
			fmt.Printf("flow run %s, %s\n  %s/runs/flow-run/%s\n", u.Name, u.FlowRunID, ui, u.FlowRunID)
		}
		fmt.Printf("%s\n", strings.TrimRight(fmt.Sprintf("%8.2f s  %-24s %s", u.At.Sub(first).Seconds(), u.StateName, u.Message), " "))
	})
	switch {
	case errors.Is(err, request.ErrNoFlowRun):
		return fmt.Errorf("%w in 30 s although the message was published; see whether the dispatcher runs and what it logs (`pushpool doctor`), "+
			"and whether the message is a dead letter (`pushpool deadletters list`); it stays in the subscription for 7 days until it is taken", err)
	case errors.Is(err, context.Canceled) && last.FlowRunID == "":
		return fmt.Errorf("the request stays published, and its flow run starts by itself: %w", err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("the flow run %s was %s; it goes on by itself (`pushpool explain %s`): %w", last.FlowRunID, last.StateName, last.FlowRunID, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the flow run %s was %s when the time was over; it goes on by itself: `pushpool explain %s`", last.FlowRunID, last.StateName, last.FlowRunID)
	case err != nil:
		return err
	case last.StateType != flowrun.StateCompleted:
		return fmt.Errorf("the flow run %s ended %s; `pushpool explain %s` says why", last.FlowRunID, last.StateName, last.FlowRunID)
	}
	return nil
}
