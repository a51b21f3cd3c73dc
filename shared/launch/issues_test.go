package launch_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestAClaimThatPrefectAbortsIsDropped_Prefect16126 holds that a proposal which Prefect will
// never take is not made again and again: Prefect Cloud aborts that of a flow run which its own
// container is to run again.
func TestAClaimThatPrefectAbortsIsDropped_Prefect16126(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	var proposals atomic.Int32
	r.strikePrefect(func(w http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		if !strings.HasSuffix(req.URL.Path, "/set_state") {
			return false
		}
		proposals.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"state":null,"status":"ABORT","details":{"type":"abort_details",` +
			`"reason":"Cannot transition a flow run with in-process retries to PENDING state."}}`))
		return true
	})
	r.must(r.dispatch(fr.ID))
	if rec := r.record(fr.ID); proposals.Load() != 1 || len(r.executions(fr.ID)) != 0 || rec.Status != flowrun.StatusNone || rec.LeaseHolder != "" {
		t.Errorf("%d proposals, %d executions, the ledger keeps %+v", proposals.Load(), len(r.executions(fr.ID)), rec)
	}
	if got := r.messages.take(); len(got) != 0 {
		t.Errorf("sent %v", got)
	}
}
