package cloudrun

import (
	"testing"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// TestTheLastAttemptTellsMore holds what is made of each attempt where the execution's condition is vague.
func TestTheLastAttemptTellsMore(t *testing.T) {
	const (
		memory  = "The configured memory limit was reached."
		timeout = "The configured timeout was reached."
		exit    = "The container exited with an error."
		signal  = "A signal terminated the container."
	)
	for name, test := range map[string]struct {
		vague            flowrun.OutcomeKind
		code             codes.Code
		message          string
		signal, exitCode int32
		want             flowrun.Outcome
	}{
		"memory":                     {flowrun.Platform, codes.Aborted, memory, 0, 0, flowrun.Outcome{Kind: flowrun.OutOfMemory}},
		"memory, killed":             {flowrun.Signal, codes.Aborted, memory, 9, 0, flowrun.Outcome{Kind: flowrun.OutOfMemory}},
		"memory, as exit code":       {flowrun.ExitCode, codes.ResourceExhausted, memory, 0, 137, flowrun.Outcome{Kind: flowrun.OutOfMemory}},
		"memory, vague exit code":    {flowrun.ExitCode, codes.Aborted, memory, 0, 0, flowrun.Outcome{Kind: flowrun.OutOfMemory}},
		"timeout, killed":            {flowrun.Signal, codes.Aborted, timeout, 9, 0, flowrun.Outcome{Kind: flowrun.TimedOut}},
		"timeout, as exit code":      {flowrun.ExitCode, codes.Aborted, timeout, 0, 143, flowrun.Outcome{Kind: flowrun.TimedOut}},
		"timeout by code alone":      {flowrun.Signal, codes.DeadlineExceeded, "Something new.", 15, 0, flowrun.Outcome{Kind: flowrun.TimedOut}},
		"a signal":                   {flowrun.Signal, codes.Aborted, signal, 11, 0, flowrun.Outcome{Kind: flowrun.Signal, Signal: 11}},
		"an exit code":               {flowrun.ExitCode, codes.Aborted, exit, 0, 7, flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 7}},
		"an exit code, not told of":  {flowrun.Platform, codes.Aborted, exit, 0, 7, flowrun.Outcome{Kind: flowrun.ExitCode, ExitCode: 7}},
		"a secret":                   {flowrun.Platform, codes.FailedPrecondition, "Secret s was not found.", 0, 0, flowrun.Outcome{Kind: flowrun.Secret}},
		"nothing":                    {flowrun.Platform, codes.OK, "", 0, 0, flowrun.Outcome{Kind: flowrun.Platform}},
		"nothing about an exit code": {flowrun.ExitCode, codes.Aborted, "Something new.", 0, 0, flowrun.Outcome{Kind: flowrun.ExitCode}},
	} {
		t.Run(name, func(t *testing.T) {
			got := withAttempt(flowrun.Outcome{Kind: test.vague, Text: test.message}, &runpb.TaskAttemptResult{
				Status: &status.Status{Code: int32(test.code), Message: test.message}, TermSignal: test.signal, ExitCode: test.exitCode,
			})
			test.want.Text = test.message
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
