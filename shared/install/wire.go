package install

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	cloudtasks "cloud.google.com/go/cloudtasks/apiv2"
	"cloud.google.com/go/firestore"
	"cloud.google.com/go/pubsub/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/containerlog"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/followup"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/lifecycle"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/publish"
	"github.com/pushpool/pushpool/shared/quota"
	"github.com/pushpool/pushpool/shared/settle"
	"github.com/pushpool/pushpool/shared/telemetry"
	"github.com/pushpool/pushpool/shared/timer"
)

// Surroundings is what a function gets from the process it runs in.
type Surroundings struct {
	// Function is the function's name, which its calls to Prefect carry; may be empty.
	Function string

	Environ []string
	Log     io.Writer
	// Memory is the ledger where LEDGER is memory: one for all functions of the process.
	Memory ledger.Ledger

	// Prefect and Google carry the calls to Prefect and to Google's APIs; nil: the network does.
	Prefect http.RoundTripper
	Google  *grpc.ClientConn
	// Random spreads what must not happen all at once; nil: rand.Float64.
	Random func() float64
}

// Logger returns the function's logger.
func (s Surroundings) Logger(c Common) *slog.Logger {
	return telemetry.NewLogger(s.Log, c.Project, c.LogLevel)
}

// httpClient makes the calls to Prefect; nil: the client's own.
func (s Surroundings) httpClient() *http.Client {
	if s.Prefect == nil {
		return nil
	}
	return &http.Client{Transport: s.Prefect}
}

// Lazy holds what is made once, on first use. A failure is not kept: the next use tries again.
type Lazy[T any] struct {
	make  func(context.Context) (T, error)
	mu    sync.Mutex
	made  bool
	value T
}

// NewLazy returns a Lazy of what make returns.
func NewLazy[T any](make func(context.Context) (T, error)) *Lazy[T] { return &Lazy[T]{make: make} }

// Get returns the value. What it holds outlives ctx.
func (l *Lazy[T]) Get(ctx context.Context) (T, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made {
		return l.value, nil
	}
	value, err := l.make(context.WithoutCancel(ctx))
	if err != nil {
		return value, err
	}
	l.value, l.made = value, true
	return value, nil
}

// Topic is a topic whose client is made on first use.
type Topic struct{ lazy *Lazy[*publish.Topic] }

// NewTopic returns the topic with the id in the installation's project.
func NewTopic(s Surroundings, c Common, id string) Topic {
	return Topic{NewLazy(func(ctx context.Context) (*publish.Topic, error) {
		client, err := pubsub.NewClient(ctx, c.Project, s.google("")...)
		if err != nil {
			return nil, fmt.Errorf("make a Pub/Sub client for project %s: %w", c.Project, err)
		}
		return publish.New(client, id), nil
	})}
}

// Publish publishes one message; see publish.Topic.
func (t Topic) Publish(ctx context.Context, data []byte, attributes map[string]string) (string, error) {
	topic, err := t.lazy.Get(ctx)
	if err != nil {
		return "", err
	}
	return topic.Publish(ctx, data, attributes)
}

// Clients is what the functions that act on flow runs work with.
type Clients struct {
	Prefect  *prefect.Client
	CloudRun *cloudrun.Client
	Ledger   ledger.Ledger
	Messages *followup.Sender
	Settler  *settle.Settler
	// Budget is Cloud Run's quotas, kept by all functions and instances together.
	Budget *quota.Budget
	// SettleConfig is what Settler was made with.
	SettleConfig settle.Config
}

// NewClients makes the clients of an installation.
func NewClients(ctx context.Context, s Surroundings, common Common, c Core, log *slog.Logger) (Clients, error) {
	var clients Clients
	var err error
	if clients.Prefect, err = prefect.New(prefect.Config{
		APIURL: c.APIURL, APIKey: string(c.APIKey), AuthString: string(c.AuthString),
		CustomHeaders: c.CustomHeaders, RequestsPerMinute: c.RequestsPerMinute,
		HTTPClient: s.httpClient(), Caller: s.Function, Random: s.Random,
	}); err != nil {
		return clients, err
	}
	if clients.CloudRun, err = cloudrun.New(ctx, s.google(c.CloudRunEmulator)...); err != nil {
		return clients, err
	}
	if clients.Ledger, err = newLedger(ctx, s, common, c); err != nil {
		return clients, err
	}
	if c.Lifecycle != "" {
		clients.Ledger = lifecycle.New(clients.Ledger, NewTopic(s, common, c.Lifecycle), common.Name, log, time.Now)
	}
	clients.Budget = quota.New(clients.Ledger, flowrun.Quota{Writes: c.WritesPerMinute, Reads: c.ReadsPerMinute, Jobs: c.MaxJobs}, time.Now)
	clients.CloudRun = clients.CloudRun.Asking(func(ctx context.Context, project, region string) error {
		return clients.Budget.Read(ctx, quota.Region(project, region))
	})
	tasks, err := cloudtasks.NewClient(ctx, s.google(c.TasksEmulator)...)
	if err != nil {
		return clients, fmt.Errorf("make a Cloud Tasks client: %w", err)
	}
	clients.Messages = followup.New(
		NewTopic(s, common, common.FlowRuns),
		timer.New(tasks, timer.Config{Queue: c.TasksQueue, PublishURL: publishURL(common), ServiceAccount: c.TasksServiceAccount}),
		clients.Ledger, time.Now,
	)
	var lines settle.Lines
	if c.LogReads > 0 && (c.LoggingEmulator != "" || c.CloudRunEmulator == "") { // an emulator's lines are not in Cloud Logging
		if lines, err = containerlog.New(ctx, c.LogView, c.LogReads, s.google(c.LoggingEmulator)...); err != nil {
			return clients, err
		}
	}
	clients.SettleConfig = settle.Config{
		Projects: AllProjects(common, c), Install: common.ID(), Regions: c.Regions,
		Lease: c.Lease, CallTimeout: CallTimeout,
		ReportGrace: c.ReportGrace, CancelGrace: c.CancelGrace, GoneAfter: c.GoneAfter,
		StartDeadline: c.StartDeadline,
		Retries:       c.Launch(), RetryDelay: c.RetryDelay, RetryMemory: c.Memory(), Executions: clients.CloudRun,
		Lines: lines, Logs: clients.Prefect, Now: time.Now, Random: s.Random,
	}
	clients.Settler = settle.New(clients.Prefect, Spending{clients.CloudRun, clients.Budget, log}, clients.Ledger, clients.Messages, log, clients.SettleConfig)
	return clients, nil
}

// AllProjects returns the projects that jobs may run in, the installation's own first.
func AllProjects(common Common, c Core) []string {
	return append([]string{common.Project}, c.Projects...)
}

func newLedger(ctx context.Context, s Surroundings, common Common, c Core) (ledger.Ledger, error) {
	if c.Ledger == "memory" {
		return s.Memory, nil
	}
	client, err := firestore.NewClientWithDatabase(ctx, common.Project, c.Database)
	if err != nil {
		return nil, fmt.Errorf("make a Firestore client for database %s: %w", c.Database, err)
	}
	return ledger.NewFirestore(client), nil
}

// google returns the options for a client of a Google API, or of its emulator where there is one.
func (s Surroundings) google(host string) []option.ClientOption {
	if s.Google != nil {
		return []option.ClientOption{option.WithGRPCConn(s.Google)}
	}
	if host == "" {
		return nil
	}
	return []option.ClientOption{
		option.WithEndpoint(host), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
}

// publishURL is where Cloud Tasks publishes to the topic flow-runs.
func publishURL(c Common) string {
	base := "https://pubsub.googleapis.com"
	if c.PubSubEmulator != "" {
		base = "http://" + c.PubSubEmulator
	}
	return fmt.Sprintf("%s/v1/projects/%s/topics/%s:publish", base, c.Project, c.FlowRuns)
}
