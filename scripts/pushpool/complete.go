package main

import (
	"context"
	"os"
	"time"

	"github.com/posener/complete"
	"github.com/willabides/kongplete"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/prefect"
)

// completions is the command that prints what has a shell complete ours.
type completions struct {
	kongplete.InstallCompletions
}

// Help shows examples.
func (completions) Help() string {
	return `Prints what to add to the shell's start-up file (bash, zsh or fish, by SHELL). It completes commands, flags, deployments, work
pools and the ids of the newest flow runs; the last three are asked of Prefect.

Examples:

  pushpool completion >>~/.bashrc
  pushpool completion >>~/.zshrc`
}

// patienceOfAShell is how long a person who pressed Tab may wait for Prefect.
const patienceOfAShell = 2 * time.Second

// predictors complete what only Prefect knows. Nothing is said where it does not answer.
func predictors() map[string]complete.Predictor {
	ask := func(list func(context.Context, *operator.Installation) ([]string, error)) complete.Predictor {
		return complete.PredictFunc(func(complete.Args) []string {
			ctx, cancel := context.WithTimeout(context.Background(), patienceOfAShell)
			defer cancel()
			in, err := globals{EnvFile: os.Getenv("PUSHPOOL_ENV_FILE")}.open(ctx)
			if err != nil {
				return nil
			}
			found, err := list(ctx, in)
			if err != nil {
				return nil
			}
			return found
		})
	}
	return map[string]complete.Predictor{
		"file":       complete.PredictFiles("*"),
		"deployment": ask(deploymentNames),
		"flow-run":   ask(newestFlowRuns),
		"work-pool":  ask(func(_ context.Context, in *operator.Installation) ([]string, error) { return in.WorkPools, nil }),
	}
}

func deploymentNames(ctx context.Context, in *operator.Installation) (names []string, err error) {
	for _, pool := range in.WorkPools {
		all, err := in.Prefect.Deployments(ctx, pool)
		if err != nil {
			return nil, err
		}
		for _, d := range all {
			flow, err := in.Prefect.Flow(ctx, d.FlowID)
			if err != nil {
				return nil, err
			}
			names = append(names, flow.Name+"/"+d.Name)
		}
	}
	return names, nil
}

func newestFlowRuns(ctx context.Context, in *operator.Installation) (ids []string, err error) {
	const offered = 20
	found, err := in.Prefect.FlowRuns(ctx, prefect.Filter{WorkPools: in.WorkPools, Sort: prefect.NewestFirst, Limit: offered})
	for _, fr := range found {
		ids = append(ids, fr.ID)
	}
	return ids, err
}
