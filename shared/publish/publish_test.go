package publish_test

import (
	"context"
	"strings"
	"testing"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/publish"
)

func newTopic(t *testing.T, id string, reactors ...pstest.ServerReactorOption) (*pstest.Server, *publish.Topic) {
	t.Helper()
	server := pstest.NewServer(reactors...)
	client, err := pubsub.NewClient(t.Context(), "p", option.WithEndpoint(server.Addr), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.TopicAdminClient.CreateTopic(t.Context(), &pubsubpb.Topic{Name: "projects/p/topics/t"}); err != nil {
		t.Fatal(err)
	}
	topic := publish.New(client, id)
	t.Cleanup(func() {
		topic.Close()
		_ = client.Close()
		_ = server.Close()
	})
	return server, topic
}

func TestPublishReturnsTheIDOnceTheMessageIsStored(t *testing.T) {
	server, topic := newTopic(t, "t")
	id, err := topic.Publish(t.Context(), []byte("data"), map[string]string{"a": "b"})
	if err != nil {
		t.Fatal(err)
	}
	got := server.Message(id)
	if got == nil {
		t.Fatalf("no message %q", id)
	}
	if diff := cmp.Diff(map[string]string{"a": "b"}, got.Attributes); diff != "" || string(got.Data) != "data" {
		t.Errorf("data %q, attributes %s", got.Data, diff)
	}
}

func TestErrorsAreClassified(t *testing.T) {
	answers := func(code codes.Code) []pstest.ServerReactorOption {
		return []pstest.ServerReactorOption{pstest.WithErrorInjection("Publish", code, "injected")}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		topic    string
		reactors []pstest.ServerReactorOption
		data     string
		ctx      context.Context
		close    bool
		want     flowrun.Fault
		hint     string
	}{
		"no such topic":       {topic: "other", want: flowrun.NotFound, hint: "create the topic"},
		"no permission":       {reactors: answers(codes.PermissionDenied), want: flowrun.Refused, hint: "roles/pubsub.publisher"},
		"not valid":           {reactors: answers(codes.InvalidArgument), want: flowrun.Permanent},
		"too large":           {data: strings.Repeat("x", 11_000_000), want: flowrun.Permanent, hint: "10 MB"},
		"no answer in time":   {ctx: cancelled, want: flowrun.Unclear},
		"a closed topic":      {close: true, want: flowrun.Refused},
		"anything unforeseen": {reactors: answers(codes.DataLoss), want: flowrun.Unclear},
	} {
		t.Run(name, func(t *testing.T) {
			if test.topic == "" {
				test.topic = "t"
			}
			if test.ctx == nil {
				test.ctx = t.Context()
			}
			_, topic := newTopic(t, test.topic, test.reactors...)
			if test.close {
				if _, err := topic.Publish(t.Context(), []byte("x"), nil); err != nil {
					t.Fatal(err)
				}
				topic.Close()
			}
			_, err := topic.Publish(test.ctx, []byte("x"+test.data), nil)
			if err == nil || flowrun.FaultOf(err) != test.want {
				t.Fatalf("error %v is %s, want %s", err, flowrun.FaultOf(err), test.want)
			}
			for _, want := range []string{"publish to projects/p/topics/" + test.topic, test.hint} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}
