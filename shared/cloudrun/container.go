package cloudrun

import (
	"slices"

	"cloud.google.com/go/run/apiv2/runpb"
)

// OneAttempt has a job whose template says nothing of retries make no second attempt at its
// task: Cloud Run's default is three more, at once, within the execution. Prefect would not
// see them, and accepts RUNNING over RUNNING, CRASHED and FAILED, so that a flow which had
// begun would be executed again without anybody having allowed it. Budgets for that are
// flowrun.Retries. What a template asks for stays.
func OneAttempt(j *runpb.Job) {
	if t := j.GetTemplate().GetTemplate(); t != nil && t.GetRetries() == nil {
		t.Retries = &runpb.TaskTemplate_MaxRetries{}
	}
}

// StartFast replaces Prefect's default command by the engine that it starts: one start of
// Python instead of two. What the default command does beside it falls away: nobody in the
// container listens for a cancellation (it is ours to stop then, at once, and hooks for
// on_cancellation do not run), and a container that dies leaves its end to the finalizer.
// Both read the flow run from PREFECT__FLOW_RUN_ID and take the same way to its code. A
// command of one's own, or arguments, stay as they are: nobody knows what else they do. So
// does a job that asks for further attempts: the engine exits with 1 where the flow failed,
// and Cloud Run would execute one anew that has reported its end.
func StartFast(j *runpb.Job) {
	if j.GetTemplate().GetTemplate().GetMaxRetries() > 0 {
		return
	}
	for _, c := range j.GetTemplate().GetTemplate().GetContainers() {
		if slices.Equal(c.GetCommand(), []string{"prefect", "flow-run", "execute"}) && len(c.GetArgs()) == 0 {
			c.Command = []string{"python", "-m", "prefect.engine"}
		}
	}
}
