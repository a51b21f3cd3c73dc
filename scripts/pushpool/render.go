package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/rogpeppe/go-internal/diff"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/pushpool/pushpool/scripts/pushpool/request"
)

type renderCommand struct {
	globals
	Deployment  string            `required:"" help:"The deployment, as FLOW/DEPLOYMENT or by its id." placeholder:"NAME" predictor:"deployment"`
	JobVariable map[string]string `help:"A job variable of the flow run, as NAME=VALUE. VALUE is JSON, or text where it is none." placeholder:"K=V" mapsep:"none"`
	FlowRun     string            `help:"Render for this flow run, as it is, instead of for a new one." placeholder:"ID" predictor:"flow-run"`
	Diff        bool              `help:"Show it as a diff against the job that Prefect's worker would create."`
}

// Help shows examples.
func (renderCommand) Help() string {
	return `Prints the Cloud Run job that would be created for a flow run of the deployment, and creates nothing. What keeps it from being
created is the command's error.

Examples:

  pushpool render --deployment etl/prod
  pushpool render --deployment etl/prod --job-variable memory=4Gi --diff`
}

// Run renders.
func (c *renderCommand) Run(ctx context.Context) error {
	in, err := c.open(ctx)
	if err != nil {
		return err
	}
	done := progress("reading deployment %s and what its job is made of", c.Deployment)
	defer done()
	d, err := in.Prefect.FindDeployment(ctx, c.Deployment)
	if err != nil {
		return err
	}
	fr := flowRunOf(d, d.WorkPoolName)
	if c.FlowRun != "" {
		if fr, err = in.Prefect.FlowRun(ctx, c.FlowRun); err != nil {
			return err
		}
	}
	if len(c.JobVariable) > 0 {
		if fr.JobVariables, err = json.Marshal(request.Values(c.JobVariable)); err != nil {
			return err
		}
	}
	launcher, err := newLauncher(ctx, in)
	if err != nil {
		return err
	}
	p, err := launcher.Preview(ctx, fr)
	if err != nil {
		return err
	}
	ours, err := jsonOf(p.Launch.Job)
	if err != nil {
		return err
	}
	if !c.Diff {
		return printJSON(map[string]json.RawMessage{"name": quoted(p.Launch.Name.String()), "job": ours})
	}
	worker, err := jsonOf(p.Worker.Job)
	if err != nil {
		return err
	}
	apart := string(diff.Diff("worker", lines(worker), "pushpool", lines(ours)))
	return c.print(map[string]any{"name": p.Launch.Name.String(), "job": ours, "worker_job": worker, "diff": apart}, func(w io.Writer) {
		fmt.Fprint(w, cmp.Or(apart, "the same\n"))
	})
}

func quoted(s string) json.RawMessage {
	data, _ := json.Marshal(s)
	return data
}

// jsonOf is a job as Cloud Run's REST API shows it, with keys in order.
func jsonOf(m proto.Message) (json.RawMessage, error) {
	data, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var plain any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&plain); err != nil {
		return nil, err
	}
	return json.Marshal(plain)
}

func lines(data json.RawMessage) []byte {
	var b bytes.Buffer
	if json.Indent(&b, data, "", "  ") != nil {
		return data
	}
	b.WriteByte('\n')
	return b.Bytes()
}
