package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// remote reads a ledger in the memory of `pushpool serve`, which shows its records.
type remote struct{ base string }

func (r remote) Get(ctx context.Context, flowRunID string) (rec flowrun.Record, err error) {
	rec.FlowRunID = flowRunID
	act := fmt.Sprintf("read the ledger's record of flow run %s from %s", flowRunID, r.base)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+"/"+url.PathEscape(flowRunID), nil)
	if err != nil {
		return rec, fmt.Errorf("%s: %w", act, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return rec, fmt.Errorf("%s: %w; is `pushpool local` or `pushpool serve` still up?", act, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return rec, fmt.Errorf("%s: %s", act, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&rec); err != nil {
		return rec, fmt.Errorf("%s: %w", act, err)
	}
	return rec, nil
}

// Show serves the records that a ledger holds, one at PATH/FLOW_RUN_ID, as JSON.
func Show(records Records) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		rec, err := records.Get(req.Context(), req.PathValue("id"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(rec)
	})
}
