package simulate

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var mutate = flag.Bool("mutants", false, "build and simulate every mutant; without it only their patches are tried")

// mutantFlowRuns is within how many flow runs a mutant has to be caught.
const mutantFlowRuns = 10_000

// mutant is the product with one rule of it broken.
type mutant struct {
	name     string
	rule     string // the invariant of the design that it breaks first
	file     string
	old, new string
	with     Options // the world in which it shows soon; the product itself is simulated in it, too
}

// mutants are built with go build -overlay: the product has no switch for them.
var mutants = []mutant{
	{
		name: "skip the type check", rule: "4, a state is never overwritten",
		file: "shared/launch/launch.go",
		old:  "if fr.StateType != flowrun.StateScheduled || fr.StateID != before.StateID {",
		new:  "if false && before.ID != fr.ID {",
		with: Options{Storm: []Kind{ForeignWorker}},
	},
	{
		name: "random transition id", rule: "9, all of it with the ledger lost",
		file: "shared/launch/launch.go",
		old:  "TransitionID: string(rec.LaunchID),\n\t\tScheduledTime",
		new:  "TransitionID: string(flowrun.NewLaunchID(l.cfg.Now().String(), fr.ID, fr.StateID)),\n\t\tScheduledTime",
	},
	{
		name: "ack before record", rule: "2, no flow run is lost",
		file: "shared/delivery/http.go",
		old:  "\tw.WriteHeader(res.status)\n",
		new:  "\tw.WriteHeader(http.StatusNoContent)\n",
	},
	{
		name: "no lease", rule: "1, one execution",
		file: "shared/flowrun/record.go",
		old:  "return r.LeaseHolder != \"\" && r.LeaseHolder != holder",
		new:  "return false && r.LeaseHolder != holder",
		with: Options{Storm: []Kind{Stall, CloudRun429}},
	},
	{
		name: "no fence", rule: "4, a state is never overwritten",
		file: "shared/settle/look.go",
		old:  "return context.WithTimeout(ctx, rec.LeaseUntil.Sub(s.cfg.Now())-s.cfg.CallTimeout/2)",
		new:  "return context.WithCancel(ctx)",
		with: Options{Storm: []Kind{Stall, StartFailure}},
	},
	{
		name: "ledger followed instead of Prefect", rule: "9, all of it with the ledger lost",
		file: "shared/settle/look.go",
		old:  "\treturn claim(s.cfg.Install, fr.ID, states), nil",
		new: "\tc := claim(s.cfg.Install, fr.ID, states)\n" +
			"\treturn Claim{Ours: rec.LaunchID != \"\", LaunchID: rec.LaunchID, ScheduledStateAt: rec.ScheduledStateAt, Started: c.Started, Retried: c.Retried}, nil",
	},
	{
		name: "region changed after an unclear try", rule: "1, one execution",
		file: "shared/launch/capacity.go",
		old:  "case !errors.Is(err, errSlots):",
		new:  "case !errors.Is(err, errSlots) && (err == nil || flowrun.FaultOf(err) != flowrun.Unclear):",
	},
	{
		name: "verdict not reported", rule: "3, every verdict reaches Prefect",
		file: "shared/settle/report.go",
		old:  "if current && due(rec, fr) {",
		new:  "if false && current && due(rec, fr) {",
	},
	{
		name: `sweep without "ours"`, rule: "5, nothing written to what is not ours",
		file: "shared/settle/look.go",
		old:  "c = Claim{Ours: ours,",
		new:  "c = Claim{Ours: ours || true,",
	},
	{
		name: "force", rule: "4, a state is never overwritten",
		file: "shared/prefect/state.go",
		old:  "\t\tState proposedState `json:\"state\"`\n\t}{p.wire()}",
		new:  "\t\tState proposedState `json:\"state\"`\n\t\tForce bool `json:\"force\"`\n\t}{p.wire(), true}",
	},
	{
		name: "no admission lease", rule: "6, limits of pools and queues",
		file: "shared/flowrun/gate.go",
		old:  "if g.held(now) && g.LeaseHolder != holder {",
		new:  "if false && g.held(now) && g.LeaseHolder != holder {",
		with: Options{Crowd: true},
	},
	{
		name: "an earlier try is not looked for", rule: "1, one execution",
		file: "shared/launch/job.go",
		old:  "case earlier:",
		new:  "case earlier && false:",
		with: Options{Storm: []Kind{CloudRun503After, CloudRun429}},
	},
	{
		name: "a quota is a verdict", rule: "7, no flow run crashes because of a 429",
		file: "shared/cloudrun/cloudrun.go",
		old:  "case codes.ResourceExhausted:\n\t\te.Fault = flowrun.Refused\n",
		new:  "case codes.ResourceExhausted:\n\t\te.Fault = flowrun.Permanent\n",
	},
	{
		name: "who was refused is proposed at once", rule: "8, a vain proposal in 30 s",
		file: "shared/launch/deployment.go",
		old:  "return now.Sub(*vain) < vainFor && !isDue(fr, now)\n\t}))\n\tfirst = first[:min(len(first), free(d))]\n",
		new:  "return false && !isDue(fr, now)\n\t}))\n",
	},
	{
		name: "headers in errors", rule: "10, no secret is told",
		file: "shared/prefect/fault.go",
		old:  `f.Err = fmt.Errorf("status %d: %s", resp.StatusCode, detail)`,
		new:  `f.Err = fmt.Errorf("status %d: %s %v", resp.StatusCode, detail, c.header)`,
	},
}

// flags are those of the simulation that make the mutant's world.
func (m mutant) flags() []string {
	kinds := make([]string, len(m.with.Storm))
	for n, k := range m.with.Storm {
		kinds[n] = string(k)
	}
	return []string{"-storm=" + strings.Join(kinds, ","), fmt.Sprint("-crowd=", m.with.Crowd)}
}

// patched returns the mutant's source, and fails where the code that it changes has moved.
func (m mutant) patched(t *testing.T, root string) string {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), m.old); n != 1 {
		t.Fatalf("%s has the code that it breaks %d times, not once; change its patch along with the code:\n%s", m.file, n, m.old)
	}
	return strings.Replace(string(source), m.old, m.new, 1)
}

// TestMutantsAreCaught holds that the simulation notices a product that breaks a rule.
func TestMutantsAreCaught(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	rows := make([]string, len(mutants))
	t.Run("mutant", func(t *testing.T) {
		for i, m := range mutants {
			t.Run(m.name, func(t *testing.T) {
				t.Parallel()
				source := m.patched(t, root)
				if !*mutate {
					return
				}
				s := m.simulate(t, root, source)
				caught := map[Counter]int{Lost: s.Lost, Duplicated: s.Duplicated, Overwritten: s.Overwritten, OverLimit: s.OverLimit, Unhealed: s.Unhealed}
				var by []string
				for _, c := range []Counter{Lost, Duplicated, Overwritten, OverLimit, Unhealed} {
					if caught[c] > 0 {
						by = append(by, string(c))
					}
				}
				if len(by) == 0 {
					by = []string{"not caught"}
					t.Errorf("it was not caught in %d flow runs", s.FlowRuns)
				}
				rows[i] = fmt.Sprintf("| %-36s | %-40s | %9d | %-24s |\n", m.name, m.rule, s.FlowRuns, strings.Join(by, ", "))
			})
		}
	})
	if *mutate {
		fmt.Printf("\n| %-36s | %-40s | flow runs | %-24s |\n|---|---|---:|---|\n%s\n", "mutant", "invariant", "caught as", strings.Join(rows, ""))
	}
}

// TestTheProductStandsWhatMutantsAreShownBy holds that what a mutant is caught by does not strike the product itself.
func TestTheProductStandsWhatMutantsAreShownBy(t *testing.T) {
	for _, m := range mutants {
		o := m.with
		if len(o.Storm) == 0 && !o.Crowd {
			continue // the usual world
		}
		o.Seed, o.FlowRuns = *seed, worldSize/5
		if *mutate {
			o.FlowRuns = worldSize
		}
		for _, v := range Run(t, o).Violations {
			t.Errorf("%s: %s", strings.Join(m.flags(), " "), v)
		}
	}
}

// simulate builds the mutant and simulates until something is wrong.
func (m mutant) simulate(t *testing.T, root, source string) Summary {
	t.Helper()
	dir := t.TempDir()
	file, overlay, binary, report := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "simulate.test"), filepath.Join(dir, "report.json")
	replaced, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, m.file): file}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{file: []byte(source), overlay: replaced} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", overlay, "-o", binary, "./scripts/pushpool/simulate")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	flags := append([]string{"-test.run=^TestNothingIsLostWhateverBreaks$", "-test.timeout=0", "-until-failure",
		"-seed=1", fmt.Sprint("-flow-runs=", mutantFlowRuns), "-report=" + report}, m.flags()...)
	run := exec.CommandContext(t.Context(), binary, flags...)
	out, failed := run.CombinedOutput()
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("%v, %v\n%s", err, failed, out)
	}
	var s Summary
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return s
}
