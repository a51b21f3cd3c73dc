// Package operator is whom the operator's commands talk to: one installation, as its functions are configured.
package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"cloud.google.com/go/pubsub/v2"
	"github.com/joho/godotenv"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/ledger"
)

// Config is an installation as the operator's commands see it: the configuration of its
// functions, and a few addresses that no function needs. `terraform output -raw operator_env`
// prints it, and the local stack writes it to a file.
type Config struct {
	install.Common
	install.Core

	Executions              string         `env:"TOPIC_EXECUTIONS" envDefault:"executions" expect:"the id of the topic that the finalizer is subscribed to"`
	DeadLetterSubscriptions []string       `env:"DEAD_LETTER_SUBSCRIPTIONS" expect:"the ids of the subscriptions that dead letters are pulled from, separated by commas"`
	WebhookURL              string         `env:"WEBHOOK_URL" expect:"the address of the function webhook"`
	WebhookSecrets          install.Secret `env:"WEBHOOK_SECRETS" expect:"the secrets that Prefect may send to the webhook, separated by commas"`
	ContainerKeySecret      string         `env:"CONTAINER_PREFECT_API_KEY_SECRET" expect:"the secret with the API key for flows, SECRET or SECRET:VERSION"`
	ContainerAuthSecret     string         `env:"CONTAINER_PREFECT_API_AUTH_STRING_SECRET" expect:"the secret with the auth string for flows, SECRET or SECRET:VERSION"`
	SourceBucket            string         `env:"SOURCE_BUCKET" expect:"the bucket that the functions are built from"`
	PrefectUIURL            string         `env:"PREFECT_UI_URL" expect:"the address of Prefect's user interface, such as https://prefect.example.com"`

	// Of work pools that pushpool connect makes.
	FlowServiceAccount string   `env:"FLOW_SERVICE_ACCOUNT" expect:"the e-mail of the service account that flows run as, in work pools that pushpool connect makes"`
	FlowNetwork        string   `env:"FLOW_NETWORK" expect:"the network by which flows reach a private Prefect server (Direct VPC egress), in work pools that pushpool connect makes"`
	FlowSubnetwork     string   `env:"FLOW_SUBNETWORK" expect:"the subnetwork of FLOW_NETWORK"`
	FlowNetworkTags    []string `env:"FLOW_NETWORK_TAGS" expect:"network tags of flows in FLOW_NETWORK, separated by commas"`

	// Environ is what the configuration was read from.
	Environ []string

	LedgerURL string `env:"LEDGER_URL" expect:"where pushpool serve shows the records of a ledger in memory, such as http://127.0.0.1:8080/ledger"`
}

// Validate returns what is wrong with values that could be read.
func (c Config) Validate() error { return errors.Join(c.Common.Validate(), c.Core.Validate()) }

// UIURL is the address of Prefect's user interface; a guess from the API's where it is not set.
func (c Config) UIURL() string {
	if c.PrefectUIURL != "" {
		return strings.TrimSuffix(c.PrefectUIURL, "/")
	}
	if account, ok := strings.CutPrefix(c.APIURL, "https://api.prefect.cloud/api/accounts/"); ok {
		if a, w, ok := strings.Cut(account, "/workspaces/"); ok {
			return "https://app.prefect.cloud/account/" + a + "/workspace/" + w
		}
	}
	return strings.TrimSuffix(c.APIURL, "/api")
}

// DefaultEnvFile is read where no other file is named and it exists.
const DefaultEnvFile = ".pushpool.env"

// Load reads the configuration from the environment and, for what that does not set, from a
// file of NAME=VALUE lines. An empty name stands for DefaultEnvFile, which need not exist.
func Load(file string, environ []string) (Config, error) {
	values, err := godotenv.Read(orDefault(file))
	switch {
	case err == nil:
	case file == "" && errors.Is(err, fs.ErrNotExist):
	default:
		return Config{}, fmt.Errorf("read the installation's variables from %s: %w; write NAME=VALUE lines, as `terraform output -raw operator_env` prints them", orDefault(file), err)
	}
	if values == nil {
		values = map[string]string{}
	}
	for _, variable := range environ {
		if name, value, ok := strings.Cut(variable, "="); ok {
			values[name] = value
		}
	}
	merged := make([]string, 0, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		merged = append(merged, name+"="+values[name])
	}
	cfg, err := install.Parse[Config](merged)
	cfg.Environ = merged
	if err != nil {
		return cfg, fmt.Errorf("which installation is meant is not clear; set these in the environment or in a file for --env-file (`terraform output -raw operator_env` prints them, `pushpool local` writes them):\n%w", err)
	}
	// Google's client libraries find emulators by the process's own environment.
	for _, name := range []string{"PUBSUB_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST"} {
		if value := values[name]; value != "" {
			if err := os.Setenv(name, value); err != nil {
				return cfg, err
			}
		}
	}
	return cfg, nil
}

func orDefault(file string) string {
	if file == "" {
		return DefaultEnvFile
	}
	return file
}

// Records reads the ledger.
type Records interface {
	// Get returns the flow run's record, and one with the id alone where there is none.
	Get(ctx context.Context, flowRunID string) (flowrun.Record, error)
}

// Installation is an installation that commands work on.
type Installation struct {
	Config
	install.Clients
	// Records is the ledger, to be read.
	Records Records
}

// Open makes the clients of an installation. What they log goes to log.
func Open(ctx context.Context, cfg Config, log io.Writer) (*Installation, error) {
	memory := ledger.NewMemory()
	s := install.Surroundings{Log: log, Memory: memory}
	clients, err := install.NewClients(ctx, s, cfg.Common, cfg.Core, s.Logger(cfg.Common))
	if err != nil {
		return nil, err
	}
	in := &Installation{Config: cfg, Clients: clients, Records: clients.Ledger}
	if cfg.Ledger == "memory" && cfg.LedgerURL != "" {
		in.Records = remote{cfg.LedgerURL}
	}
	return in, nil
}

// PubSub makes a client of the installation's Pub/Sub. Close it.
func (in *Installation) PubSub(ctx context.Context) (*pubsub.Client, error) {
	client, err := pubsub.NewClient(ctx, in.Project)
	if err != nil {
		return nil, fmt.Errorf("make a Pub/Sub client for project %s: %w", in.Project, err)
	}
	return client, nil
}
