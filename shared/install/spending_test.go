package install

import (
	"log/slog"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/quota"
)

// TestWhatStopsCountsAgainstTheQuota holds that launches are granted what cancellations and
// deletions leave.
func TestWhatStopsCountsAgainstTheQuota(t *testing.T) {
	server, err := cloudruntest.Start(cloudruntest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	client, err := cloudrun.New(t.Context(), server.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	now := time.Now()
	budget := quota.New(ledger.NewMemory(), flowrun.Quota{Writes: 65, Jobs: 1000}, func() time.Time { return now })
	s := Spending{client, budget, slog.New(slog.DiscardHandler)}
	job := cloudrun.JobName{Project: "p", Region: "r", Job: "j"}
	for range 30 {
		if err := s.CancelExecution(t.Context(), job.Execution(cloudrun.Token)); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteJob(t.Context(), job); err != nil {
			t.Fatal(err)
		}
	}
	at, _, err := budget.Launch(t.Context(), "p/r", quota.Ask{})
	if err != nil || at.Sub(now) < 59*time.Second {
		t.Errorf("after 60 of 65 writes, of which 5 are kept, a launch is granted in %s, %v", at.Sub(now), err)
	}
}
