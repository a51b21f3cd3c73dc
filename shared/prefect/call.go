package prefect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	maxTries = 6
	// firstWait is before the second attempt; each later wait is twice as long. A server on SQLite
	// answers 503 while somebody else writes, for fractions of a second.
	firstWait = 500 * time.Millisecond
	// maxRetryAfter is the longest Retry-After that is waited for; beyond it the caller is told.
	maxRetryAfter = time.Minute
	// maxAnswer bounds an answer. A page of 200 flow runs with large parameters has some megabytes.
	maxAnswer = 32 << 20
	maxDetail = 64 << 10
)

// request is one call of the API.
type request struct {
	act    string // "read flow run 6b…"
	method string
	path   string // relative to the base URL, its query included
	body   any    // nil: none
	// once: the call must not be made again while the first may have been carried out.
	once bool
	// within is how long after it began the call may still be made again; 0: as long as ctx allows.
	within time.Duration
}

// failure is a failed attempt.
type failure struct {
	*flowrun.Error
	status      int // 0: no answer
	detail      string
	again       bool // worth another attempt
	maintenance bool
}

// do makes the call, repeats it as the client's rules allow, and decodes the answer.
func (c *Client) do(ctx context.Context, r request, answer any) (status int, err error) {
	var body []byte
	if r.body != nil {
		if body, err = json.Marshal(r.body); err != nil {
			return 0, &flowrun.Error{Fault: flowrun.Permanent, Act: r.act, Err: err}
		}
	}
	deadline, bounded := ctx.Deadline()
	wait, freshToken, began := firstWait, false, time.Now()
	for tries := 1; ; {
		sentToken := c.csrf.current()
		status, f := c.attempt(ctx, r, body, sentToken, answer)
		if f == nil {
			return status, nil
		}
		if csrfWanted(f) && !freshToken {
			freshToken = true
			if err := c.refreshToken(ctx, sentToken); err != nil {
				return f.status, err
			}
			continue
		}
		pause := wait + time.Duration((c.random()*0.4-0.2)*float64(wait))
		if f.RetryAfter > 0 {
			pause = f.RetryAfter + time.Duration(c.random()*0.2*float64(f.RetryAfter))
		}
		if !f.maintenance || !bounded {
			tries++
			wait *= 2
		}
		needed := pause
		if r.once {
			needed += c.timeout // an attempt cut short by the deadline would leave its effect open
		}
		stale := r.within > 0 && time.Since(began)+pause > r.within
		if !f.again || stale || tries > maxTries || f.RetryAfter > maxRetryAfter || bounded && time.Until(deadline) <= needed {
			return f.status, f.Error
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return f.status, f.Error
		}
	}
}

// attempt makes the call once.
func (c *Client) attempt(ctx context.Context, r request, body []byte, token string, answer any) (int, *failure) {
	if err := c.limiter.Wait(ctx); err != nil {
		return 0, &failure{Error: &flowrun.Error{
			Fault: flowrun.Refused, Act: r.act, Err: err,
			Hint: "this client's own limit of requests per minute; raise it if Prefect allows more",
		}}
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var sent atomic.Bool // or it may have been: there was a connection
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, r.method, c.base.String()+r.path, bytes.NewReader(body))
	if err != nil {
		return 0, &failure{Error: &flowrun.Error{Fault: flowrun.Permanent, Act: r.act, Err: err}}
	}
	req.Header = c.header.Clone()
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" && r.method != http.MethodGet {
		req.Header.Set(headerToken, token)
		req.Header.Set(headerClient, c.csrf.client)
	}
	start := time.Now()
	resp, err := c.http.Do(req)
	status := 0
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		status = resp.StatusCode
	}
	if c.onCall != nil {
		c.onCall(r.method, r.path, status, time.Since(start))
	}
	if err != nil {
		return 0, unanswered(parent, r, sent.Load(), err)
	}
	if status < 200 || status > 299 {
		return status, c.classify(r, resp)
	}
	if answer == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxDetail)) // so that the connection is used again
		return status, nil
	}
	return status, decode(parent, r, resp, answer)
}

// unanswered classifies a call without an answer.
func unanswered(ctx context.Context, r request, sent bool, err error) *failure {
	f := &failure{Error: &flowrun.Error{Fault: flowrun.Unclear, Act: r.act, Err: err}, again: (!sent || !r.once) && ctx.Err() == nil}
	if !sent {
		f.Fault = flowrun.Refused
	}
	if !sent && ctx.Err() == nil {
		f.Hint = "there is no connection to Prefect; check the API URL, and that the server runs and is reachable from here"
	}
	return f
}

func decode(ctx context.Context, r request, resp *http.Response, answer any) *failure {
	fail := func(fault flowrun.Fault, hint string, err error) *failure {
		return &failure{Error: &flowrun.Error{Fault: fault, Act: r.act, Hint: hint, Err: err}, status: resp.StatusCode}
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		f := fail(flowrun.Unclear, "", fmt.Errorf("the answer broke off: %w", err))
		f.again = !r.once && ctx.Err() == nil
		return f
	}
	if len(data) > maxAnswer {
		return fail(flowrun.Permanent, "store less in it, for example in parameters", fmt.Errorf("the answer has more than %d MiB", maxAnswer>>20))
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber() // 1.0 and 1 are different values to a job template
	if err := dec.Decode(answer); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) && bytes.HasPrefix(bytes.TrimSpace(data), []byte("<")) {
			return fail(flowrun.Refused, notTheAPI, errors.New("the answer is a web page"))
		}
		return fail(flowrun.Unclear, "", fmt.Errorf("the answer is not as expected: %w", err))
	}
	return nil
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseFloat(v, 64); err == nil && s > 0 {
		return time.Duration(min(s, 86400) * float64(time.Second))
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// byID is the path of an object. The server answers an id that is no UUID as it answers an
// unknown address, so it is found out here.
func byID(act, collection, id string) (request, error) {
	if uuid.Validate(id) != nil {
		return request{}, &flowrun.Error{Fault: flowrun.Permanent, Act: act, Err: fmt.Errorf("%q is not a UUID", id)}
	}
	return request{act: act, method: http.MethodGet, path: "/" + collection + "/" + id}, nil
}
