package local

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
)

// WriteEnv writes the variables by which the operator's commands find the stack to a file,
// for as long as the stack is up.
func (s *Stack) WriteEnv(file string) error {
	var b strings.Builder
	for _, variable := range s.Environ() {
		fmt.Fprintln(&b, variable)
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("write the variables of the local stack: %w", err)
	}
	s.later(func() { _ = os.Remove(file) })
	return nil
}

// Environ returns the variables by which the operator's commands find the stack.
func (s *Stack) Environ() []string {
	var environ []string
	for _, variable := range s.Functions.environ {
		switch name, _, _ := strings.Cut(variable, "="); name {
		case "PATH", "PREFECT_API_URL":
		default:
			environ = append(environ, variable)
		}
	}
	return append(environ,
		"PREFECT_API_URL="+s.apiURL, "PREFECT_UI_URL="+strings.TrimSuffix(s.apiURL, "/api"),
		"WEBHOOK_URL="+s.Functions.URL("webhook"), "DEAD_LETTER_SUBSCRIPTIONS="+TopicDeadLetter,
		"LEDGER_URL="+s.Functions.URL("ledger"),
	)
}

// keepDeadLetters subscribes to the dead-letter topic: a topic by itself keeps nothing.
func (s *Stack) keepDeadLetters(ctx context.Context) error {
	client, err := pubsub.NewClient(ctx, s.Project, deliverytest.ClientOptions(os.Getenv("PUBSUB_EMULATOR_HOST"))...)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	_, err = client.SubscriptionAdminClient.CreateSubscription(ctx, &pubsubpb.Subscription{
		Name:  fmt.Sprintf("projects/%s/subscriptions/%s", s.Project, TopicDeadLetter),
		Topic: fmt.Sprintf("projects/%s/topics/%s", s.Project, TopicDeadLetter), AckDeadlineSeconds: 60,
		MessageRetentionDuration: durationpb.New(7 * 24 * time.Hour),
	})
	if status.Code(err) == codes.AlreadyExists { // of another stack on the same emulator
		return nil
	}
	return err
}
