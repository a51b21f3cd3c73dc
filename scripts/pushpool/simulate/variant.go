package simulate

import (
	"net/http"

	"github.com/pushpool/pushpool/shared/ledger"
)

// variant stands between a function and what it depends on. The honest one changes nothing;
// the mutants of the suite break one rule each.
type variant interface {
	ledger(l ledger.Ledger) ledger.Ledger
	request(req *http.Request) *http.Request
	response(req *http.Request, resp *http.Response) *http.Response
	acknowledged(status int) bool
}

type honest struct{}

func (honest) ledger(l ledger.Ledger) ledger.Ledger                         { return l }
func (honest) request(req *http.Request) *http.Request                      { return req }
func (honest) response(_ *http.Request, resp *http.Response) *http.Response { return resp }
func (honest) acknowledged(status int) bool                                 { return status >= 200 && status < 300 }
