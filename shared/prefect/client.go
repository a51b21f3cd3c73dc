// Package prefect makes the REST calls to Prefect (Cloud, or a server of 2.20 or 3.x) that pushpool needs.
package prefect

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"
)

const (
	// apiVersion is what Prefect's own clients of 2.20 and 3.x send.
	apiVersion = "0.8.4"
	userAgent  = "pushpool"

	defaultTimeout = 10 * time.Second
	// defaultPerMinute stays under Prefect Cloud's smallest tier, 625 requests a minute and account
	// (https://docs.prefect.io/v3/concepts/rate-limits), and leaves some of it to the flows.
	defaultPerMinute = 500
	// burst is the share of a minute's calls that may be made at once.
	burst = 10

	// How long answers about what changes rarely may be reused.
	poolAge  = 10 * time.Second // work pools, work queues, block documents, variables
	flowAge  = 10 * time.Minute // flows: their name, and what templates take of them
	maxCache = 1000             // entries of one kind
)

// Config says which server is called, and how.
type Config struct {
	// APIURL is the API's base URL: http://HOST:4200/api of a server, or
	// https://api.prefect.cloud/api/accounts/A/workspaces/W of Prefect Cloud.
	APIURL string
	// APIKey is Prefect Cloud's; AuthString is a server's USER:PASSWORD, and wins where both are set.
	APIKey, AuthString string
	// CustomHeaders are sent with every call. They may not contain User-Agent,
	// Prefect-Csrf-Token or Prefect-Csrf-Client.
	CustomHeaders map[string]string
	// HTTPClient makes the calls; nil means a new one. Its redirect policy is not used.
	HTTPClient *http.Client
	// Caller is who calls, for the server's access log: "dispatcher" makes the User-Agent
	// "pushpool (dispatcher)".
	Caller string
	// RequestsPerMinute bounds the calls of this client, repeated ones included; 0 means 500.
	// A tenth of it may be made at once.
	RequestsPerMinute int
	// Timeout bounds one attempt of one call; 0 means 10 s.
	Timeout time.Duration
	// Random spreads repeated calls, from 0 up to 1; nil means rand.Float64.
	Random func() float64
	// OnCall, if set, is told of every attempt. path is relative to APIURL; status is 0 where no answer came.
	OnCall func(method, path string, status int, took time.Duration)
}

// Client calls one Prefect API. It may be used by several goroutines.
//
// Every error of its methods is a *flowrun.Error:
//
//   - NotFound: Prefect answered that it has no such object.
//   - Refused: nothing was done, and it may be later: 401, 403, 429, 503, no connection, this
//     client's own rate limit, a URL that is not Prefect's API.
//   - Permanent: Prefect will never do it as it stands: 400, 409, 413, 422.
//   - Unclear: it may have been done: a time-out or broken connection after the request was
//     sent, 408, any other 5xx.
//
// A call is repeated, five times at most and only while its context's deadline leaves time for it,
// after 408, 429, 502, 503, time-outs and broken connections; SetState, CreateFlowRun and Log only where
// that is safe. Retry-After is honoured up to a minute; with Prefect-Maintenance: true the
// repetitions do not count.
type Client struct {
	http    *http.Client
	base    *url.URL
	header  http.Header
	key     credential
	limiter *rate.Limiter
	timeout time.Duration
	random  func() float64
	onCall  func(method, path string, status int, took time.Duration)
	csrf    csrf

	pools     *cache[WorkPool]
	queues    *cache[[]WorkQueue]
	flows     *cache[Flow]
	blocks    *cache[BlockDocument]
	variables *cache[variable]
}

// credential is the kind of credential in use, for hints.
type credential int

const (
	noCredential credential = iota
	apiKey
	authString
)

// New returns a client for the API that cfg describes. It makes no call. The error names
// everything that is wrong with cfg, in one line each.
func New(cfg Config) (*Client, error) {
	base, err := parseBase(cfg.APIURL)
	errs := []error{err}
	header := http.Header{}
	kind := noCredential
	switch {
	case cfg.AuthString != "":
		kind = authString
		if !strings.Contains(cfg.AuthString, ":") {
			errs = append(errs, errors.New("auth string: there is no colon in it; write USER:PASSWORD"))
		}
		// The server takes no other spelling of the scheme.
		header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(cfg.AuthString)))
	case cfg.APIKey != "":
		kind = apiKey
		header.Set("Authorization", "Bearer "+cfg.APIKey)
	}
	header.Set("X-Prefect-Api-Version", apiVersion)
	header.Set("User-Agent", userAgent)
	if cfg.Caller != "" {
		header.Set("User-Agent", userAgent+" ("+cfg.Caller+")")
	}
	header.Set("Accept", "application/json")
	for name, value := range cfg.CustomHeaders {
		switch textproto.CanonicalMIMEHeaderKey(name) {
		case "User-Agent", headerToken, headerClient:
			errs = append(errs, fmt.Errorf("custom header %s: pushpool sets it itself; remove it", name))
		}
		header.Set(name, value)
	}
	if cfg.RequestsPerMinute < 0 {
		errs = append(errs, fmt.Errorf("requests per minute: %d is negative; write a number above 0, or 0 for %d", cfg.RequestsPerMinute, defaultPerMinute))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.RequestsPerMinute == 0 {
		cfg.RequestsPerMinute = defaultPerMinute
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	return &Client{
		http: httpClient(cfg.HTTPClient), base: base, header: header, key: kind,
		limiter: rate.NewLimiter(rate.Limit(cfg.RequestsPerMinute)/60, max(1, cfg.RequestsPerMinute/burst)),
		timeout: cfg.Timeout, onCall: cfg.OnCall, random: cfg.Random,
		csrf:  csrf{client: uuid.NewString()},
		pools: newCache[WorkPool](poolAge), queues: newCache[[]WorkQueue](poolAge), flows: newCache[Flow](flowAge),
		blocks: newCache[BlockDocument](poolAge), variables: newCache[variable](poolAge),
	}, nil
}

func parseBase(s string) (*url.URL, error) {
	const hint = "write the API's address, like http://HOST:4200/api or https://api.prefect.cloud/api/accounts/A/workspaces/W"
	u, err := url.Parse(strings.TrimRight(strings.TrimSpace(s), "/"))
	switch {
	case err != nil: // its text repeats the URL, which may hold a password
		return nil, errors.New("API URL: it cannot be parsed; " + hint)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("API URL: %q is not an http or https address; %s", u.Redacted(), hint)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("API URL: %q has a query or fragment; %s", u.Redacted(), hint)
	case u.Hostname() == "app.prefect.cloud":
		return nil, fmt.Errorf("API URL: %q is the user interface; %s", u.Redacted(), hint)
	}
	return u, nil
}

func httpClient(given *http.Client) *http.Client {
	c := &http.Client{}
	if given != nil {
		*c = *given
	} else if t, ok := http.DefaultTransport.(*http.Transport); ok {
		t = t.Clone()
		t.MaxIdleConnsPerHost = 32 // every call goes to one host; the default of 2 would open connections all the time
		c.Transport = t
	}
	// Any other redirect would turn a POST into a GET, or carry the credential elsewhere.
	c.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		first := via[0].URL
		kept := r.Response.StatusCode == http.StatusTemporaryRedirect || r.Response.StatusCode == http.StatusPermanentRedirect
		if kept && r.URL.Scheme == first.Scheme && r.URL.Host == first.Host && len(via) < 3 {
			return nil
		}
		return http.ErrUseLastResponse
	}
	return c
}
