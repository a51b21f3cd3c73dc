package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/scripts/pushpool/goldentest"
)

// golden holds what a person is told, by case, to the letter; and that nobody is told of a problem without why it matters and what mends it.
func golden(t *testing.T, name string, said map[string][]Finding) {
	t.Helper()
	var got strings.Builder
	for _, c := range slices.Sorted(maps.Keys(said)) {
		fmt.Fprintf(&got, "== %s\n", c)
		Print(&got, said[c])
		for _, f := range said[c] {
			if (f.Status == Problem || f.Status == Warning) && (f.Why == "" || f.Mend == "") {
				t.Errorf("%s: a person is told neither why nor what to do: %+v", c, f)
			}
		}
	}
	goldentest.Hold(t, name, got.String())
}

// TestChecksAreMadeAtOnceAndReportedInOrder holds that ten slow ones take as long as one, and
// that one which hangs is cut off.
func TestChecksAreMadeAtOnceAndReportedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := func(d time.Duration) func(context.Context) []Finding {
			return func(ctx context.Context) []Finding {
				select {
				case <-time.After(d):
					return []Finding{ok("fine")}
				case <-ctx.Done():
					return []Finding{unknown(ctx.Err(), "")}
				}
			}
		}
		start := time.Now()
		found := Examine(t.Context(), []Check{{"slow", wait(20 * time.Second)}, {"hangs", wait(time.Hour)}, {"quick", wait(time.Second)}})
		if took := time.Since(start); took != patience {
			t.Errorf("it took %s", took)
		}
		want := []Finding{
			{Check: "slow", Status: OK, What: "fine"},
			{Check: "hangs", Status: Unknown, What: context.DeadlineExceeded.Error()},
			{Check: "quick", Status: OK, What: "fine"},
		}
		if diff := cmp.Diff(want, found); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestHazardsOfVersions holds what is known of Prefect's versions.
func TestHazardsOfVersions(t *testing.T) {
	for version, want := range map[string]Status{
		"2.19.9": Problem, "2.20.25": Warning, "3.0.11": Problem, "3.1.2": Problem, "3.1.3": OK, "3.4.25": OK, "3.8.8": OK,
		"3.1.3rc1": OK, "4.0.0": OK, "": Unknown, "main": Unknown,
	} {
		got := hazards(version, false)
		if len(got) != 1 || got[0].Status != want {
			t.Errorf("%q: %+v, want %s", version, got, want)
		}
		if want == Problem && (got[0].Why == "" || got[0].Mend == "") {
			t.Errorf("%q: neither why nor what to do: %+v", version, got[0])
		}
	}
	if got := hazards("", true); got[0].Status != OK {
		t.Errorf("Prefect Cloud: %+v", got)
	}
}

// TestJobsNearTheLimit holds the two thresholds.
func TestJobsNearTheLimit(t *testing.T) {
	var got []Status
	for _, n := range []int{0, 599, 600, 949, 950, 1000} {
		got = append(got, jobsFinding("p", "r", n, 1000).Status)
	}
	if diff := cmp.Diff([]Status{OK, OK, Warning, Warning, Problem, Problem}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestEveryGrantNamesAnIdentityOnce holds that no question is asked twice.
func TestEveryGrantNamesAnIdentityOnce(t *testing.T) {
	var seen []string
	for _, g := range Grants(config()) {
		key := strings.Join([]string{g.Identity, g.Permission, g.On, g.In}, " ")
		if slices.Contains(seen, key) {
			t.Errorf("asked twice: %s", key)
		}
		seen = append(seen, key)
	}
}

// TestTheMendOfPrefectsSideBringsTheSecret holds that what doctor prints can be run where the
// configuration is what Terraform prints, which has no secrets.
func TestTheMendOfPrefectsSideBringsTheSecret(t *testing.T) {
	cfg := config()
	const brings = "export WEBHOOK_SECRETS=$(gcloud secrets versions access latest --secret=pushpool-webhook-secrets --project=p) && pushpool connect"
	if got := connectAgain(cfg); got != brings {
		t.Errorf("without a secret: %s", got)
	}
	cfg.WebhookSecrets = "a-secret-of-enough-characters"
	if got := connectAgain(cfg); got != "pushpool connect" {
		t.Errorf("with one: %s", got)
	}
	if got := reconnect(cfg); got != brings {
		t.Errorf("with one that the webhook refuses: %s", got)
	}
}
