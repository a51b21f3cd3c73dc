package local

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
	"github.com/pushpool/pushpool/shared/publish"
	"github.com/pushpool/pushpool/shared/timer/timertest"
)

// startGoogle starts what stands for Google Cloud and returns the functions' environment.
func (s *Stack) startGoogle(ctx context.Context, containers []string) (environ []string, err error) {
	set := func(name, value string) { environ = append(environ, name+"="+value) }
	pubsubAddr := os.Getenv("PUBSUB_EMULATOR_HOST")
	if pubsubAddr == "" {
		server, err := deliverytest.NewPubSub(deliverytest.Options{})
		if err != nil {
			return nil, err
		}
		s.later(func() { _ = server.Close() })
		pubsubAddr = server.Addr()
		// The topics' clients in this process find it by the same variable.
		if err := os.Setenv("PUBSUB_EMULATOR_HOST", pubsubAddr); err != nil {
			return nil, err
		}
		s.later(func() { _ = os.Unsetenv("PUBSUB_EMULATOR_HOST") })
	}
	s.note("Pub/Sub", "PUBSUB_EMULATOR_HOST="+pubsubAddr)
	set("PUBSUB_EMULATOR_HOST", pubsubAddr)

	tasks := os.Getenv("CLOUD_TASKS_EMULATOR_HOST")
	if tasks == "" {
		server, err := timertest.New("")
		if err != nil {
			return nil, err
		}
		s.later(server.Close)
		s.Tasks = server
		tasks = server.Addr()
	}
	s.note("Cloud Tasks", "CLOUD_TASKS_EMULATOR_HOST="+tasks)
	set("CLOUD_TASKS_EMULATOR_HOST", tasks)

	client, err := pubsub.NewClient(context.WithoutCancel(ctx), s.Project, deliverytest.ClientOptions(pubsubAddr)...)
	if err != nil {
		return nil, err
	}
	s.later(func() { _ = client.Close() })
	// The others come with their subscriptions; to this one nobody is subscribed.
	_, err = client.TopicAdminClient.CreateTopic(ctx, &pubsubpb.Topic{Name: "projects/" + s.Project + "/topics/" + TopicLifecycle})
	if err != nil && status.Code(err) != codes.AlreadyExists {
		return nil, fmt.Errorf("create the topic %s: %w", TopicLifecycle, err)
	}
	s.FlowRuns = publish.New(client, TopicFlowRuns)
	s.later(s.FlowRuns.Close)
	executions := publish.New(client, TopicExecutions)
	s.later(executions.Close)

	cloudRun := os.Getenv("CLOUD_RUN_EMULATOR_HOST")
	if cloudRun == "" {
		s.CloudRun, err = cloudruntest.Start(cloudruntest.Options{
			Env: containers, Dir: s.dir, EntryDelay: s.EntryDelay, Output: s.Output, Delays: s.Delays,
			WritesPerMinute: s.WritesPerMinute, MaxJobs: s.MaxJobs, MaxExecutions: s.MaxExecutions,
			Publish: func(ctx context.Context, entry []byte) error {
				_, err := executions.Publish(ctx, entry, nil)
				return err
			},
			Intercept: func(_ context.Context, method string, phase cloudruntest.Phase, _ any) error {
				if f := s.onCall.Load(); f != nil {
					return (*f)(method, phase)
				}
				return nil
			},
		})
		if err != nil {
			return nil, err
		}
		s.later(s.CloudRun.Close)
		cloudRun = s.CloudRun.Addr()
	}
	s.note("Cloud Run", "CLOUD_RUN_EMULATOR_HOST="+cloudRun)
	set("CLOUD_RUN_EMULATOR_HOST", cloudRun)
	if s.CloudRun != nil {
		set("CLOUD_LOGGING_EMULATOR_HOST", cloudRun)
	}

	ledger := "memory"
	if host := os.Getenv("FIRESTORE_EMULATOR_HOST"); host != "" {
		ledger = "firestore"
		s.note("Firestore", "FIRESTORE_EMULATOR_HOST="+host)
		set("FIRESTORE_EMULATOR_HOST", host)
	}
	set("LEDGER", ledger)
	set("GOOGLE_CLOUD_PROJECT", s.Project)
	set("INSTALL_NAME", s.Name)
	set("WORK_POOLS", WorkPool)
	set("REGIONS", Region)
	set("TASKS_QUEUE", fmt.Sprintf("projects/%s/locations/%s/queues/pushpool", s.Project, Region))
	set("DEAD_LETTER_TOPIC", TopicDeadLetter)
	set("TOPIC_LIFECYCLE", TopicLifecycle)
	set("WEBHOOK_SECRETS", secret)
	functionsURL, err := s.counted()
	if err != nil {
		return nil, err
	}
	set("PREFECT_API_URL", functionsURL)
	set("CONTAINER_PREFECT_API_URL", s.apiURL)
	set("PREFECT_REQUESTS_PER_MINUTE", "60000") // a server of one's own has no limit
	set("LOG_READS_PER_MINUTE", "60")           // nobody else reads this project's logs
	// Neither has an emulator, unless it was given one.
	set("CLOUD_RUN_WRITES_PER_MINUTE", strconv.Itoa(cmp.Or(s.WritesPerMinute, 60_000)))
	set("CLOUD_RUN_READS_PER_MINUTE", "60000")
	set("CLOUD_RUN_MAX_JOBS", strconv.Itoa(cmp.Or(s.MaxJobs, 1000)))
	set("LAUNCH_MODE", cmp.Or(s.LaunchMode, "job"))
	set("SLOTS", "100")
	set("RETRY_DELAY", "1s") // so that nobody has to watch it
	set("REPORT_GRACE", "2s")
	set("GONE_AFTER", "2s")
	set("PUSHPOOL_SHOW_PROCESS", "true")
	set("PATH", os.Getenv("PATH"))
	return environ, nil
}

// subscribe lets the topics push to the functions. Back-off begins at a second instead of
// ten, so that nobody has to watch it.
func (s *Stack) subscribe(ctx context.Context) error {
	for topic, function := range map[string]string{TopicFlowRuns: "dispatcher", TopicExecutions: "finalizer"} {
		pusher, err := deliverytest.NewPusher(ctx, deliverytest.PusherOptions{
			Addr: os.Getenv("PUBSUB_EMULATOR_HOST"), Project: s.Project, Topic: topic, Subscription: topic,
			Endpoint: "http://" + s.push + "/" + function, MinBackoff: time.Second, MaxBackoff: 10 * time.Second,
			MaxAttempts: 100, DeadLetterTopic: TopicDeadLetter, Timeout: 90 * time.Second,
			Fault: func(p deliverytest.Push) deliverytest.Fault {
				if f := s.onPush.Load(); f != nil && topic == TopicFlowRuns {
					return (*f)(p)
				}
				return deliverytest.Fault{}
			},
		})
		if err != nil {
			return err
		}
		s.later(func() { _ = pusher.Close() })
		s.pushes[topic] = pusher
	}
	return s.keepDeadLetters(ctx)
}
