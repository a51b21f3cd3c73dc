package prefecttest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// automation is an automation as answers show it.
type automation struct {
	ID          string    `json:"id"`
	Created     time.Time `json:"created"`
	Updated     time.Time `json:"updated"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Enabled     bool      `json:"enabled"`
	Tags        []string  `json:"tags"`
	Trigger     trigger   `json:"trigger"`
	Actions     []action  `json:"actions"`
	OnTrigger   []action  `json:"actions_on_trigger"`
	OnResolve   []action  `json:"actions_on_resolve"`
}

// trigger is an event trigger that fires with every event that matches.
type trigger struct {
	Type         string            `json:"type"`
	Posture      string            `json:"posture"`
	Match        map[string]labels `json:"match"`
	MatchRelated related           `json:"match_related"`
	Expect       []string          `json:"expect"`
	After        []string          `json:"after"`
	ForEach      []string          `json:"for_each"`
	Threshold    int               `json:"threshold"`
	Within       float64           `json:"within"`
}

type action struct {
	Type            string `json:"type"`
	BlockDocumentID string `json:"block_document_id"`
	Payload         string `json:"payload"`
}

// labels are the values that a label may have: one, or a list of them.
type labels []string

// UnmarshalJSON implements json.Unmarshaler.
func (l *labels) UnmarshalJSON(data []byte) error { return oneOrMore(data, (*[]string)(l)) }

// related are conditions, each of which one related resource has to meet.
type related []map[string]labels

// UnmarshalJSON implements json.Unmarshaler.
func (r *related) UnmarshalJSON(data []byte) error {
	return oneOrMore(data, (*[]map[string]labels)(r))
}

func oneOrMore[T any](data []byte, into *[]T) error {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("[")) {
		return json.Unmarshal(data, into)
	}
	var one T
	err := json.Unmarshal(data, &one)
	*into = []T{one}
	return err
}

func (s *Server) automationRoutes() {
	if s.opts.NoEvents {
		for _, pattern := range []string{"POST /automations/{$}", "POST /automations/filter", "PUT /automations/{id}", "PATCH /automations/{id}"} {
			s.handle(pattern, func(*call) (int, any, error) {
				return 0, nil, missing("Automations are not enabled. Please enable the `PREFECT_EXPERIMENTAL_EVENTS` setting.")
			})
		}
		return
	}
	s.handle("POST /automations/{$}", func(c *call) (int, any, error) {
		a, err := s.readAutomation(c)
		if err != nil {
			return 0, nil, err
		}
		a.ID, a.Created = uuid.NewString(), s.now()
		a.Updated = a.Created
		s.automations[a.ID] = a
		return http.StatusCreated, a, nil
	})
	s.handle("PUT /automations/{id}", func(c *call) (int, any, error) {
		a, err := s.readAutomation(c)
		if err != nil {
			return 0, nil, err
		}
		old, ok := s.automations[c.PathValue("id")]
		if !ok {
			return 0, nil, missing("Automation not found")
		}
		a.ID, a.Created, a.Updated = old.ID, old.Created, s.now()
		s.automations[a.ID] = a
		return http.StatusNoContent, nil, nil
	})
	s.handle("PATCH /automations/{id}", func(c *call) (int, any, error) {
		if err := c.only("enabled"); err != nil {
			return 0, nil, err
		}
		a, ok := s.automations[c.PathValue("id")]
		if !ok {
			return 0, nil, missing("Automation not found")
		}
		return http.StatusNoContent, nil, c.decode(a)
	})
	s.handle("DELETE /automations/{id}", func(c *call) (int, any, error) {
		if _, ok := s.automations[c.PathValue("id")]; !ok {
			return 0, nil, missing("Automation not found")
		}
		delete(s.automations, c.PathValue("id"))
		return http.StatusNoContent, nil, nil
	})
	s.handle("POST /automations/filter", s.filterAutomations)
}

func (s *Server) readAutomation(c *call) (*automation, error) {
	a := &automation{Enabled: true, Tags: []string{}, OnTrigger: []action{}, OnResolve: []action{}}
	if err := c.only("name", "description", "enabled", "tags", "trigger", "actions", "actions_on_trigger", "actions_on_resolve"); err != nil {
		return nil, err
	}
	if err := c.decode(a); err != nil {
		return nil, err
	}
	t := a.Trigger
	// What a real server can do beside this would be left undone here without a word.
	if t.Type != "event" || t.Posture != "Reactive" || t.Threshold > 1 || t.Within != 0 || len(t.After)+len(a.OnTrigger)+len(a.OnResolve) > 0 {
		return nil, invalid("trigger", "prefecttest has reactive event triggers that fire with every event only")
	}
	for _, act := range a.Actions {
		if act.Type != "call-webhook" || s.documents[act.BlockDocumentID] == nil {
			return nil, invalid("actions", "prefecttest has the action call-webhook with an existing block document only")
		}
	}
	return a, nil
}

func (s *Server) filterAutomations(c *call) (int, any, error) {
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	part, err := readPage(fields)
	if err != nil {
		return 0, nil, err
	}
	var f *named
	if raw, ok := fields["automations"]; ok {
		if err := strict(raw, &f); err != nil {
			return 0, nil, err
		}
	}
	found := []*automation{}
	for _, a := range s.automations {
		if f.match(a.ID, a.Name, "") {
			found = append(found, a)
		}
	}
	slices.SortFunc(found, func(a, b *automation) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.Created.Compare(b.Created)) })
	return http.StatusOK, cutPage(found, part), nil
}

// trigger starts the actions of the automations that the event matches.
func (s *Server) trigger(e *event) {
	for _, id := range slices.Sorted(maps.Keys(s.automations)) {
		a := s.automations[id]
		if !a.Enabled || !a.Trigger.matches(e) {
			continue
		}
		for _, act := range a.Actions {
			block := s.documents[act.BlockDocumentID]
			body, ok := s.render(act.Payload, e)
			if block != nil && ok {
				s.callWebhook(block.Data, body)
			}
		}
	}
}

func (t trigger) matches(e *event) bool {
	if len(t.Expect) > 0 && !labels(t.Expect).match(e.Event) || !meets(t.Match, e.Resource) {
		return false
	}
	for _, wanted := range t.MatchRelated {
		if len(wanted) > 0 && !slices.ContainsFunc(e.Related, func(r map[string]string) bool { return meets(wanted, r) }) {
			return false
		}
	}
	return true
}

func meets(wanted map[string]labels, resource map[string]string) bool {
	for name, l := range wanted {
		if value, ok := resource[name]; !ok || !l.match(value) {
			return false
		}
	}
	return true
}

func (l labels) match(value string) bool {
	return slices.ContainsFunc(l, func(wanted string) bool {
		if prefix, glob := strings.CutSuffix(wanted, "*"); glob {
			return strings.HasPrefix(value, prefix)
		}
		return wanted == value
	})
}

var placeholder = regexp.MustCompile(`\{\{\s*(.*?)\s*\}\}`)

// render fills a body template with an event. Of Jinja's language it knows the expressions that
// pushpool's templates use; ok is false for any other, where an action fails.
func (s *Server) render(template string, e *event) (body string, ok bool) {
	values := map[string]any{
		"event": e, "event.id": e.ID, "event.event": e.Event, "event.occurred.isoformat()": isoformat(e.Occurred),
		"event.resource.id": e.Resource["prefect.resource.id"],
	}
	for name, value := range e.Resource {
		values["event.resource['"+name+"']"] = value
	}
	ok = true
	body = placeholder.ReplaceAllStringFunc(template, func(p string) string {
		expression := placeholder.FindStringSubmatch(p)[1]
		name, filter, _ := strings.Cut(expression, "|")
		value, known := values[strings.TrimSpace(name)]
		switch plain, isText := value.(string); {
		case strings.TrimSpace(filter) == "tojson" && known && (isText || !s.v2()):
			data, err := json.Marshal(value)
			ok = ok && err == nil
			return strings.ReplaceAll(string(data), "'", `\u0027`)
		case filter == "" && isText:
			return plain
		}
		ok = false
		return ""
	})
	switch {
	case s.v2() && !ok: // 2.20 sends its error instead
		body, ok = "Failed to render template due to the following error: unknown expression", true
		fallthrough
	case s.v2():
		quoted, err := json.Marshal(body)
		return string(quoted), ok && err == nil
	}
	return body, ok
}

// webhookTimeout is Prefect's; it has no setting for it.
const webhookTimeout = 5 * time.Second

// callWebhook sends the body once: there is no other attempt, whatever comes of it.
func (s *Server) callWebhook(block map[string]any, body string) {
	url, _ := block["url"].(string)
	method, _ := block["method"].(string)
	headers, _ := block["headers"].(map[string]any)
	header := http.Header{}
	for name, value := range headers {
		if v, ok := value.(string); ok {
			header.Set(name, v)
		}
	}
	header.Set("User-Agent", "python-httpx/0.28.1")
	s.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), webhookTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, cmp.Or(method, http.MethodPost), url, strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header = header
		if resp, err := s.webhooks.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	})
}
