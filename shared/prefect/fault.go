package prefect

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/pushpool/pushpool/shared/flowrun"
)

const notTheAPI = "the API URL is not that of Prefect's API: a server's ends in /api, Prefect Cloud's in /workspaces/ID"

// maxWords bounds what is repeated of an answer.
const maxWords = 1000

// classify turns an answer that is not 2xx into a failure.
func (c *Client) classify(r request, resp *http.Response) *failure {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxDetail))
	detail, fromPrefect := readDetail(data)
	f := &failure{
		Error:  &flowrun.Error{Act: r.act, RetryAfter: retryAfter(resp.Header)},
		status: resp.StatusCode, detail: detail, maintenance: resp.Header.Get("Prefect-Maintenance") == "true",
	}
	f.Err = fmt.Errorf("status %d: %s", resp.StatusCode, detail)
	switch s := resp.StatusCode; {
	case s == http.StatusNotFound && fromPrefect && detail != "Not Found":
		f.Fault = flowrun.NotFound
	case s == http.StatusNotFound || s == http.StatusMethodNotAllowed:
		// The answer of a router, not of an object's owner: taking it for "deleted" would drop flow runs.
		f.Fault, f.Hint = flowrun.Refused, notTheAPI
	case s == http.StatusGone && fromPrefect:
		f.Fault = flowrun.NotFound
	case s >= 300 && s <= 399:
		f.Fault = flowrun.Refused
		f.Err = fmt.Errorf("status %d, to %q", s, resp.Header.Get("Location"))
		f.Hint = "write the API URL that it points to"
	case s == http.StatusUnauthorized:
		f.Fault, f.Hint = flowrun.Refused, c.key.hint()
	case s == http.StatusForbidden:
		f.Fault, f.Hint = flowrun.Refused, "the credential does not allow this; give the account of the API key a role that may read work pools, deployments and block documents and run flow runs"
		if csrfWanted(f) {
			f.Hint = "the server refuses its own CSRF tokens; see whether something between it and pushpool removes the headers " + headerToken + " and " + headerClient
		}
	case s == http.StatusTooManyRequests:
		f.Fault, f.again = flowrun.Refused, true
		f.Hint = "too many requests for this Prefect account; lower the requests per minute, or see what else uses the API"
	case s == http.StatusServiceUnavailable:
		f.Fault, f.again = flowrun.Refused, true
		f.Hint = "the server is overloaded or its database is locked; SQLite takes one writer at a time, use PostgreSQL for more"
	case s == http.StatusRequestTimeout, s == http.StatusBadGateway:
		f.Fault, f.again = flowrun.Unclear, !r.once
	case s == http.StatusConflict:
		f.Fault, f.Hint = flowrun.Permanent, "it contradicts what Prefect has; change what it names, such as parameters that the deployment's schema does not take"
	case s == http.StatusUnprocessableEntity:
		f.Fault, f.Hint = flowrun.Permanent, "correct the fields that it names; job variables are held to the schema of the work pool's base job template"
	case s >= 400 && s <= 499:
		f.Fault = flowrun.Permanent
	default:
		f.Fault, f.Hint = flowrun.Unclear, "the server failed, and its own log says why; messages and sweeps try again by themselves"
	}
	f.again = f.again || f.maintenance && !r.once
	return f
}

func (k credential) hint() string {
	switch k {
	case apiKey:
		return "Prefect does not accept the API key; check that it is whole, has not expired and is for this API URL (a server wants an auth string instead)"
	case authString:
		return "the server does not accept the auth string; it has to be the value of its PREFECT_SERVER_API_AUTH_STRING"
	default:
		return "Prefect wants a credential; set an API key (Prefect Cloud) or an auth string (a server)"
	}
}

// readDetail returns what Prefect says in the body of an error, without the values that it
// repeats from the request, and whether the body is of Prefect's form.
func readDetail(data []byte) (string, bool) {
	var body struct {
		Detail           any    `json:"detail"`
		ExceptionMessage string `json:"exception_message"`
		ExceptionDetail  any    `json:"exception_detail"`
	}
	if json.Unmarshal(data, &body) != nil {
		return cut(strings.ToValidUTF8(string(data), "?"), maxWords), false
	}
	var parts []string
	if body.ExceptionMessage != "" {
		parts = append(parts, body.ExceptionMessage)
	}
	for _, d := range []any{body.Detail, body.ExceptionDetail} {
		switch d := d.(type) {
		case string:
			parts = append(parts, d)
		case []any:
			for _, e := range d {
				parts = append(parts, invalidField(e))
			}
		}
	}
	return cut(strings.Join(parts, " "), maxWords), len(parts) > 0
}

// invalidField words one entry of a validation error: {"loc":["body","x"],"msg":"…"}.
func invalidField(entry any) string {
	e, _ := entry.(map[string]any)
	loc, _ := e["loc"].([]any)
	path := make([]string, len(loc))
	for i, p := range loc {
		path[i] = fmt.Sprint(p)
	}
	return fmt.Sprintf("%s: %v;", strings.Join(path, "."), e["msg"])
}

// cut shortens s to the number of bytes.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	const mark = "…"
	return strings.ToValidUTF8(s[:most-len(mark)], "") + mark
}
