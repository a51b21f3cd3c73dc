package bench

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAFigureSaysWhetherItsBarIsMet(t *testing.T) {
	const ratio, own = "entry delivered → state in Prefect, of PENDING, in set_state round trips", "an entry of PENDING without a call being out p50"
	var out bytes.Buffer
	b := &bench{name: "finalize", out: &out, figures: map[string]float64{}}
	b.figure(ratio, "ratio", 5)
	b.figure(ratio, "ratio", 3) // one that was missed stays missed
	b.figure(own, "s", 0.002)
	b.figure("shown beside", "s", 100)
	want := `{"bar":"at most 4","benchmark":"finalize","figure":"` + ratio + `","ok":false,"unit":"ratio","value":5}
{"bar":"at most 4","benchmark":"finalize","figure":"` + ratio + `","ok":true,"unit":"ratio","value":3}
{"bar":"at most 0.003","benchmark":"finalize","figure":"` + own + `","ok":true,"unit":"s","value":0.002}
{"benchmark":"finalize","figure":"shown beside","unit":"s","value":100}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	err := b.held()
	for _, says := range []string{"of PENDING, in set_state round trips: 5, and at most 4 is the bar", "of RUNNING, in set_state round trips: not measured"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
	if strings.Contains(err.Error(), own) {
		t.Errorf("%v names a bar that was met", err)
	}
}

func TestABarIsOfABenchmark(t *testing.T) {
	for name := range bars {
		if benchmarks[name] == nil {
			t.Errorf("there is no benchmark %q", name)
		}
	}
	for at, holds := range map[bar][2]bool{atMost(2): {true, false}, atLeast(2): {false, true}} {
		if got := [2]bool{at.holds(1), at.holds(3)}; got != holds || !at.holds(2) {
			t.Errorf("%s holds of 1 and 3: %v", at, got)
		}
	}
}
