package prefecttest

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

type variable struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	Name    string    `json:"name"`
	Value   any       `json:"value"`
	Tags    []string  `json:"tags"`
}

type artifact struct {
	ID          string         `json:"id"`
	Created     time.Time      `json:"created"`
	Updated     time.Time      `json:"updated"`
	Key         text           `json:"key"`
	Type        text           `json:"type"`
	Description text           `json:"description"`
	Data        any            `json:"data"`
	Metadata    map[string]any `json:"metadata_"`
	FlowRunID   text           `json:"flow_run_id"`
	TaskRunID   text           `json:"task_run_id"`
}

type logLine struct {
	ID        string    `json:"id"`
	Created   time.Time `json:"created"`
	Updated   time.Time `json:"updated"`
	Name      string    `json:"name"`
	Level     int       `json:"level"`
	Message   string    `json:"message"`
	Timestamp time.Time `json:"timestamp"`
	FlowRunID text      `json:"flow_run_id"`
	TaskRunID text      `json:"task_run_id"`
}

func (s *Server) routes() {
	s.deploymentRoutes()
	s.scheduleRoutes()
	s.flowRunRoutes()
	s.poolRoutes()
	s.slotRoutes()
	s.blockRoutes()
	s.automationRoutes()
	s.variableRoutes()
	s.recordRoutes()
	answer := func(pattern string, body any) {
		s.handle(pattern, func(*call) (int, any, error) { return http.StatusOK, body, nil })
	}
	version := "3.8.8"
	if s.v2() {
		version = "2.20.25"
	}
	answer("GET /health", true)
	answer("GET /ready", map[string]any{"message": "OK"})
	answer("GET /hello", "👋")
	answer("GET /version", "0.8.4")
	answer("GET /admin/version", version)
	s.handle("GET /csrf-token", s.csrfToken)
}

func (s *Server) variableRoutes() {
	s.handle("POST /variables/{$}", func(c *call) (int, any, error) {
		v := &variable{ID: uuid.NewString(), Tags: []string{}}
		if err := c.only("name", "value", "tags"); err != nil {
			return 0, nil, err
		}
		if err := c.decode(v); err != nil {
			return 0, nil, err
		}
		if _, ok := v.Value.(string); s.v2() && !ok {
			return 0, nil, invalid("value", "Input should be a valid string")
		}
		if s.variables[v.Name] != nil {
			return 0, nil, refuse(http.StatusConflict, "A variable with this name already exists.")
		}
		v.Created = s.now()
		v.Updated, s.variables[v.Name] = v.Created, v
		return http.StatusCreated, v, nil
	})
	s.handle("GET /variables/name/{name}", func(c *call) (int, any, error) {
		if v, ok := s.variables[c.PathValue("name")]; ok {
			return http.StatusOK, v, nil
		}
		return 0, nil, missing("Variable not found.")
	})
	s.handle("DELETE /variables/name/{name}", func(c *call) (int, any, error) {
		if _, ok := s.variables[c.PathValue("name")]; !ok {
			return 0, nil, missing("Variable not found.")
		}
		delete(s.variables, c.PathValue("name"))
		return http.StatusNoContent, nil, nil
	})
}

// recordRoutes are those of what flow runs leave behind: artifacts and log lines.
func (s *Server) recordRoutes() {
	s.handle("POST /artifacts/{$}", func(c *call) (int, any, error) {
		a := &artifact{ID: uuid.NewString()}
		if err := c.only("key", "type", "description", "data", "metadata_", "flow_run_id", "task_run_id"); err != nil {
			return 0, nil, err
		}
		if err := c.decode(a); err != nil {
			return 0, nil, err
		}
		a.Created = s.now()
		a.Updated = a.Created
		s.artifacts = append(s.artifacts, a)
		return http.StatusCreated, a, nil
	})
	s.handle("POST /artifacts/filter", s.filterArtifacts)
	s.handle("POST /logs/{$}", func(c *call) (int, any, error) {
		var lines []struct {
			Name      string    `json:"name"`
			Level     int       `json:"level"`
			Message   string    `json:"message"`
			Timestamp time.Time `json:"timestamp"`
			FlowRunID text      `json:"flow_run_id"`
			TaskRunID text      `json:"task_run_id"`
			WorkerID  text      `json:"worker_id"`
		}
		if err := c.decode(&lines); err != nil {
			return 0, nil, err
		}
		for _, l := range lines {
			now := s.now()
			s.logs = append(s.logs, logLine{
				ID: uuid.NewString(), Created: now, Updated: now, Name: l.Name, Level: l.Level, Message: l.Message,
				Timestamp: l.Timestamp, FlowRunID: l.FlowRunID, TaskRunID: l.TaskRunID,
			})
		}
		return http.StatusCreated, nil, nil
	})
	s.handle("POST /logs/filter", s.filterLogs)
}

func (s *Server) filterArtifacts(c *call) (int, any, error) {
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	part, err := readPage(fields)
	if err != nil {
		return 0, nil, err
	}
	var f struct {
		FlowRunID *words `json:"flow_run_id"`
		Key       *words `json:"key"`
		Type      *words `json:"type"`
	}
	if raw, ok := fields["artifacts"]; ok {
		if err := strict(raw, &f); err != nil {
			return 0, nil, err
		}
	}
	found := []*artifact{}
	for _, a := range s.artifacts {
		if f.FlowRunID.match(string(a.FlowRunID)) && f.Key.match(string(a.Key)) && f.Type.match(string(a.Type)) {
			found = append(found, a)
		}
	}
	slices.SortFunc(found, func(a, b *artifact) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID)) })
	return http.StatusOK, cutPage(found, part), nil
}

func (s *Server) filterLogs(c *call) (int, any, error) {
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	part, err := readPage(fields)
	if err != nil {
		return 0, nil, err
	}
	var f struct {
		FlowRunID *words `json:"flow_run_id"`
	}
	if raw, ok := fields["logs"]; ok {
		if err := strict(raw, &f); err != nil {
			return 0, nil, err
		}
	}
	found := []logLine{}
	for _, l := range s.logs {
		if f.FlowRunID.match(string(l.FlowRunID)) {
			found = append(found, l)
		}
	}
	slices.SortStableFunc(found, func(a, b logLine) int { return a.Timestamp.Compare(b.Timestamp) })
	if part.sort == "TIMESTAMP_DESC" {
		slices.Reverse(found)
	}
	return http.StatusOK, cutPage(found, part), nil
}

// csrfToken gives a client its token; the one before is no longer valid.
func (s *Server) csrfToken(c *call) (int, any, error) {
	client := c.URL.Query().Get("client")
	switch {
	case !s.opts.CSRF:
		return 0, nil, refuse(http.StatusUnprocessableEntity, "CSRF protection is disabled.")
	case client == "":
		return 0, nil, invalid("client", "Field required")
	}
	s.tokens[client] = uuid.NewString()
	now := s.now()
	return http.StatusOK, map[string]any{
		"id": uuid.NewString(), "token": s.tokens[client], "client": client, "expiration": now.Add(time.Hour), "created": now, "updated": now,
	}, nil
}

// badToken says why a change is refused; empty: it is not.
func (s *Server) badToken(r *http.Request) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, client := r.Header.Get("Prefect-Csrf-Token"), r.Header.Get("Prefect-Csrf-Client")
	switch {
	case token == "":
		return "Missing CSRF token."
	case client == "":
		return "Missing client identifier."
	case s.tokens[client] != token:
		return "Invalid CSRF token or client identifier."
	}
	return ""
}

// oldVersion reports whether a client's API version is too old, or none.
func oldVersion(v string) bool {
	if v == "" {
		return false
	}
	parts := strings.Split(v, ".")
	var figures [3]int
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || i >= len(figures) {
			return true
		}
		figures[i] = n
	}
	return len(parts) != len(figures) || figures[0] == 0 && figures[1] < 8
}
