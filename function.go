// Package pushpool registers the four functions with the functions framework.
//
// The Go buildpack builds a program around this package. FUNCTION_TARGET names the function
// that an instance serves; its configuration is validated before it listens.
package pushpool

import (
	"fmt"
	"os"

	framework "github.com/GoogleCloudPlatform/functions-framework-go/functions"

	"github.com/pushpool/pushpool/functions"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/ledger"
)

func init() {
	handlers, err := functions.Make(os.Getenv("FUNCTION_TARGET"), install.Surroundings{
		Environ: os.Environ(), Log: os.Stderr, Memory: ledger.NewMemory(),
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "pushpool does not start, its configuration is wrong:\n%v\n", err)
		os.Exit(1)
	}
	for name, h := range handlers {
		framework.HTTP(name, h.ServeHTTP)
	}
}
