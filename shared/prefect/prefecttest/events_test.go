package prefecttest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// events holds that Prefect tells of what happens, or says that it does not.
func events(t *testing.T, p *prefectServer) {
	if p.noEvents {
		p.rule(t, "a server without events refuses the webhook and says that flow runs start all the same", func(t *testing.T) {
			err := p.EnsureWebhook(t.Context(), prefect.WebhookSetup{BlockName: "b-" + uuid.NewString(), AutomationName: "a", URL: "http://127.0.0.1:1/", WorkPools: []string{"p"}})
			wantFault(t, err, flowrun.Permanent)
			if err != nil && !strings.Contains(err.Error(), "without them flow runs still start") {
				t.Errorf("%v does not say what becomes of flow runs", err)
			}
		})
		return
	}
	webhook(t, p)
}

// webhook holds that an installation's automation tells what pushpool understands, once, about its pools only.
func webhook(t *testing.T, p *prefectServer) {
	type told struct {
		ID        string `json:"id"`
		Event     string `json:"event"`
		FlowRun   string `json:"flow_run"`
		StateType string `json:"state_type"`
		StateName string `json:"state_name"`
	}
	calls := make(chan told, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var inner string
		if json.Unmarshal(body, &inner) == nil { // 2.20 sends a JSON string
			body = []byte(inner)
		}
		var got told
		if err != nil || json.Unmarshal(body, &got) != nil || r.Header.Get("Authorization") != "Bearer s3cret" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("received %q with %v", body, r.Header)
		}
		calls <- got
	}))
	defer receiver.Close()
	next := func(t *testing.T) told {
		t.Helper()
		select {
		case got := <-calls:
			return got
		case <-time.After(patience):
			t.Fatal("the webhook is not called")
			return told{}
		}
	}
	d := p.deploy(t, prefect.NewDeployment{})
	foreign := p.deploy(t, prefect.NewDeployment{})
	name := "pushpool-" + uuid.NewString()
	setup := prefect.WebhookSetup{BlockName: name, AutomationName: name, URL: "http://127.0.0.1:1/old", Secret: "old", WorkPools: []string{"none"}}
	changed := setup
	changed.URL, changed.Secret, changed.WorkPools = receiver.URL, "s3cret", []string{d.WorkPoolName, p.newPool(t)}
	for _, s := range []prefect.WebhookSetup{setup, changed, changed} {
		if err := p.EnsureWebhook(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	p.rule(t, "setting up the webhook again changes what is different, and nothing else", func(t *testing.T) {
		other, unknown := changed, changed
		other.Secret, unknown.Secret = "another", ""
		for _, test := range []struct {
			setup prefect.WebhookSetup
			want  []prefect.Change
		}{
			{changed, []prefect.Change{{Object: "webhook block " + name, Act: "none"}, {Object: "automation " + name, Act: "none"}}},
			{unknown, []prefect.Change{{Object: "webhook block " + name, Act: "none"}, {Object: "automation " + name, Act: "none"}}},
			{other, []prefect.Change{{Object: "webhook block " + name, Act: "update", Fields: []string{"headers"}}, {Object: "automation " + name, Act: "none"}}},
		} {
			changes, err := p.ConnectWebhook(t.Context(), test.setup, true)
			if diff := cmp.Diff(test.want, changes); diff != "" || err != nil {
				t.Errorf("what is to be changed, error %v (-want +got):\n%s", err, diff)
			}
		}
	})
	var automations []struct{ ID string }
	p.admin(t, http.MethodPost, "/automations/filter", map[string]any{"automations": map[string]any{"name": map[string]any{"any_": []string{name}}}}, &automations)
	p.rule(t, "an automation is found by its name", func(t *testing.T) {
		if len(automations) != 1 {
			t.Errorf("%d automations, want 1", len(automations))
		}
	})
	defer func() {
		for _, a := range automations {
			p.admin(t, http.MethodDelete, "/automations/"+a.ID, nil, nil)
		}
	}()
	p.rule(t, "a block document's secrets are shown where they are asked for, and hidden else", func(t *testing.T) {
		block, err := p.BlockDocument(t.Context(), "webhook", name)
		if err != nil || decoded(t, block.Data)["url"] != receiver.URL {
			t.Fatalf("block document: %s, error %v, want the url %s", block.Data, err, receiver.URL)
		}
		var shown prefect.BlockDocument
		p.admin(t, http.MethodGet, "/block_documents/"+block.ID, nil, &shown)
		hidden := map[string]any{"Authorization": "********", "Content-Type": "********"}
		if diff := cmp.Diff([]any{"********", hidden}, []any{decoded(t, shown.Data)["url"], decoded(t, shown.Data)["headers"]}); diff != "" {
			t.Errorf("url and headers without secrets (-want +got):\n%s", diff)
		}
	})
	var f prefect.FlowRun
	p.rule(t, "the webhook tells of a new flow run in the installation's pools, and of no other", func(t *testing.T) {
		p.create(t, foreign.ID, prefect.NewFlowRun{})
		f = p.create(t, d.ID, prefect.NewFlowRun{})
		want := told{ID: f.StateID, Event: "prefect.flow-run.Scheduled", FlowRun: "prefect.flow-run." + f.ID, StateType: "SCHEDULED", StateName: "Scheduled"}
		if diff := cmp.Diff(want, next(t)); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "the webhook tells of CANCELLING under any name, and not of PENDING and RUNNING", func(t *testing.T) {
		p.set(t, f.ID, prefect.Proposal{Type: pending})
		p.set(t, f.ID, prefect.Proposal{Type: running})
		a := p.set(t, f.ID, prefect.Proposal{Type: cancelling, Name: `It's "odd" \`})
		want := told{ID: a.State.ID, Event: `prefect.flow-run.It's "odd" \`, FlowRun: "prefect.flow-run." + f.ID, StateType: "CANCELLING", StateName: `It's "odd" \`}
		if diff := cmp.Diff(want, next(t)); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
	})
	p.rule(t, "the webhook tells of CANCELLED", func(t *testing.T) {
		a := p.set(t, f.ID, prefect.Proposal{Type: cancelled})
		if got := next(t); got.ID != a.State.ID || got.StateType != "CANCELLED" {
			t.Errorf("told %+v", got)
		}
	})
	p.rule(t, "an automation that is switched off tells nothing, and stays off when it is set up again", func(t *testing.T) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(p.SetAutomationEnabled(t.Context(), name, false))
		p.create(t, d.ID, prefect.NewFlowRun{})
		must(p.EnsureWebhook(t.Context(), changed))
		p.create(t, d.ID, prefect.NewFlowRun{})
		must(p.Heartbeat(t.Context(), d.WorkPoolName, "pushpool", time.Hour)) // which makes an event of its own
		must(p.SetAutomationEnabled(t.Context(), name, true))
		f := p.create(t, d.ID, prefect.NewFlowRun{})
		if got := next(t); got.ID != f.StateID {
			t.Errorf("told of %+v, want that of the flow run created last, %s", got, f.ID)
		}
	})
}
