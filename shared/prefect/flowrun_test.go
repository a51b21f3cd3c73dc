package prefect_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestEachFlowRunIsListedOnce holds where a list ends, and how many calls that takes.
func TestEachFlowRunIsListedOnce(t *testing.T) {
	const page = prefect.MaxPage
	broken := errors.New("the server is down")
	of := func(count int) func(prefect.Filter) ([]prefect.FlowRun, error) {
		return func(f prefect.Filter) (all []prefect.FlowRun, err error) {
			for i := f.Offset; i < min(count, f.Offset+page); i++ {
				all = append(all, prefect.FlowRun{ID: fmt.Sprint(i)})
			}
			return all, nil
		}
	}
	for rule, tt := range map[string]struct {
		list                func(prefect.Filter) ([]prefect.FlowRun, error)
		want, calls, stopAt int
		broken, hasNoEnd    bool
	}{
		"none":                          {list: of(0), want: 0, calls: 1},
		"a page that is not full":       {list: of(page - 1), want: page - 1, calls: 1},
		"a full page may be the last":   {list: of(page), want: page, calls: 2},
		"several pages":                 {list: of(3*page + 1), want: 3*page + 1, calls: 4},
		"no page beyond what is wanted": {list: of(3 * page), want: page, calls: 1, stopAt: page},
		"pages that overlap": {list: func(f prefect.Filter) ([]prefect.FlowRun, error) {
			f.Offset = max(0, f.Offset-5)
			return of(page + 1)(f)
		}, want: page + 1, calls: 2},
		"an error is the end": {list: func(f prefect.Filter) ([]prefect.FlowRun, error) {
			if f.Offset > 0 {
				return nil, broken
			}
			return of(page)(f)
		}, want: page, calls: 2, broken: true},
		"a server that ignores the offset": {list: func(prefect.Filter) ([]prefect.FlowRun, error) {
			return of(page)(prefect.Filter{})
		}, want: page, calls: 500, hasNoEnd: true},
	} {
		t.Run(rule, func(t *testing.T) {
			calls, got := 0, map[string]int{}
			var failed error
			all := prefect.EachFlowRun(t.Context(), func(_ context.Context, f prefect.Filter) ([]prefect.FlowRun, error) {
				calls++
				return tt.list(f)
			}, prefect.Filter{})
			for fr, err := range all {
				if err != nil {
					failed = err
					continue
				}
				got[fr.ID]++
				if len(got) == tt.stopAt {
					break
				}
			}
			for id, times := range got {
				if times > 1 {
					t.Errorf("%s came %d times", id, times)
				}
			}
			if diff := cmp.Diff([]int{tt.want, tt.calls}, []int{len(got), calls}); diff != "" {
				t.Errorf("flow runs and calls (-want +got):\n%s", diff)
			}
			if (failed != nil) != (tt.broken || tt.hasNoEnd) || errors.Is(failed, broken) != tt.broken || tt.hasNoEnd && flowrun.FaultOf(failed) != flowrun.Permanent {
				t.Errorf("error %v", failed)
			}
		})
	}
}
