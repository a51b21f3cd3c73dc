package delivery_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
	"github.com/pushpool/pushpool/shared/message"
)

// TestTheREADMEsExamplesPublishRunRequests runs the examples as they are printed. The Pub/Sub is
// Google's emulator where PUSHPOOL_TEST_PUBSUB names one, and else one of our own;
// PUSHPOOL_TEST_PUBSUB_PYTHON is a Python that has google-cloud-pubsub.
func TestTheREADMEsExamplesPublishRunRequests(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	madrid := map[string]any{"city": "Madrid"}
	for language, tt := range map[string]struct {
		file    string // empty: the shell's standard input
		command func(t *testing.T) []string
		want    message.RunRequest
	}{
		"sh": {
			want:    message.RunRequest{Deployment: "weather/guide", Parameters: madrid},
			command: func(t *testing.T) []string { found(t, "gcloud"); return []string{"sh", "-eu"} },
		},
		"python": {
			file: "example.py", want: message.RunRequest{Deployment: "weather/guide", Parameters: madrid, Delay: 10 * time.Minute},
			command: func(t *testing.T) []string { return []string{found(t, os.Getenv("PUSHPOOL_TEST_PUBSUB_PYTHON"))} },
		},
		"go": {
			file: "main.go", want: message.RunRequest{Deployment: "weather/guide", Parameters: madrid, IdempotencyKey: "2026-01-01"},
			command: func(t *testing.T) []string { return []string{found(t, "go"), "run"} },
		},
	} {
		t.Run(language, func(t *testing.T) {
			blocks := regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllSubmatch(readme, -1)
			blocks = slices.DeleteFunc(blocks, func(b [][]byte) bool { return !bytes.Contains(b[1], []byte("flow-runs")) })
			if len(blocks) != 1 {
				t.Fatalf("README.md has %d blocks of %s, which publish on flow-runs, want one", len(blocks), language)
			}
			command := tt.command(t)
			addr, pull := flowRunsTopic(t)
			input := blocks[0][1]
			if tt.file != "" {
				file := filepath.Join(t.TempDir(), tt.file)
				if err := os.WriteFile(file, input, 0o600); err != nil {
					t.Fatal(err)
				}
				command, input = append(command, file), nil
			}
			publishes(t, addr, command, input)

			data, attributes := pull()
			got, err := message.Decode(data, attributes)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(any(tt.want), got); diff != "" {
				t.Errorf("published (-want +got):\n%s", diff)
			}
		})
	}
}

// found returns the program's path. Without it the example cannot be shown to work.
func found(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") == "true":
		t.Fatalf("no program %q: %v", program, err)
	default:
		t.Skipf("no program %q: %v", program, err)
	}
	return ""
}

// publishes runs the program, to which addr is Google's Pub/Sub.
func publishes(t *testing.T, addr string, command []string, input []byte) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Dir = filepath.Join("..", "..") // the Go one takes the client from this module
	cmd.Env = append(os.Environ(), "PUBSUB_EMULATOR_HOST="+addr,
		"CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB=http://"+addr+"/", "CLOUDSDK_AUTH_DISABLE_CREDENTIALS=true", "CLOUDSDK_CONFIG="+t.TempDir())
	if input != nil {
		w, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = w.Write(input)
			_ = w.Close()
		}()
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", command, err, out)
	}
}

// flowRunsTopic makes the topic that the README names. pull waits for one message of it.
func flowRunsTopic(t *testing.T) (addr string, pull func() ([]byte, map[string]string)) {
	t.Helper()
	if addr = os.Getenv("PUSHPOOL_TEST_PUBSUB"); addr == "" {
		server, err := deliverytest.NewPubSub(deliverytest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		addr = server.Addr()
	}
	client, err := pubsub.NewClient(t.Context(), "my-project", deliverytest.ClientOptions(addr)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	const topic, subscription = "projects/my-project/topics/flow-runs", "projects/my-project/subscriptions/flow-runs"
	if _, err := client.TopicAdminClient.CreateTopic(t.Context(), &pubsubpb.Topic{Name: topic}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // an emulator goes on to the next example
		_ = client.TopicAdminClient.DeleteTopic(context.WithoutCancel(t.Context()), &pubsubpb.DeleteTopicRequest{Topic: topic})
	})
	if _, err := client.SubscriptionAdminClient.CreateSubscription(t.Context(), &pubsubpb.Subscription{Name: subscription, Topic: topic}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.SubscriptionAdminClient.DeleteSubscription(context.WithoutCancel(t.Context()), &pubsubpb.DeleteSubscriptionRequest{Subscription: subscription})
	})
	return addr, func() ([]byte, map[string]string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for {
			got, err := client.SubscriptionAdminClient.Pull(ctx, &pubsubpb.PullRequest{Subscription: subscription, MaxMessages: 1})
			if err != nil {
				t.Fatalf("no message came of the example: %v", err)
			}
			for _, r := range got.GetReceivedMessages() {
				return r.GetMessage().GetData(), r.GetMessage().GetAttributes()
			}
		}
	}
}
