// Package install is what the functions of one installation have in common: configuration and clients.
package install

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/flowrun"
)

// Secret is a value that never prints.
type Secret string

const hidden = "(secret)"

// Format implements fmt.Formatter. fmt.Stringer alone would leave verbs that do not fit, %d
// for one, to print the value.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// String implements fmt.Stringer.
func (Secret) String() string { return hidden }

// MarshalText implements encoding.TextMarshaler, for JSON.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// Common is what every function needs. The tag expect completes an error's "write …".
type Common struct {
	Project  string     `env:"GOOGLE_CLOUD_PROJECT,notEmpty" expect:"the id of the installation's Google Cloud project"`
	Name     string     `env:"INSTALL_NAME" envDefault:"pushpool" expect:"the installation's name: lower-case letters, digits and dashes, at most 30, a letter first"`
	LogLevel slog.Level `env:"LOG_LEVEL" envDefault:"INFO" expect:"DEBUG, INFO, WARN or ERROR"`
	FlowRuns string     `env:"TOPIC_FLOW_RUNS" envDefault:"flow-runs" expect:"the id of the topic that the dispatcher is subscribed to"`

	// PubSubEmulator is host:port. The client library reads the same variable by itself.
	PubSubEmulator string `env:"PUBSUB_EMULATOR_HOST" expect:"host:port of a Pub/Sub emulator"`
}

// ID is the installation's id. Launch ids are made of it.
func (c Common) ID() string { return c.Project + "/" + c.Name }

var installName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,29}$`)

// Validate returns what is wrong with values that could be read.
func (c Common) Validate() error {
	if !installName.MatchString(c.Name) {
		return Invalid[Common]("INSTALL_NAME", fmt.Sprintf("%q", c.Name))
	}
	return nil
}

// Subscriber is what a function needs that a subscription pushes to.
type Subscriber struct {
	DeadLetter  string `env:"DEAD_LETTER_TOPIC,notEmpty" expect:"the id of the topic for messages that can never be processed"`
	MaxAttempts int    `env:"MAX_DELIVERY_ATTEMPTS" envDefault:"100" expect:"max_delivery_attempts of the function's subscription, 5 to 100"`
}

// Validate returns what is wrong with values that could be read.
func (s Subscriber) Validate() error {
	if s.MaxAttempts < 5 || s.MaxAttempts > 100 {
		return Invalid[Subscriber]("MAX_DELIVERY_ATTEMPTS", fmt.Sprint(s.MaxAttempts))
	}
	return nil
}

// Core is what the functions need that act on flow runs.
type Core struct {
	Prefect
	Deadlines
	Retrying
	WorkPools []string `env:"WORK_POOLS,notEmpty" expect:"the names of the work pools to serve, separated by commas"`
	Regions   []string `env:"REGIONS,notEmpty" expect:"the regions that jobs may run in, separated by commas, such as europe-west1"`

	// Projects are other projects that a work pool's credentials may name.
	Projects []string `env:"PROJECTS" expect:"the ids of further projects that work pools may launch in, separated by commas"`

	TasksQueue          string `env:"TASKS_QUEUE,notEmpty" expect:"the full name of the Cloud Tasks queue, projects/P/locations/L/queues/Q"`
	TasksServiceAccount string `env:"TASKS_SERVICE_ACCOUNT" expect:"the e-mail of the service account with which Cloud Tasks publishes"`

	Lifecycle string `env:"TOPIC_LIFECYCLE" expect:"the id of the topic on which each step of a launch is told; leave it out for none"`

	Ledger   string `env:"LEDGER" envDefault:"firestore" expect:"firestore, or memory for all functions in one process"`
	Database string `env:"FIRESTORE_DATABASE" envDefault:"(default)" expect:"the id of the Firestore database"`

	// Quotas are Cloud Run's for each region, and shared by everything in the project.
	WritesPerMinute int `env:"CLOUD_RUN_WRITES_PER_MINUTE" envDefault:"180" expect:"the project's quota of write and of job run requests per minute and region, the smaller one, 60 or more"`
	ReadsPerMinute  int `env:"CLOUD_RUN_READS_PER_MINUTE" envDefault:"3000" expect:"the project's quota of read requests per minute and region, 60 or more"`
	MaxJobs         int `env:"CLOUD_RUN_MAX_JOBS" envDefault:"1000" expect:"the project's quota of jobs per region, 1 or more"`

	CloudRunEmulator string `env:"CLOUD_RUN_EMULATOR_HOST" expect:"host:port of a Cloud Run emulator"`
	TasksEmulator    string `env:"CLOUD_TASKS_EMULATOR_HOST" expect:"host:port of a Cloud Tasks emulator"`

	// LogReads copy a container's last lines to its flow run's log, where that ended badly.
	LogView         string `env:"LOG_VIEW" envDefault:"locations/global/buckets/_Default/views/_Default" expect:"the log view that has what containers write, as each project has it: locations/LOCATION/buckets/BUCKET/views/VIEW"`
	LogReads        int    `env:"LOG_READS_PER_MINUTE" envDefault:"10" expect:"how often an instance may read Cloud Logging in a minute, of the project's 60 that people share; 0: never"`
	LoggingEmulator string `env:"CLOUD_LOGGING_EMULATOR_HOST" expect:"host:port of a Cloud Logging emulator"`
}

// Prefect says which Prefect API the functions call.
type Prefect struct {
	APIURL            string            `env:"PREFECT_API_URL,notEmpty" expect:"the URL of Prefect's API, such as https://prefect.example.com/api"`
	APIKey            Secret            `env:"PREFECT_API_KEY" expect:"an API key of Prefect Cloud"`
	AuthString        Secret            `env:"PREFECT_API_AUTH_STRING" expect:"USER:PASSWORD of a Prefect server"`
	CustomHeaders     map[string]string `env:"PREFECT_CLIENT_CUSTOM_HEADERS" expect:"a JSON object of names and values"`
	RequestsPerMinute int               `env:"PREFECT_REQUESTS_PER_MINUTE" envDefault:"500" expect:"how many calls one instance may make in a minute, 1 or more"`
}

// Validate returns what is wrong with values that could be read. It repeats no part of the
// URL, which may hold a password.
func (p Prefect) Validate() error {
	var errs []error
	u, err := url.Parse(p.APIURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		errs = append(errs, Invalid[Prefect]("PREFECT_API_URL", "not an http or https address without query"))
	}
	if p.AuthString != "" && !strings.Contains(string(p.AuthString), ":") {
		errs = append(errs, Invalid[Prefect]("PREFECT_API_AUTH_STRING", "there is no colon in it"))
	}
	if p.RequestsPerMinute < 1 {
		errs = append(errs, Invalid[Prefect]("PREFECT_REQUESTS_PER_MINUTE", fmt.Sprint(p.RequestsPerMinute)))
	}
	return errors.Join(errs...)
}

// Deadlines bound every wait. The defaults suit a deployed installation; a local stack shortens them.
type Deadlines struct {
	// Lease is how long one handler may write about a flow run. It is longer than a delivery takes.
	Lease time.Duration `env:"LEASE" envDefault:"75s" expect:"a duration of 45s or more"`
	// LookAhead is how far ahead timers are set: two sweeps and a half, so that one may fail.
	LookAhead time.Duration `env:"LOOK_AHEAD" envDefault:"150s" expect:"a duration longer than two intervals of the reconciler"`
	// CancelGrace: a flow under `prefect flow-run execute` ends itself some seconds after it was cancelled (scripts/bench fast-start measures it), hooks come on top.
	CancelGrace time.Duration `env:"CANCEL_GRACE" envDefault:"60s" expect:"a duration such as 60s"`
	// ReportGrace is how long a flow run may stay RUNNING after its container exited with 0.
	ReportGrace time.Duration `env:"REPORT_GRACE" envDefault:"30s" expect:"a duration such as 30s"`
	// GoneAfter is how long an execution has to be missing before it counts as gone.
	GoneAfter time.Duration `env:"GONE_AFTER" envDefault:"30s" expect:"a duration such as 30s"`
	// StartDeadline is how long a launch may take to get its flow run to RUNNING. The first
	// start of a large image takes minutes, and so may a flow's pull steps.
	StartDeadline time.Duration `env:"START_DEADLINE" envDefault:"15m" expect:"a duration of 1m or more, such as 15m"`
}

// Retrying says how often flow runs are launched again for how their executions end, where
// their job variables say nothing else.
type Retrying struct {
	Retries      JSONObject    `env:"RETRIES" envDefault:"{\"platform\": 3, \"start\": 2, \"out_of_memory\": 1}" expect:"a JSON object with numbers of 0 to 10 for some of platform, start, out_of_memory, exit_code, signal and timed_out"`
	RetryStarted bool          `env:"RETRY_STARTED" envDefault:"false" expect:"true where flows may be executed again that had begun to run, else false"`
	RetryDelay   time.Duration `env:"RETRY_DELAY" envDefault:"30s" expect:"a duration of at least 1s, such as 30s: before the first retry, then twice as long each time"`
	RetryMemory  string        `env:"RETRY_MEMORY" envDefault:"32Gi" expect:"the most memory that a retry after running out of it may have, such as 8Gi"`
}

// JSONObject is a JSON object, with numbers as json.Number.
type JSONObject map[string]any

// Launch returns the budgets.
func (r Retrying) Launch() flowrun.Retries {
	budget, _ := flowrun.Retries{}.With(map[string]any(r.Retries))
	return flowrun.Retries{Budget: budget, Started: r.RetryStarted}
}

// Memory returns RetryMemory in bytes.
func (r Retrying) Memory() int64 {
	bytes, _ := cloudrun.ParseMemory(r.RetryMemory)
	return bytes
}

// Validate returns what is wrong with values that could be read.
func (r Retrying) Validate() error {
	var errs []error
	if _, ok := (flowrun.Retries{}).With(map[string]any(r.Retries)); !ok {
		errs = append(errs, Invalid[Retrying]("RETRIES", "there is something else in it"))
	}
	if r.RetryDelay < time.Second {
		errs = append(errs, Invalid[Retrying]("RETRY_DELAY", r.RetryDelay.String()))
	}
	if _, ok := cloudrun.ParseMemory(r.RetryMemory); !ok {
		errs = append(errs, Invalid[Retrying]("RETRY_MEMORY", fmt.Sprintf("%q", r.RetryMemory)))
	}
	return errors.Join(errs...)
}

// CallTimeout bounds one call to Prefect or Cloud Run, and is the part of a lease in which no call begins.
const CallTimeout = 20 * time.Second

// Validate returns what is wrong with values that could be read.
func (d Deadlines) Validate() error {
	var errs []error
	if d.Lease < 45*time.Second {
		errs = append(errs, Invalid[Deadlines]("LEASE", d.Lease.String()))
	}
	if d.StartDeadline < time.Minute {
		errs = append(errs, Invalid[Deadlines]("START_DEADLINE", d.StartDeadline.String()))
	}
	if d.LookAhead <= 0 {
		errs = append(errs, Invalid[Deadlines]("LOOK_AHEAD", d.LookAhead.String()))
	}
	for name, grace := range map[string]time.Duration{
		"CANCEL_GRACE": d.CancelGrace, "REPORT_GRACE": d.ReportGrace, "GONE_AFTER": d.GoneAfter,
	} {
		if grace < 0 {
			errs = append(errs, Invalid[Deadlines](name, grace.String()))
		}
	}
	return errors.Join(errs...)
}

var queueName = regexp.MustCompile(`^projects/[^/]+/locations/[^/]+/queues/[^/]+$`)

var logView = regexp.MustCompile(`^locations/[^/]+/buckets/[^/]+/views/[^/]+$`)

// Validate returns what is wrong with values that could be read, its parts' included.
func (c Core) Validate() error {
	errs := []error{c.Prefect.Validate(), c.Deadlines.Validate(), c.Retrying.Validate()}
	for name, list := range map[string][]string{"WORK_POOLS": c.WorkPools, "REGIONS": c.Regions, "PROJECTS": c.Projects} {
		if slices.ContainsFunc(list, func(s string) bool { return s == "" || strings.TrimSpace(s) != s }) {
			errs = append(errs, Invalid[Core](name, fmt.Sprintf("one of %q is empty or has space around it", list)))
		}
	}
	if !queueName.MatchString(c.TasksQueue) {
		errs = append(errs, Invalid[Core]("TASKS_QUEUE", fmt.Sprintf("%q", c.TasksQueue)))
	}
	if c.WritesPerMinute < 60 {
		errs = append(errs, Invalid[Core]("CLOUD_RUN_WRITES_PER_MINUTE", fmt.Sprint(c.WritesPerMinute)))
	}
	if c.ReadsPerMinute < 60 {
		errs = append(errs, Invalid[Core]("CLOUD_RUN_READS_PER_MINUTE", fmt.Sprint(c.ReadsPerMinute)))
	}
	if c.MaxJobs < 1 {
		errs = append(errs, Invalid[Core]("CLOUD_RUN_MAX_JOBS", fmt.Sprint(c.MaxJobs)))
	}
	if c.TasksServiceAccount == "" && c.TasksEmulator == "" {
		errs = append(errs, Invalid[Core]("TASKS_SERVICE_ACCOUNT", "not set"))
	}
	if !logView.MatchString(c.LogView) {
		errs = append(errs, Invalid[Core]("LOG_VIEW", fmt.Sprintf("%q", c.LogView)))
	}
	if c.LogReads < 0 || c.LogReads > 60 {
		errs = append(errs, Invalid[Core]("LOG_READS_PER_MINUTE", fmt.Sprint(c.LogReads)))
	}
	if c.Ledger != "firestore" && c.Ledger != "memory" {
		errs = append(errs, Invalid[Core]("LEDGER", fmt.Sprintf("%q", c.Ledger)))
	}
	return errors.Join(errs...)
}

// Parse reads a function's configuration from its environment. The error names every
// variable that is missing or wrong, one in each line, and what to write; never a value
// that may be secret.
func Parse[T interface{ Validate() error }](environ []string) (T, error) {
	cfg, err := env.ParseAsWithOptions[T](env.Options{
		Environment: env.ToMap(environ),
		FuncMap: map[reflect.Type]env.ParserFunc{
			reflect.TypeFor[map[string]string](): func(v string) (any, error) { return jsonStrings(v) },
			reflect.TypeFor[JSONObject]():        func(v string) (any, error) { return jsonObject(v) },
		},
	})
	errs := map[string]error{}
	fields := fieldsOf(reflect.TypeFor[T]())
	var all env.AggregateError
	if errors.As(err, &all) {
		for _, e := range all.Errors {
			name, problem := describe(e, fields)
			errs[name] = fmt.Errorf("%s: %s; write %s", name, problem, fields[name].Tag.Get("expect"))
		}
	} else if err != nil {
		errs[""] = err
	}
	for _, line := range flatten(cfg.Validate()) {
		var i *invalidVariable
		if errors.As(line, &i) && errs[i.name] == nil {
			errs[i.name] = line
		}
	}
	sorted := make([]error, 0, len(errs))
	for _, name := range slices.Sorted(maps.Keys(errs)) {
		sorted = append(sorted, errs[name])
	}
	return cfg, errors.Join(sorted...)
}

// invalidVariable is an error of a variable's value.
type invalidVariable struct{ name, problem, expect string }

func (e *invalidVariable) Error() string {
	return fmt.Sprintf("%s: %s; write %s", e.name, e.problem, e.expect)
}

// Invalid is the error of a variable of T whose value is not as its tag expect says.
// problem must not show a secret.
func Invalid[T any](name, problem string) error {
	return &invalidVariable{name, problem, fieldsOf(reflect.TypeFor[T]())[name].Tag.Get("expect")}
}
