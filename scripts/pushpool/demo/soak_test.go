package demo

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestASoakTellsWhatGrows(t *testing.T) {
	levels := func(heap, leaked uint64, goroutines, left int) (all []level) {
		for i := range 90 {
			all = append(all, level{heap + uint64(i)*leaked, goroutines + i*left})
		}
		return all
	}
	for name, tt := range map[string]struct {
		levels []level
		want   []string
	}{
		"nothing":                  {levels(8<<20, 0, 100, 0), nil},
		"a little, as caches do":   {levels(8<<20, 64<<10, 100, 1), nil},
		"the heap":                 {levels(8<<20, 512<<10, 100, 0), []string{"heap"}},
		"goroutines":               {levels(8<<20, 0, 100, 4), []string{"goroutines"}},
		"both, of a large process": {levels(100<<20, 4<<20, 1000, 40), []string{"heap", "goroutines"}},
		"too short to tell":        {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := soak{levels: tt.levels, done: 5, wrong: []error{errors.New("one")}}
			r := s.report()
			if diff := cmp.Diff(tt.want, r.Grows); diff != "" || r.FlowRuns != 5 || r.Wrong != 1 {
				t.Errorf("%+v: %s", r, diff)
			}
		})
	}
}
