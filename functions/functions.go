// Package functions lists the functions of an installation.
package functions

import (
	"fmt"
	"net/http"

	"github.com/pushpool/pushpool/functions/dispatcher"
	"github.com/pushpool/pushpool/functions/finalizer"
	"github.com/pushpool/pushpool/functions/reconciler"
	"github.com/pushpool/pushpool/functions/webhook"
	"github.com/pushpool/pushpool/shared/install"
)

// Function is a function by its entry point.
type Function struct {
	Name string
	// New validates the configuration and returns the handler. It makes no client and no
	// connection: those are made on first use.
	New func(install.Surroundings) (http.Handler, error)
}

// All returns the functions in the order in which a flow run meets them.
func All() []Function {
	return []Function{
		{"webhook", webhook.New},
		{"dispatcher", dispatcher.New},
		{"finalizer", finalizer.New},
		{"reconciler", reconciler.New},
	}
}

// Make returns the handlers of the function with that name, or of all where it is empty, by
// name. The error holds everything that is wrong with their configuration, each line with the
// name of the functions that it concerns.
func Make(target string, s install.Surroundings) (map[string]http.Handler, error) {
	handlers := map[string]http.Handler{}
	var problems problems
	for _, f := range All() {
		if target != "" && target != f.Name {
			continue
		}
		s.Function = f.Name
		h, err := f.New(s)
		problems.add(f.Name, err)
		handlers[f.Name] = h
	}
	if len(handlers) == 0 {
		return nil, fmt.Errorf("FUNCTION_TARGET: %q is none of the functions; write webhook, dispatcher, finalizer or reconciler", target)
	}
	return handlers, problems.err()
}
