package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pushpool/pushpool/shared/delivery"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/message"
	"github.com/pushpool/pushpool/shared/prefect"
)

const someID = "94c6ba7a-25de-4fcb-9b37-8dfb8281263f"

// ahead creates flow runs only once it was asked whether their work pool is limited.
type ahead struct {
	*prefect.Client
	asked chan string
}

func (a *ahead) Limited(ctx context.Context, pool string) (bool, error) {
	a.asked <- pool
	return a.Client.Limited(ctx, pool)
}

func (a *ahead) CreateFlowRun(ctx context.Context, id string, n prefect.NewFlowRun) (prefect.FlowRun, bool, error) {
	select {
	case pool := <-a.asked:
		if pool != "etl" {
			return prefect.FlowRun{}, false, fmt.Errorf("asked about work pool %q", pool)
		}
		return a.Client.CreateFlowRun(ctx, id, n)
	case <-ctx.Done():
		return prefect.FlowRun{}, false, errors.New("nobody asked about the work pool")
	}
}

// TestThePoolIsLookedAtWhileAFlowRunIsCreated holds that a request's launch waits for nothing between the creation
// and its claim: Prefect's event about the flow run would overtake it, and cost calls of its own.
func TestThePoolIsLookedAtWhileAFlowRunIsCreated(t *testing.T) {
	in := start(t)
	in.deployments = &ahead{in.prefect, make(chan string, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := in.Handle(ctx, delivered(`{"deployment":"flow/prod"}`)); err != nil || len(in.launcher.created) != 1 {
		t.Errorf("error %v, dispatched %v", err, in.launcher.created)
	}
}

func TestARunRequestCreatesAFlowRunAndDispatchesIt(t *testing.T) {
	published := time.Date(2030, 1, 1, 6, 0, 0, 0, time.UTC)
	type asked struct {
		Key, Name, Queue string
		Tags             []string
		Parameters, Vars string // as JSON
		Trace            any
		Due              time.Time // zero: not before it was created
	}
	for rule, tt := range map[string]struct {
		request    string
		attributes map[string]string
		want       asked
	}{
		"a deployment by its name; the key is the message's id": {
			request: `{"deployment":"flow/prod"}`, want: asked{Key: "17"},
		},
		"a deployment by its id": {request: `{"deployment":"ID"}`, want: asked{Key: "17"}},
		"all that a request can say": {
			request: `{"deployment":"flow/prod","parameters":{"day":"2026-01-01"},"job_variables":{"memory":"2Gi"},"tags":["b","a"],
				"name":"one","idempotency_key":"mine","work_queue":"urgent","scheduled_time":"2030-02-01T06:00:00Z","expires_at":"2030-03-01T06:00:00Z"}`,
			want: asked{
				Key: "mine", Name: "one", Queue: "urgent", Tags: []string{"a", "b"}, Parameters: `{"day":"2026-01-01"}`,
				Vars: `{"memory":"2Gi"}`, Due: time.Date(2030, 2, 1, 6, 0, 0, 0, time.UTC),
			},
		},
		"a delay counts from the publication": {
			request: `{"deployment":"flow/prod","delay":"90s"}`, want: asked{Key: "17", Due: published.Add(90 * time.Second)},
		},
		"published again from the dead letter it keeps its first id and time": {
			request: `{"deployment":"flow/prod","delay":"1h"}`,
			attributes: map[string]string{
				delivery.AttrFirstMessageID: "3", delivery.AttrFirstPublishTime: published.Add(-time.Minute).Format(time.RFC3339Nano),
			},
			want: asked{Key: "3", Due: published.Add(59 * time.Minute)},
		},
		"the publisher's trace stays with the flow run": {
			request:    `{"deployment":"flow/prod"}`,
			attributes: map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
			want:       asked{Key: "17", Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		},
		"its own key goes before the first id": {
			request:    `{"deployment":"flow/prod","idempotency_key":"mine"}`,
			attributes: map[string]string{delivery.AttrFirstMessageID: "3"}, want: asked{Key: "mine"},
		},
	} {
		t.Run(rule, func(t *testing.T) {
			in := start(t)
			m := delivered(strings.Replace(tt.request, "ID", in.ids["prod"], 1))
			m.PublishTime, m.Attributes = published, tt.attributes
			if err := in.Handle(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			all := in.flowRuns(t)
			if len(all) != 1 {
				t.Fatalf("%d flow runs, want 1", len(all))
			}
			fr := all[0]
			got := asked{Key: fr.IdempotencyKey, Tags: fr.Tags, Parameters: asJSON(t, fr.Parameters), Vars: asJSON(t, fr.JobVariables), Trace: fr.Labels[prefect.LabelTraceparent]}
			if tt.want.Name != "" {
				got.Name = fr.Name
			}
			if tt.want.Queue != "" {
				got.Queue = fr.WorkQueueName
			}
			if !tt.want.Due.IsZero() {
				got.Due = fr.NextScheduledStartTime.UTC()
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("created (-want +got):\n%s", diff)
			}
			dispatched := created{fr.ID, "etl", in.ids["prod"]}
			if diff := cmp.Diff([]created{dispatched}, in.launcher.created); diff != "" {
				t.Errorf("dispatched (-want +got):\n%s", diff)
			}
			// Whatever happens after the creation, the same message never makes a second one.
			in.launcher.fail = errors.New("the instance died")
			m.Attempt = 2
			_ = in.Handle(t.Context(), m)
			if n := len(in.flowRuns(t)); n != 1 {
				t.Errorf("%d flow runs after a redelivery, want 1", n)
			}
			if diff := cmp.Diff([]created{dispatched, dispatched}, in.launcher.created); diff != "" || len(in.launcher.holders) != 2 {
				t.Errorf("dispatched by %v, want twice, by two holders (-want +got):\n%s", in.launcher.holders, diff)
			}
		})
	}
}

// asJSON is empty for an empty object, which Prefect writes where nothing was said.
func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) == "{}" || string(data) == "null" {
		return ""
	}
	return string(data)
}

func TestWhatNobodyCanEverProcess(t *testing.T) {
	past := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	for rule, tt := range map[string]struct {
		data   string
		reason []string // all of them in the reason
		status int32    // of Prefect's answer to a creation; 0: its own
	}{
		"not JSON":                               {data: `{`, reason: []string{"not JSON"}},
		"an unknown field":                       {data: `{"deployment":"flow/prod","params":{}}`, reason: []string{"params", "unknown field"}},
		"a request that expired":                 {data: `{"deployment":"flow/prod","expires_at":"` + past + `"}`, reason: []string{"expires_at", past}},
		"no deployment of that name":             {data: `{"deployment":"flow/nightly"}`, reason: []string{`"flow/nightly"`, "prefect deployment ls"}},
		"no deployment of that id":               {data: `{"deployment":"` + someID + `"}`, reason: []string{someID}},
		"a deployment in somebody else's pool":   {data: `{"deployment":"flow/foreign"}`, reason: []string{`"flow/foreign"`, `"somebody-elses"`, "etl, capped"}},
		"parameters that the deployment refuses": {data: `{"deployment":"flow/prod","parameters":{"day":7}}`, reason: []string{"409", "Validation failed"}},
		"a body that Prefect cannot read":        {data: `{"deployment":"flow/prod"}`, status: 422, reason: []string{"422"}},
	} {
		t.Run(rule, func(t *testing.T) {
			in := start(t)
			in.refuse.Store(tt.status)
			err := in.Handle(t.Context(), delivered(tt.data))
			if !delivery.IsUnprocessable(err) {
				t.Fatalf("got %v, want an unprocessable error", err)
			}
			for _, part := range tt.reason {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if len(in.launcher.dispatched) != 0 || len(in.flowRuns(t)) != 0 {
				t.Errorf("dispatched %v, created %v", in.launcher.dispatched, in.flowRuns(t))
			}
		})
	}
}

// What a redelivery may mend is left to it, and never moved to the dead letter.
func TestWhatIsDeliveredAgain(t *testing.T) {
	fault := func(f flowrun.Fault) error {
		return &flowrun.Error{Fault: f, Act: "launch", Err: errors.New(f.String())}
	}
	for rule, tt := range map[string]struct {
		data          string
		fail, wake    error
		status        int32 // of Prefect's answer to a creation
		again, letter bool
	}{
		"the flow run's launch is refused for now":        {data: `{"flow_run_id":"` + someID + `"}`, fail: fault(flowrun.Refused), again: true},
		"nobody knows what came of it":                    {data: `{"flow_run_id":"` + someID + `"}`, fail: fault(flowrun.Unclear), again: true},
		"somebody else is at it":                          {data: `{"flow_run_id":"` + someID + `"}`, fail: flowrun.ErrBusy, again: true},
		"the flow run is not there yet":                   {data: `{"flow_run_id":"` + someID + `"}`, fail: fault(flowrun.NotFound), again: true},
		"it can never be launched":                        {data: `{"flow_run_id":"` + someID + `"}`, fail: fault(flowrun.Permanent), letter: true},
		"Prefect has no access for us":                    {data: `{"deployment":"flow/prod"}`, status: http.StatusForbidden, again: true},
		"Prefect is broken":                               {data: `{"deployment":"flow/prod"}`, status: http.StatusInternalServerError, again: true},
		"one flow run of a wake is hopeless, another not": {data: `{"work_pool":"etl"}`, wake: errors.Join(fault(flowrun.Permanent), fault(flowrun.Refused)), again: true},
		"all flow runs of a wake are hopeless":            {data: `{"work_pool":"etl"}`, wake: errors.Join(fault(flowrun.Permanent), fault(flowrun.Permanent)), letter: true},
		"a request that was to expire has its flow run, which the sweep dispatches": {
			data: `{"deployment":"flow/prod","expires_at":"2099-01-01T00:00:00Z"}`, fail: fault(flowrun.Refused),
		},
	} {
		t.Run(rule, func(t *testing.T) {
			in := start(t)
			in.launcher.fail, in.launcher.wake = tt.fail, tt.wake
			in.refuse.Store(tt.status)
			err := in.Handle(t.Context(), delivered(tt.data))
			if (err != nil) != (tt.again || tt.letter) || delivery.IsUnprocessable(err) != tt.letter {
				t.Errorf("got %v; want redelivery %t, dead letter %t", err, tt.again, tt.letter)
			}
		})
	}
}

func TestEventsByStateType(t *testing.T) {
	event := func(state string) string {
		return fmt.Sprintf(`{"event":"prefect.flow-run.X","flow_run":"prefect.flow-run.RUN","state_type":%q,"state_name":"X"}`, state)
	}
	const told = `{"event":"prefect.flow-run.X","flow_run":"prefect.flow-run.` + someID + `","state_type":"COMPLETED","work_pool":%q,"deployment_id":"QUEUED"}`
	for rule, tt := range map[string]struct {
		data       string
		deployment string // of the flow run RUN
		launched   string // the work pool of it that the ledger knows
		dispatched bool
		woken      message.Wake
	}{
		"SCHEDULED is dispatched":                             {data: event("SCHEDULED"), deployment: "prod", dispatched: true},
		"CANCELLING is dispatched: the launcher stops it":     {data: event("CANCELLING"), deployment: "prod", dispatched: true},
		"PENDING is nothing to us":                            {data: event("PENDING"), deployment: "capped"},
		"RUNNING is nothing to us":                            {data: event("RUNNING"), deployment: "capped"},
		"PAUSED is nothing to us":                             {data: event("PAUSED"), deployment: "capped"},
		"an event without a state is nothing to us":           {data: event(""), deployment: "capped"},
		"a type to come is nothing to us":                     {data: event("DREAMING"), deployment: "capped"},
		"COMPLETED frees a slot":                              {data: event("COMPLETED"), deployment: "capped", woken: message.Wake{WorkPool: "capped"}},
		"FAILED frees a slot":                                 {data: event("FAILED"), deployment: "capped", woken: message.Wake{WorkPool: "capped"}},
		"CRASHED frees a slot":                                {data: event("CRASHED"), deployment: "capped", woken: message.Wake{WorkPool: "capped"}},
		"CANCELLED frees a slot":                              {data: event("CANCELLED"), deployment: "capped", woken: message.Wake{WorkPool: "capped"}},
		"nobody waits for this slot":                          {data: event("COMPLETED"), deployment: "prod"},
		"others wait for a slot of the deployment":            {data: event("COMPLETED"), deployment: "queued", woken: message.Wake{DeploymentID: "queued"}},
		"an event that names the deployment needs no reading": {data: fmt.Sprintf(told, "etl"), woken: message.Wake{DeploymentID: "queued"}},
		"the ledger tells where a slot is":                    {data: event("COMPLETED"), launched: "capped", woken: message.Wake{WorkPool: "capped"}},
		"who waits for a slot of the deployment is not dispatched": {
			data: `{"event":"x","flow_run":"RUN","state_type":"SCHEDULED","state_name":"AwaitingConcurrencySlot"}`, deployment: "queued",
		},
		"a slot of somebody else's pool is nothing to us":     {data: event("COMPLETED"), deployment: "foreign"},
		"an event that names the pool needs no reading":       {data: fmt.Sprintf(told, "capped"), woken: message.Wake{WorkPool: "capped", DeploymentID: "queued"}},
		"an event of somebody else's pool is nothing to us":   {data: fmt.Sprintf(told, "somebody-elses"), deployment: "prod"},
		"a dispatch is dispatched":                            {data: `{"flow_run_id":"RUN"}`, deployment: "prod", dispatched: true},
		"a wake of a pool wakes it":                           {data: `{"work_pool":"etl"}`, deployment: "prod", woken: message.Wake{WorkPool: "etl"}},
		"the end of a flow run that was deleted frees nobody": {data: event("COMPLETED")},
	} {
		t.Run(rule, func(t *testing.T) {
			in := start(t)
			id := someID
			if tt.deployment != "" {
				id = in.create(t, tt.deployment, nil).ID
			}
			if tt.launched != "" {
				_, err := in.ledger.Update(t.Context(), id, func(r flowrun.Record) (flowrun.Record, error) { r.WorkPool = tt.launched; return r, nil })
				if err != nil {
					t.Fatal(err)
				}
			}
			m := delivered(strings.NewReplacer(`RUN"`, id+`"`, "QUEUED", in.ids["queued"]).Replace(tt.data))
			if err := in.Handle(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			var dispatched []string
			if tt.dispatched {
				dispatched = []string{id}
			}
			if diff := cmp.Diff(dispatched, in.launcher.dispatched); diff != "" {
				t.Errorf("dispatched (-want +got):\n%s", diff)
			}
			var woken []message.Wake
			if w := tt.woken; w != (message.Wake{}) {
				w.DeploymentID = in.ids[w.DeploymentID]
				woken = append(woken, w)
			}
			if diff := cmp.Diff(woken, in.launcher.woken); diff != "" {
				t.Errorf("woken (-want +got):\n%s", diff)
			}
			if len(dispatched) > 0 && !in.launcher.published.Equal(m.PublishTime) {
				t.Errorf("dispatched as published at %s, want %s", in.launcher.published, m.PublishTime)
			}
		})
	}
}

// Flows need what the functions need, and never in clear.
func TestContainersReachPrefect(t *testing.T) {
	const url = "https://prefect.example.com/api"
	for rule, tt := range map[string]struct {
		change  func(*config)
		want    []jobtemplate.Setting
		secrets jobtemplate.Secrets
		wrong   string // variable
	}{
		"at the functions' address": {
			change: func(*config) {}, want: []jobtemplate.Setting{{Name: "PREFECT_API_URL", Value: url}},
		},
		"at an address of their own": {
			change: func(c *config) { c.ContainerAPIURL = "http://10.0.0.2:4200/api" },
			want:   []jobtemplate.Setting{{Name: "PREFECT_API_URL", Value: "http://10.0.0.2:4200/api"}},
		},
		"with the newest version of a secret": {
			change:  func(c *config) { c.APIKey, c.APIKeySecret = "pnu_x", "prefect-key" },
			want:    []jobtemplate.Setting{{Name: "PREFECT_API_URL", Value: url}, {Name: "PREFECT_API_KEY", Value: "(secret)"}},
			secrets: jobtemplate.Secrets{APIKey: &jobtemplate.SecretRef{Secret: "prefect-key", Version: "latest"}},
		},
		"with the version of a secret that is named": {
			change:  func(c *config) { c.AuthString, c.AuthSecret = "u:p", "prefect-auth:3" },
			want:    []jobtemplate.Setting{{Name: "PREFECT_API_URL", Value: url}, {Name: "PREFECT_API_AUTH_STRING", Value: "(secret)"}},
			secrets: jobtemplate.Secrets{AuthString: &jobtemplate.SecretRef{Secret: "prefect-auth", Version: "3"}},
		},
		"not without a secret for the key":         {change: func(c *config) { c.APIKey = "pnu_x" }, wrong: "CONTAINER_PREFECT_API_KEY_SECRET"},
		"not without a secret for the auth string": {change: func(c *config) { c.AuthString = "u:p" }, wrong: "CONTAINER_PREFECT_API_AUTH_STRING_SECRET"},
	} {
		t.Run(rule, func(t *testing.T) {
			c, err := install.Parse[config]([]string{
				"GOOGLE_CLOUD_PROJECT=p", "DEAD_LETTER_TOPIC=dead", "PREFECT_API_URL=" + url, "WORK_POOLS=etl", "REGIONS=us-east1",
				"TASKS_QUEUE=projects/p/locations/l/queues/q", "TASKS_SERVICE_ACCOUNT=tasks@p.iam.gserviceaccount.com",
			})
			if err != nil {
				t.Fatal(err)
			}
			tt.change(&c)
			if err := c.Validate(); tt.wrong != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.wrong+": ") || strings.Contains(err.Error(), "pnu_x") {
					t.Errorf("got %v, want an error of %s", err, tt.wrong)
				}
				return
			} else if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, c.settings()); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.secrets, c.secrets()); diff != "" {
				t.Errorf("secrets (-want +got):\n%s", diff)
			}
		})
	}
}
