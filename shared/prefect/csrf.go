package prefect

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	headerToken  = "Prefect-Csrf-Token"
	headerClient = "Prefect-Csrf-Client"
)

// csrf is the token that a server with PREFECT_SERVER_CSRF_PROTECTION_ENABLED wants on every
// change. Whether it does is learnt from its first refusal. A token belongs to one client id, and
// the next one for that id makes it invalid: each Client has its own id.
type csrf struct {
	client string

	mu     sync.Mutex
	token  string
	change sync.Mutex // held while a token is fetched
}

func (c *csrf) current() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

func (c *csrf) set(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = token
}

// csrfWanted reports whether the call failed for lack of a valid token.
func csrfWanted(f *failure) bool {
	return f.status == http.StatusForbidden && strings.Contains(f.detail, "CSRF token")
}

// refreshToken replaces the token that was refused, unless another call did so meanwhile.
func (c *Client) refreshToken(ctx context.Context, refused string) error {
	c.csrf.change.Lock()
	defer c.csrf.change.Unlock()
	if c.csrf.current() != refused {
		return nil
	}
	r := request{act: "get a CSRF token", method: http.MethodGet, path: "/csrf-token?client=" + url.QueryEscape(c.csrf.client)}
	var answer struct{ Token string }
	switch _, f := c.attempt(ctx, r, nil, "", &answer); {
	case f == nil && answer.Token != "":
		c.csrf.set(answer.Token)
	case f == nil:
		return &flowrun.Error{Fault: flowrun.Unclear, Act: r.act, Err: errors.New("the answer has no token")}
	case f.status == http.StatusUnprocessableEntity || f.status == http.StatusNotFound:
		c.csrf.set("") // the protection is off
	default:
		return f.Error
	}
	return nil
}
