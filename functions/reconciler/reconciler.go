// Package reconciler has what no event told found and repaired each minute.
package reconciler

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/pushpool/pushpool/shared/sweep"
)

// endpoint answers Cloud Scheduler: 204, or 500 with the error, after which it calls again in a minute.
func endpoint(sweepOnce func(context.Context) (sweep.Report, error), log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "method "+req.Method+": use POST", http.StatusMethodNotAllowed)
			return
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(req.Context(), sweep.Timeout)
		defer cancel()
		report, err := sweepOnce(ctx)
		attrs := []any{"function", "reconciler", "sweep", report, "took", time.Since(start).Seconds()}
		if err != nil {
			log.ErrorContext(ctx, "the sweep was not complete; the next one starts over", append(attrs, "error", err)...)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		log.InfoContext(ctx, "swept", attrs...)
		w.WriteHeader(http.StatusNoContent)
	})
}
