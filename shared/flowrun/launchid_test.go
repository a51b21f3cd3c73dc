package flowrun_test

import (
	"crypto/sha1"
	"regexp"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	flowRunID = "6b0b1a5e-2f6e-4c1c-9f5a-0d5b1c3c7a11"
	stateID   = "0a4cbe1e-62e2-4a0a-8d52-5a0d6f3a2b90"
)

// A changed value would make every flow run in flight a stranger's: never adapt these.
func TestLaunchIDsNeverChange(t *testing.T) {
	id := flowrun.NewLaunchID("project/main", flowRunID, stateID)
	if want := flowrun.LaunchID("6228a6fc-6a78-59e7-b0cd-58175917c704"); id != want {
		t.Errorf("id %s, want %s", id, want)
	}
	if want := "miukn7dkpbm6p"; id.Suffix() != want {
		t.Errorf("suffix %s, want %s", id.Suffix(), want)
	}
}

func TestLaunchIDIsAVersion5UUID(t *testing.T) {
	namespace := uuid.MustParse("9c1f2b56-0c7d-4b0e-8f35-6ad41e7b9021")
	rapid.Check(t, func(t *rapid.T) {
		install, run, state := rapid.String().Draw(t, "install"), rapid.String().Draw(t, "run"), rapid.String().Draw(t, "state")
		got := flowrun.NewLaunchID(install, run, state)
		want := uuid.NewHash(sha1.New(), namespace, []byte(install+"\x00"+run+"\x00"+state), 5).String()
		if string(got) != want {
			t.Fatalf("%s, want %s", got, want)
		}
	})
}

func TestLaunchIDTellsItsPartsApart(t *testing.T) {
	seen := map[flowrun.LaunchID]string{}
	for name, parts := range map[string][3]string{
		"one": {"i", "f", "s"}, "another install": {"j", "f", "s"}, "another flow run": {"i", "g", "s"},
		"another state": {"i", "f", "t"}, "shifted": {"if", "", "s"}, "swapped": {"f", "i", "s"},
	} {
		id := flowrun.NewLaunchID(parts[0], parts[1], parts[2])
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s have one id", name, other)
		}
		seen[id] = name
	}
}

func TestSuffixFitsAJobID(t *testing.T) {
	shape := regexp.MustCompile(`^[a-z2-7]{13}$`)
	rapid.Check(t, func(t *rapid.T) {
		if got := flowrun.NewLaunchID("i", "f", rapid.String().Draw(t, "state")).Suffix(); !shape.MatchString(got) {
			t.Fatalf("suffix %q", got)
		}
	})
}

func TestWhatIsNoLaunchIDHasNoSuffix(t *testing.T) {
	for _, id := range []flowrun.LaunchID{"", "ab", "not an id", "0a4cbe1e-62e2-4a0a-8d52-5a0d6f3a2b9000"} {
		if got := id.Suffix(); got != "" {
			t.Errorf("%q has suffix %q", id, got)
		}
	}
}
