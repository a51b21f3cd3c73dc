package followup_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/followup"
	"github.com/pushpool/pushpool/shared/ledger"
)

type topic struct{ sent []string }

func (t *topic) Publish(_ context.Context, data []byte, _ map[string]string) (string, error) {
	t.sent = append(t.sent, string(data))
	return "1", nil
}

// A slot that came free is told of where somebody waits for it, and to whoever is just asking
// what may start there: what that one read may be older.
func TestAFreeSlotWakesWhoWaitsForIt(t *testing.T) {
	now := time.Now()
	held := flowrun.Gate{LeaseHolder: "h", LeaseUntil: now.Add(time.Minute), Waits: true}
	stale := flowrun.Gate{LeaseHolder: "h", LeaseUntil: now.Add(-time.Minute), Waits: true}
	asked := held
	asked.Again = true
	for name, tt := range map[string]struct {
		pool, deployment         flowrun.Gate
		sent                     []string
		poolAfter, deployedAfter flowrun.Gate
	}{
		"nobody waits": {},
		"for the pool": {
			pool: flowrun.Gate{Waits: true}, sent: []string{`{"work_pool":"p"}`}, poolAfter: flowrun.Gate{Waits: true},
		},
		"for the deployment": {
			deployment: flowrun.Gate{Waits: true}, sent: []string{`{"deployment_id":"d"}`}, deployedAfter: flowrun.Gate{Waits: true},
		},
		"for both": {
			pool: flowrun.Gate{Waits: true}, deployment: flowrun.Gate{Waits: true},
			sent: []string{`{"work_pool":"p","deployment_id":"d"}`}, poolAfter: flowrun.Gate{Waits: true}, deployedAfter: flowrun.Gate{Waits: true},
		},
		"somebody is asking: it asks again":  {pool: held, deployment: held, poolAfter: asked, deployedAfter: asked},
		"who asked has not left and is gone": {pool: stale, sent: []string{`{"work_pool":"p"}`}, poolAfter: stale},
	} {
		t.Run(name, func(t *testing.T) {
			l, out := ledger.NewMemory(), &topic{}
			for _, change := range []bool{true, false} {
				p, err := l.UpdatePool(t.Context(), "p", func(p flowrun.Pool) (flowrun.Pool, error) {
					if change {
						p.Gate = tt.pool
					}
					return p, nil
				})
				if err != nil {
					t.Fatal(err)
				}
				d, err := l.UpdateDeployment(t.Context(), "d", func(d flowrun.Deployment) (flowrun.Deployment, error) {
					if change {
						d.Gate = tt.deployment
					}
					return d, nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if !change {
					if diff := cmp.Diff([]flowrun.Gate{tt.poolAfter, tt.deployedAfter}, []flowrun.Gate{p.Gate, d.Gate}); diff != "" {
						t.Errorf("gates (-want +got):\n%s", diff)
					}
					continue
				}
				if err := followup.New(out, nil, l, func() time.Time { return now }).Freed(t.Context(), "p", "d"); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.sent, out.sent); diff != "" {
				t.Errorf("sent (-want +got):\n%s", diff)
			}
		})
	}
}
