package jobtemplate

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// jobIDs are what Cloud Run takes for a job's id: https://cloud.google.com/run/docs/create-jobs
var jobIDs = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)

func TestJobIDIsOneThatCloudRunTakes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(
			rapid.String(),
			rapid.StringMatching(`[-_ .A-Za-z0-9]{0,80}`),
			rapid.StringMatching(`(&[a-z]{1,5};|&#[0-9]{1,8};|[日本é'-]){0,40}`),
		).Draw(t, "name")
		launch := flowrun.NewLaunchID("install", rapid.String().Draw(t, "flow run"), "state")
		id := JobID(name, launch)
		switch {
		case !jobIDs.MatchString(id):
			t.Errorf("%q is no job id", id)
		case len(id) > 47:
			t.Errorf("%q is longer than 47", id)
		case !strings.HasPrefix(id, "pp-") || !strings.HasSuffix(id, "-"+launch.Suffix()):
			t.Errorf("%q does not name its launch %s", id, launch)
		case strings.Contains(id, "--"):
			t.Errorf("%q has two dashes in a row", id)
		}
	})
}

func TestJobIDBeginsWithTheName(t *testing.T) {
	launch := flowrun.NewLaunchID("install", "flow-run", "state")
	for _, c := range []struct{ name, want string }{
		{"My Run", "pp-my-run-"},
		{"9 lives", "pp-9-lives-"},
		{"日本", "pp-ri-ben-"},
		{"", "pp-"},
		{"😀", "pp-"},
		{strings.Repeat("a", 29) + "-b", "pp-" + strings.Repeat("a", 29) + "-"},
		{strings.Repeat("a", 31), "pp-" + strings.Repeat("a", 30) + "-"},
	} {
		if got := JobID(c.name, launch); got != c.want+launch.Suffix() {
			t.Errorf("JobID(%q) is %q, want %s…", c.name, got, c.want)
		}
	}
	if other := flowrun.NewLaunchID("install", "flow-run", "state-2"); JobID("a", launch) == JobID("a", other) {
		t.Error("two launches have one job id")
	}
}
