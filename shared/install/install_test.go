package install_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pushpool/pushpool/shared/install"
)

// everything is a configuration with all parts that functions have in common.
type everything struct {
	install.Common
	install.Subscriber
	install.Core
}

func (e everything) Validate() error {
	return errors.Join(e.Common.Validate(), e.Subscriber.Validate(), e.Core.Validate())
}

// environ is complete; the given variables are changed in it.
func environ(changed ...string) []string {
	return append([]string{
		"GOOGLE_CLOUD_PROJECT=p", "DEAD_LETTER_TOPIC=dead", "PREFECT_API_URL=https://prefect.example.com/api", "WORK_POOLS=etl,ml",
		"REGIONS=europe-west1", "TASKS_QUEUE=projects/p/locations/l/queues/q", "TASKS_SERVICE_ACCOUNT=tasks@p.iam.gserviceaccount.com",
	}, changed...)
}

func TestDefaultsAreWhatADeployedInstallationNeeds(t *testing.T) {
	got, err := install.Parse[everything](environ(`PREFECT_CLIENT_CUSTOM_HEADERS={"X-Team":"etl"}`, "LOG_LEVEL=debug", "PREFECT_API_KEY=pnu_x"))
	if err != nil {
		t.Fatal(err)
	}
	want := everything{
		Common:     install.Common{Project: "p", Name: "pushpool", LogLevel: slog.LevelDebug, FlowRuns: "flow-runs"},
		Subscriber: install.Subscriber{DeadLetter: "dead", MaxAttempts: 100},
		Core: install.Core{
			Prefect: install.Prefect{
				APIURL: "https://prefect.example.com/api", APIKey: "pnu_x", CustomHeaders: map[string]string{"X-Team": "etl"}, RequestsPerMinute: 500,
			},
			Deadlines: install.Deadlines{
				Lease: 75 * time.Second, LookAhead: 150 * time.Second, CancelGrace: time.Minute, ReportGrace: 30 * time.Second, GoneAfter: 30 * time.Second, StartDeadline: 15 * time.Minute,
			},
			Retrying: install.Retrying{
				Retries:    install.JSONObject{"platform": json.Number("3"), "start": json.Number("2"), "out_of_memory": json.Number("1")},
				RetryDelay: 30 * time.Second, RetryMemory: "32Gi",
			},
			WorkPools: []string{"etl", "ml"}, Regions: []string{"europe-west1"}, TasksQueue: "projects/p/locations/l/queues/q",
			TasksServiceAccount: "tasks@p.iam.gserviceaccount.com", LogView: "locations/global/buckets/_Default/views/_Default", LogReads: 10, Ledger: "firestore", Database: "(default)", WritesPerMinute: 180, ReadsPerMinute: 3000, MaxJobs: 1000,
		},
	}
	// Firestore's, Cloud Run's and the tasks' emulator are empty.
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(install.Secret(""))); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if got.Launch().String() != "3-2-1-0-0-0-no" || got.Memory() != 32<<30 {
		t.Errorf("retries %s, with memory up to %d", got.Launch(), got.Memory())
	}
	if got.ID() != "p/pushpool" {
		t.Errorf("the installation is %s", got.ID())
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	for rule, tt := range map[string]struct {
		set  string
		want string // the whole error
	}{
		"not a number":                      {"MAX_DELIVERY_ATTEMPTS=many", "MAX_DELIVERY_ATTEMPTS: cannot be read as int; write max_delivery_attempts of the function's subscription, 5 to 100"},
		"a number out of bounds":            {"MAX_DELIVERY_ATTEMPTS=4", "MAX_DELIVERY_ATTEMPTS: 4; write max_delivery_attempts of the function's subscription, 5 to 100"},
		"not a duration":                    {"LEASE=75", "LEASE: cannot be read as time.Duration; write a duration of 45s or more"},
		"a duration out of bounds":          {"LEASE=44s", "LEASE: 44s; write a duration of 45s or more"},
		"a negative grace":                  {"CANCEL_GRACE=-1s", "CANCEL_GRACE: -1s; write a duration such as 60s"},
		"no look-ahead":                     {"LOOK_AHEAD=0s", "LOOK_AHEAD: 0s; write a duration longer than two intervals of the reconciler"},
		"a quota too small to share":        {"CLOUD_RUN_WRITES_PER_MINUTE=59", "CLOUD_RUN_WRITES_PER_MINUTE: 59; write the project's quota of write and of job run requests per minute and region, the smaller one, 60 or more"},
		"no jobs":                           {"CLOUD_RUN_MAX_JOBS=0", "CLOUD_RUN_MAX_JOBS: 0; write the project's quota of jobs per region, 1 or more"},
		"not JSON":                          {"PREFECT_CLIENT_CUSTOM_HEADERS=X-Key: hunter2", "PREFECT_CLIENT_CUSTOM_HEADERS: cannot be read as map[string]string; write a JSON object of names and values"},
		"JSON, but no object of strings":    {`PREFECT_CLIENT_CUSTOM_HEADERS={"X-Key":{"hunter2":1}}`, "PREFECT_CLIENT_CUSTOM_HEADERS: cannot be read as map[string]string; write a JSON object of names and values"},
		"budgets that are no object":        {`RETRIES=3`, "RETRIES: cannot be read as install.JSONObject; write a JSON object with numbers of 0 to 10 for some of platform, start, out_of_memory, exit_code, signal and timed_out"},
		"a budget of no kind":               {`RETRIES={"oom": 3}`, "RETRIES: there is something else in it; write a JSON object with numbers of 0 to 10 for some of platform, start, out_of_memory, exit_code, signal and timed_out"},
		"a budget out of bounds":            {`RETRIES={"platform": 11}`, "RETRIES: there is something else in it; write a JSON object with numbers of 0 to 10 for some of platform, start, out_of_memory, exit_code, signal and timed_out"},
		"no yes and no no":                  {"RETRY_STARTED=perhaps", "RETRY_STARTED: cannot be read as bool; write true where flows may be executed again that had begun to run, else false"},
		"a retry without delay":             {"RETRY_DELAY=0s", "RETRY_DELAY: 0s; write a duration of at least 1s, such as 30s: before the first retry, then twice as long each time"},
		"memory without a unit":             {"RETRY_MEMORY=8", `RETRY_MEMORY: "8"; write the most memory that a retry after running out of it may have, such as 8Gi`},
		"a view with its project":           {"LOG_VIEW=projects/p/locations/global/buckets/b/views/v", `LOG_VIEW: "projects/p/locations/global/buckets/b/views/v"; write the log view that has what containers write, as each project has it: locations/LOCATION/buckets/BUCKET/views/VIEW`},
		"more reads than there are":         {"LOG_READS_PER_MINUTE=61", "LOG_READS_PER_MINUTE: 61; write how often an instance may read Cloud Logging in a minute, of the project's 60 that people share; 0: never"},
		"not a level":                       {"LOG_LEVEL=LOUD", "LOG_LEVEL: cannot be read as slog.Level; write DEBUG, INFO, WARN or ERROR"},
		"a name that no label can hold":     {"INSTALL_NAME=Push Pool", `INSTALL_NAME: "Push Pool"; write the installation's name: lower-case letters, digits and dashes, at most 30, a letter first`},
		"a required one is empty":           {"GOOGLE_CLOUD_PROJECT=", "GOOGLE_CLOUD_PROJECT: not set; write the id of the installation's Google Cloud project"},
		"a URL without scheme":              {"PREFECT_API_URL=me:hunter2@prefect/api", "PREFECT_API_URL: not an http or https address without query; write the URL of Prefect's API, such as https://prefect.example.com/api"},
		"a URL of a page":                   {"PREFECT_API_URL=https://prefect/api?token=hunter2", "PREFECT_API_URL: not an http or https address without query; write the URL of Prefect's API, such as https://prefect.example.com/api"},
		"an auth string without a password": {"PREFECT_API_AUTH_STRING=hunter2", "PREFECT_API_AUTH_STRING: there is no colon in it; write USER:PASSWORD of a Prefect server"},
		"no calls at all":                   {"PREFECT_REQUESTS_PER_MINUTE=0", "PREFECT_REQUESTS_PER_MINUTE: 0; write how many calls one instance may make in a minute, 1 or more"},
		"a space in a list":                 {"WORK_POOLS=etl, ml", `WORK_POOLS: one of ["etl" " ml"] is empty or has space around it; write the names of the work pools to serve, separated by commas`},
		"a comma at the end of a list":      {"REGIONS=us-east1,", `REGIONS: one of ["us-east1" ""] is empty or has space around it; write the regions that jobs may run in, separated by commas, such as europe-west1`},
		"a queue by its short name":         {"TASKS_QUEUE=q", `TASKS_QUEUE: "q"; write the full name of the Cloud Tasks queue, projects/P/locations/L/queues/Q`},
		"nobody to publish for Cloud Tasks": {"TASKS_SERVICE_ACCOUNT=", "TASKS_SERVICE_ACCOUNT: not set; write the e-mail of the service account with which Cloud Tasks publishes"},
		"an unknown ledger":                 {"LEDGER=redis", `LEDGER: "redis"; write firestore, or memory for all functions in one process`},
	} {
		t.Run(rule, func(t *testing.T) {
			_, err := install.Parse[everything](environ(tt.set))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

func TestAllThatIsWrongIsNamedAtOnce(t *testing.T) {
	_, err := install.Parse[everything]([]string{"LEASE=soon", "INSTALL_NAME=1", "LEDGER=redis"})
	var got []string
	for line := range strings.Lines(fmt.Sprint(err)) {
		name, _, _ := strings.Cut(line, ":")
		got = append(got, name)
	}
	want := []string{
		"DEAD_LETTER_TOPIC", "GOOGLE_CLOUD_PROJECT", "INSTALL_NAME", "LEASE", "LEDGER", "PREFECT_API_URL", "REGIONS",
		"TASKS_QUEUE", "TASKS_SERVICE_ACCOUNT", "WORK_POOLS",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("variables in %v (-want +got):\n%s", err, diff)
	}
}

func TestASecretNeverPrints(t *testing.T) {
	const value = "hunter2"
	type held struct {
		Key    install.Secret
		Others []install.Secret
	}
	h := held{value, []install.Secret{value}}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T %[1]v", "%10.3s"} {
		fmt.Fprintf(&out, verb+"\n", install.Secret(value))
		fmt.Fprintf(&out, verb+"\n", struct{ Key, Other any }{install.Secret(value), []install.Secret{value}})
		fmt.Fprintf(&out, verb+"\n", map[string]install.Secret{"key": value})
		fmt.Fprintf(&out, verb+"\n", h)
	}
	fmt.Fprintln(&out, install.Secret(value), fmt.Errorf("key %v", install.Secret(value)))
	for _, log := range []*slog.Logger{slog.New(slog.NewJSONHandler(&out, nil)), slog.New(slog.NewTextHandler(&out, nil))} {
		log.Info("x", "key", install.Secret(value), "held", struct{ Key install.Secret }{value}, "any", []any{install.Secret(value)})
	}
	data, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(data)
	if s := out.String(); strings.Contains(s, value) || strings.Contains(s, fmt.Sprintf("%x", value)) {
		t.Errorf("the secret shows in\n%s", s)
	}
	if !strings.Contains(string(data), `"Key":"(secret)"`) {
		t.Errorf("JSON %s does not say that there is a secret", data)
	}
}

func TestWhatIsLazyIsMadeOnce(t *testing.T) {
	made := 0
	lazy := install.NewLazy(func(ctx context.Context) (int, error) {
		made++
		if made == 1 {
			return 0, errors.New("no credentials yet")
		}
		return made, ctx.Err()
	})
	if made != 0 {
		t.Error("it was made before it was used")
	}
	if _, err := lazy.Get(t.Context()); err == nil {
		t.Error("the failure was not returned")
	}
	// What is made for a request outlives it.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		if v, err := lazy.Get(ctx); v != 2 || err != nil {
			t.Errorf("got %d, %v; a failure is not kept, a value is", v, err)
		}
	}
}
