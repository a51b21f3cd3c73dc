package deliverytest_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/delivery/deliverytest"
)

func TestRESTPublishesOnTheSamePort(t *testing.T) {
	server := newPubSub(t)
	e := newEndpoint(t, always(204))
	url := "http://" + server.Addr() + "/v1/projects/proj/topics/"
	for _, step := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"publish to no topic", "POST", "flows:publish", `{"messages":[{"data":"aGVsbG8="}]}`, 404, "NOT_FOUND"},
		{"get no topic", "GET", "flows", "", 404, "NOT_FOUND"},
		{"create", "PUT", "flows", "", 200, "projects/proj/topics/flows"},
		{"create again", "PUT", "flows", "", 409, "ALREADY_EXISTS"},
		{"get", "GET", "flows", "", 200, "projects/proj/topics/flows"},
		{"not JSON", "POST", "flows:publish", "x", 400, "INVALID_ARGUMENT"},
		{"no messages", "POST", "flows:publish", "{}", 400, "INVALID_ARGUMENT"},
		{"empty message", "POST", "flows:publish", `{"messages":[{}]}`, 400, "INVALID_ARGUMENT"},
		{"something else", "POST", "flows:other", "{}", 501, "UNIMPLEMENTED"},
	} {
		t.Run(step.name, func(t *testing.T) { rest(t, step.method, url+step.path, step.body, step.status, step.want) })
	}
	newPusher(t, deliverytest.PusherOptions{Addr: server.Addr(), Endpoint: e.URL})
	rest(t, "POST", url+"flows:publish", `{"messages":[{"data":"aGVsbG8=","attributes":{"a":"b"}}]}`, 200, `"messageIds":[`)
	if diff := cmp.Diff(received{Data: "hello", Attributes: map[string]string{"a": "b"}}, e.next(t)); diff != "" {
		t.Error(diff)
	}
}

func rest(t *testing.T, method, url, body string, status int, want string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Close = true
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	got, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != status || !strings.Contains(string(got), want) {
		t.Errorf("status %d, body %s, %v; want %d and %s", response.StatusCode, got, err, status, want)
	}
}
