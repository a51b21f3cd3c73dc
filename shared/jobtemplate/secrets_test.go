package jobtemplate

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// rendered returns a job whose first container has what env holds, as JSON, and a sidecar after it.
func rendered(t *testing.T, env, sidecarEnv string) Rendered {
	t.Helper()
	var body map[string]any
	unmarshalInto(t, []byte(`{"template":{"template":{"containers":[{"env":`+env+`},{"env":`+sidecarEnv+`},{}]}}}`), &body)
	return Rendered{Body: body}
}

func TestSecretsTakeThePlaceOfCredentialsInClear(t *testing.T) {
	both := Secrets{APIKey: &SecretRef{Secret: "key", Version: "3"}, AuthString: &SecretRef{Secret: "projects/p/secrets/auth"}}
	const keyRef = `{"name":"PREFECT_API_KEY","valueSource":{"secretKeyRef":{"secret":"key","version":"3"}}}`
	for _, c := range []struct{ name, env, sidecar, want, wantSidecar string }{
		{
			"an API key becomes a reference in its place", `[{"name":"A","value":"1"},{"name":"PREFECT_API_KEY","value":"pnu_x"},{"name":"B","value":"2"}]`, `[]`,
			`[{"name":"A","value":"1"},` + keyRef + `,{"name":"B","value":"2"}]`, `[]`,
		},
		{
			"an auth string too, of the latest version where none is named", `[{"name":"PREFECT_API_AUTH_STRING","value":"admin:x"}]`, `[]`,
			`[{"name":"PREFECT_API_AUTH_STRING","valueSource":{"secretKeyRef":{"secret":"projects/p/secrets/auth","version":"latest"}}}]`, `[]`,
		},
		{"in every container", `[]`, `[{"name":"PREFECT_API_KEY","value":"pnu_x"}]`, `[]`, `[` + keyRef + `]`},
		{
			"in either case, as Prefect reads it", `[{"name":"prefect_api_key","value":"pnu_x"}]`, `[]`,
			`[{"name":"prefect_api_key","valueSource":{"secretKeyRef":{"secret":"key","version":"3"}}}]`, `[]`,
		},
		{
			"references of the job's own stay", `[{"name":"PREFECT_API_KEY","valueSource":{"secretKeyRef":{"secret":"mine","version":"1"}}}]`, `[]`,
			`[{"name":"PREFECT_API_KEY","valueSource":{"secretKeyRef":{"secret":"mine","version":"1"}}}]`, `[]`,
		},
		{"an empty value is no credential", `[{"name":"PREFECT_API_KEY","value":""}]`, `[]`, `[{"name":"PREFECT_API_KEY","value":""}]`, `[]`},
		{"nothing is added", `[{"name":"A","value":"1"}]`, `[]`, `[{"name":"A","value":"1"}]`, `[]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rendered(t, c.env, c.sidecar)
			if err := both.Apply(&r); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(rendered(t, c.want, c.wantSidecar), r); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCredentialsInClearAreRefused(t *testing.T) {
	for _, c := range []struct {
		name, env, hint string
		secrets         Secrets
	}{
		{"an API key without a secret", `[{"name":"PREFECT_API_KEY","value":"very-secret"}]`, "prefect_api_key_secret", Secrets{AuthString: &SecretRef{Secret: "auth"}}},
		{"an auth string without a secret", `[{"name":"PREFECT_API_AUTH_STRING","value":"very-secret"}]`, "prefect_api_auth_string_secret", Secrets{APIKey: &SecretRef{Secret: "key"}}},
		{"in lower case", `[{"name":"prefect_api_key","value":"very-secret"}]`, "prefect_api_key_secret", Secrets{}},
		{"beside a reference", `[{"name":"PREFECT_API_KEY","value":"very-secret","valueSource":{}}]`, "prefect_api_key_secret", Secrets{}},
		{"as something other than text", `[{"name":"PREFECT_API_KEY","value":["very-secret"]}]`, "prefect_api_key_secret", Secrets{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rendered(t, `[]`, c.env)
			err := c.secrets.Apply(&r)
			var e *flowrun.Error
			if !errors.As(err, &e) || e.Fault != flowrun.Permanent || !strings.Contains(e.Hint, c.hint) {
				t.Fatalf("error is %v, want a hint at %s", err, c.hint)
			}
			if strings.Contains(err.Error(), "very-secret") {
				t.Errorf("the error shows the value: %v", err)
			}
		})
	}
}

func TestWithoutCredentialsNoSecretsAreNeeded(t *testing.T) {
	for _, body := range []string{`{}`, `null`, `{"template":{"template":{"containers":[null,{"env":null},{"env":[null,{"name":5,"value":"x"}]}]}}}`} {
		var r Rendered
		unmarshalInto(t, []byte(body), &r.Body)
		if err := (Secrets{}).Apply(&r); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		var before map[string]any
		unmarshalInto(t, []byte(body), &before)
		if diff := cmp.Diff(before, r.Body); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// What a worker's settings put into the environment first is what Secrets are for.
func TestSettingsThatAreCredentialsReachTheJobAsReferences(t *testing.T) {
	in := defaultInput(t)
	in.Settings = []Setting{{"PREFECT_API_URL", "https://prefect"}, {"PREFECT_API_KEY", "pnu_x"}}
	r, err := Render(t.Context(), in, noLookup{})
	if err != nil {
		t.Fatal(err)
	}
	if err := (Secrets{APIKey: &SecretRef{Secret: "key"}}).Apply(&r); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "pnu_x") {
		t.Errorf("the key is in the job: %s", b)
	}
	job, err := r.Job()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range job.GetTemplate().GetTemplate().GetContainers()[0].GetEnv() {
		if e.GetName() == "PREFECT_API_KEY" && e.GetValueSource().GetSecretKeyRef().GetSecret() == "key" {
			return
		}
	}
	t.Error("the job has no reference to the secret")
}
