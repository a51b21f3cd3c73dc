// Package prefecttest is a stand-in for a Prefect server that keeps Prefect's rules, and the
// contract suite that it and real servers pass.
package prefecttest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Options configure a stand-in. The zero value is a server of 3.x with events, without
// authentication, on the real clock, whose background services run only when Tick is called.
type Options struct {
	// Version is "3" (also if empty) or "2": what a server of 2.20 does otherwise.
	Version string
	// NoEvents makes events and automations answer 404, as a server of 2.20 does unless told otherwise.
	NoEvents bool
	// Now is the server's clock; nil means time.Now.
	Now func() time.Time
	// Scheduler runs the background services all the time, every few tenths of a second of the real
	// clock; see Tick.
	Scheduler bool
	// AuthString, USER:PASSWORD, is demanded if set; APIKey likewise, as Prefect Cloud does.
	AuthString, APIKey string
	// CSRF demands a token with every change.
	CSRF bool
	// Intercept, if set, gets every request and calls next, or answers itself. With next called on
	// a recorder, it can lose an answer after the commit.
	Intercept func(w http.ResponseWriter, r *http.Request, next http.Handler)
	// Webhooks carries the calls of automations; nil means the network.
	Webhooks http.RoundTripper
	// OnState, if set, is told of each state that is written, with the server's mutex held.
	OnState func(Change)
}

// Change is a state that was written; From is empty for a flow run's first.
type Change struct {
	FlowRunID, StateID, Name, TransitionID string
	From, To                               flowrun.StateType
}

// Server is a running stand-in. Its methods may be called by several goroutines.
type Server struct {
	opts Options
	http *httptest.Server
	mux  *http.ServeMux
	done chan struct{}
	work sync.WaitGroup // the scheduler, and webhooks under way
	// webhooks calls those of automations.
	webhooks *http.Client

	mu          sync.Mutex // guards all below
	flows       map[string]*flow
	deployments map[string]*deployment
	flowRuns    map[string]*flowRun
	pools       map[string]*workPool // by name
	blockTypes  map[string]*blockType
	schemas     map[string]*blockSchema
	documents   map[string]*blockDocument
	variables   map[string]*variable // by name
	automations map[string]*automation
	artifacts   []*artifact
	logs        []logLine
	seen        map[string]bool // ids of events
	held        []heldEvent
	tokens      map[string]string // CSRF token by client
	last        time.Time         // the latest time given out
}

// New starts a stand-in on a free port of 127.0.0.1.
func New(o Options) *Server {
	s := NewHandler(o)
	s.http = httptest.NewServer(s)
	return s
}

// NewHandler returns a stand-in that listens nowhere: its ServeHTTP is called instead.
func NewHandler(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Webhooks == nil {
		o.Webhooks = &http.Transport{}
	}
	s := &Server{
		opts: o, mux: http.NewServeMux(), done: make(chan struct{}), webhooks: &http.Client{Transport: o.Webhooks},
		flows: map[string]*flow{}, deployments: map[string]*deployment{}, flowRuns: map[string]*flowRun{},
		pools: map[string]*workPool{}, blockTypes: map[string]*blockType{}, schemas: map[string]*blockSchema{},
		documents: map[string]*blockDocument{}, variables: map[string]*variable{}, automations: map[string]*automation{},
		seen: map[string]bool{}, tokens: map[string]string{},
	}
	s.installBlockTypes()
	s.routes()
	if o.Scheduler {
		s.work.Go(s.schedule)
	}
	return s
}

// URL is the API's base URL; it ends in /api.
func (s *Server) URL() string { return s.http.URL + "/api" }

// Close stops the server and waits for the webhooks under way.
func (s *Server) Close() {
	close(s.done)
	if s.http != nil {
		s.http.CloseClientConnections()
		s.http.Close()
	}
	s.work.Wait()
	s.webhooks.CloseIdleConnections()
}

func (s *Server) schedule() {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.Tick()
		case <-s.done:
			return
		}
	}
}

func (s *Server) v2() bool { return s.opts.Version == "2" }

// now returns a time later than any it returned before, as the states of a flow run need it.
func (s *Server) now() time.Time {
	t := s.opts.Now().UTC().Truncate(time.Microsecond)
	if !t.After(s.last) && s.last.Sub(t) < time.Second { // a clock that a test holds still
		t = s.last.Add(time.Microsecond)
	}
	s.last = t
	return t
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.opts.Intercept != nil {
		s.opts.Intercept(w, r, http.HandlerFunc(s.answer))
		return
	}
	s.answer(w, r)
}

// answer checks what concerns all requests alike, then calls the endpoint.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	_, pattern := s.mux.Handler(r)
	switch {
	case !s.authorized(r):
		write(w, http.StatusUnauthorized, map[string]any{"exception_message": "Unauthorized"})
		return
	case pattern == "":
		s.unknown(w, r)
		return
	case oldVersion(r.Header.Get("X-Prefect-Api-Version")):
		write(w, http.StatusBadRequest, detail("The request specified API version "+r.Header.Get("X-Prefect-Api-Version")+
			" but this server requires version 0.8.0 or higher."))
		return
	}
	if s.opts.CSRF && r.Method != http.MethodGet {
		if refused := s.badToken(r); refused != "" {
			write(w, http.StatusForbidden, detail(refused))
			return
		}
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) authorized(r *http.Request) bool {
	if p := r.URL.Path; p == "/api/health" || p == "/api/ready" {
		return true
	}
	given := r.Header.Get("Authorization")
	switch {
	case s.opts.AuthString != "":
		user, password, _ := strings.Cut(s.opts.AuthString, ":")
		u, p, ok := r.BasicAuth()
		return ok && u == user && p == password && strings.HasPrefix(given, "Basic ")
	case s.opts.APIKey != "":
		return given == "Bearer "+s.opts.APIKey
	}
	return true
}

// unknown answers what no endpoint has: a slash too few or too many is redirected.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request) {
	other := r.URL.Path + "/"
	if strings.HasSuffix(r.URL.Path, "/") {
		other = strings.TrimSuffix(r.URL.Path, "/")
	}
	find := func(method, path string) bool {
		u := *r.URL
		u.Path, u.RawPath = path, ""
		_, pattern := s.mux.Handler(&http.Request{Method: method, URL: &u, Host: r.Host})
		return pattern != ""
	}
	if find(r.Method, other) {
		u := *r.URL
		u.Path, u.RawPath, u.Scheme, u.Host = other, "", "http", r.Host
		w.Header().Set("Location", u.String())
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		if find(m, r.URL.Path) {
			write(w, http.StatusMethodNotAllowed, detail("Method Not Allowed"))
			return
		}
	}
	write(w, http.StatusNotFound, detail("Not Found"))
}

// call is one request to an endpoint.
type call struct {
	*http.Request
	body []byte
}

// endpoint answers a call; it runs with the server's mutex held.
type endpoint func(c *call) (status int, body any, err error)

func (s *Server) handle(pattern string, e endpoint) {
	s.mux.HandleFunc(strings.Replace(pattern, " /", " /api/", 1), func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.mu.Lock()
		status, answer, err := e(&call{Request: r, body: body})
		var refusal *refusal
		if errors.As(err, &refusal) {
			status, answer = refusal.status, refusal.body
		}
		data, merr := json.Marshal(answer) // while nobody changes it
		s.mu.Unlock()
		if merr != nil || err != nil && refusal == nil {
			write(w, http.StatusInternalServerError, map[string]any{"exception_message": "Internal Server Error"})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if status != http.StatusNoContent {
			_, _ = w.Write(data)
		}
	})
}

func write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// refusal is an answer that is an error.
type refusal struct {
	status int
	body   any
}

func (r *refusal) Error() string { return http.StatusText(r.status) }

func detail(text string) map[string]any { return map[string]any{"detail": text} }

func refuse(status int, text string) error { return &refusal{status: status, body: detail(text)} }

func missing(text string) error { return refuse(http.StatusNotFound, text) }

// invalid is the answer to a body that does not fit the endpoint's model.
func invalid(loc, msg string) error {
	path := []any{"body"}
	for p := range strings.SplitSeq(loc, ".") {
		path = append(path, p)
	}
	return &refusal{status: http.StatusUnprocessableEntity, body: map[string]any{
		"exception_message": "Invalid request received.",
		"exception_detail":  []any{map[string]any{"type": "value_error", "loc": path, "msg": msg}},
		"request_body":      nil,
	}}
}

// decode reads the body into v and refuses fields that v does not have. Decoded into an object of
// the store, it changes only the fields given.
func (c *call) decode(v any) error { return strict(c.body, v) }

func strict(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	dec.UseNumber()
	err := dec.Decode(v)
	if err == nil {
		return nil
	}
	if _, field, ok := strings.Cut(err.Error(), "unknown field "); ok {
		return invalid(strings.Trim(field, `"`), "Extra inputs are not permitted")
	}
	return invalid("", err.Error())
}

// only refuses every field but those named, for endpoints whose model is smaller than the object.
func (c *call) only(names ...string) error {
	fields, err := c.fields()
	if err != nil {
		return err
	}
	for _, n := range names {
		delete(fields, n)
	}
	for n := range fields {
		return invalid(n, "Extra inputs are not permitted")
	}
	return nil
}

// fields reads the body's top level, for endpoints that ignore what they do not know.
func (c *call) fields() (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if len(c.body) == 0 {
		return fields, nil
	}
	if err := json.Unmarshal(c.body, &fields); err != nil {
		return nil, invalid("", "JSON decode error")
	}
	return fields, nil
}

// text is a string that is null in JSON when it is empty.
type text string

// MarshalJSON implements json.Marshaler.
func (t text) MarshalJSON() ([]byte, error) {
	if t == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(t))
}
