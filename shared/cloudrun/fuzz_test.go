package cloudrun_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pushpool/pushpool/shared/cloudrun"
)

// FuzzReadEntry holds that nothing in an entry makes the finalizer fall over, and that what is
// read names an execution.
func FuzzReadEntry(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := cloudrun.ReadEntry(data)
		if err != nil {
			return
		}
		if e.Execution.Execution == "" || e.Execution.Job == "" || e.Execution.Region == "" {
			t.Errorf("no execution in %+v", e)
		}
		if e.Complete && e.Outcome.Kind == "" && !errors.Is(err, cloudrun.ErrNotCompletion) {
			t.Errorf("a complete entry without an outcome: %+v", e)
		}
	})
}
