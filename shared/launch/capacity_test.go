package launch_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/launch"
	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/quota"
)

var exhausted = status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Write requests'")

// refuse makes Cloud Run refuse every new job, or take them, and counts those it refused.
func (r *rig) refuse() (refused *atomic.Int32, taking func()) {
	refused = &atomic.Int32{}
	r.strikeCloudRun(func(method string, phase cloudruntest.Phase) error {
		if phase == cloudruntest.Before && (method == "CreateJob" || method == "UpdateJob") {
			refused.Add(1)
			return exhausted
		}
		return nil
	})
	return refused, func() { r.strikeCloudRun(nil) }
}

func overflow(regions ...string) func(*launch.Config) {
	return func(c *launch.Config) {
		c.Regions, c.Options.Overflow = append([]string{region}, regions...), regions
	}
}

// TestARefusedLaunchOverflows holds that a flow run is launched in the next region that has
// room, only after a definite refusal, and only where it may be.
func TestARefusedLaunchOverflows(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "the service is unavailable")
	for name, c := range map[string]struct {
		change    func(*launch.Config)
		variables map[string]any
		phase     cloudruntest.Phase
		answer    error
		want      string // region; empty: not launched by the first delivery
		state     string
	}{
		"into the installation's next region":        {overflow("europe-west4"), nil, cloudruntest.Before, exhausted, "europe-west4", "PENDING/Pending"},
		"nowhere without one":                        {overflow(), nil, cloudruntest.Before, exhausted, "", "SCHEDULED/AwaitingCapacity"},
		"nowhere where the flow run says so":         {overflow("europe-west4"), map[string]any{"pushpool_overflow_regions": []any{}}, cloudruntest.Before, exhausted, "", "SCHEDULED/AwaitingCapacity"},
		"never into a region that is not allowed":    {overflow(), map[string]any{"pushpool_overflow_regions": []any{"elsewhere"}}, cloudruntest.Before, exhausted, "", "CRASHED/Crashed"},
		"an unclear answer stays":                    {overflow("europe-west4"), nil, cloudruntest.Before, unavailable, "", "PENDING/Pending"},
		"an unclear answer that took effect, too":    {overflow("europe-west4"), nil, cloudruntest.After, unavailable, region, "PENDING/Pending"},
		"a refusal is not believed after it is done": {overflow("europe-west4"), nil, cloudruntest.Before, nil, region, "PENDING/Pending"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.change)
			fr := r.flowRun(prefect.NewFlowRun{JobVariables: c.variables})
			r.answer("CreateJob", c.phase, c.answer)
			err := r.dispatch(fr.ID)
			if unclear := status.Code(c.answer) == codes.Unavailable; (err != nil) != unclear {
				t.Errorf("the delivery: %v", err)
			}
			if got := r.state(fr.ID); got != c.state {
				t.Errorf("the flow run is %s, want %s", got, c.state)
			}
			var in []string
			for _, x := range r.executions(fr.ID) {
				in = append(in, strings.Split(x.Name, "/")[3])
			}
			if want := slices.DeleteFunc([]string{c.want}, func(s string) bool { return s == "" }); !slices.Equal(in, want) {
				t.Errorf("executions in %v, want %v", in, want)
			}
			if c.state == "PENDING/Pending" { // and the next delivery makes no other
				r.later(lease)
				r.must(r.dispatch(fr.ID))
				if x := r.executions(fr.ID); len(x) != 1 || c.want != "" && !strings.Contains(x[0].Name, "/"+c.want+"/") {
					t.Errorf("after another delivery: %v", x)
				}
			}
		})
	}
}

// TestAnUnclearTryIsLookedForBeforeARefusalIsBelieved holds that a job which an unclear try
// made is not made again elsewhere because its repetition is refused.
func TestAnUnclearTryIsLookedForBeforeARefusalIsBelieved(t *testing.T) {
	r := newRig(t, overflow("europe-west4"))
	fr := r.unclear()
	r.later(lease)
	r.answer("CreateJob", cloudruntest.Before, exhausted)
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
}

// TestWhatWaitsComesAtItsTime holds that while Cloud Run refuses, few calls are made however
// many wait; that each shows its time in Prefect; and that it is launched then.
func TestWhatWaitsComesAtItsTime(t *testing.T) {
	r := newRig(t)
	refused, taking := r.refuse()
	const waiting = 12
	var ids []string
	times := map[time.Time]bool{}
	for range waiting {
		fr := r.flowRun(prefect.NewFlowRun{})
		ids = append(ids, fr.ID)
		r.must(r.dispatch(fr.ID))
		back := r.read(fr.ID)
		if back.StateName != "AwaitingCapacity" || !strings.Contains(back.State.Message, "Quota exceeded") {
			t.Fatalf("the flow run is %s: %q", back.StateName, back.State.Message)
		}
		times[*back.NextScheduledStartTime] = true
	}
	if len(times) != waiting {
		t.Errorf("%d flow runs wait for %d times", waiting, len(times))
	}
	if n := refused.Load(); n > 4 {
		t.Errorf("%d calls were refused for %d flow runs", n, waiting)
	}
	taking()
	for _, id := range ids {
		// A time that was granted before the last refusal is granted anew.
		for range 2 {
			if d := r.read(id).NextScheduledStartTime.Sub(r.now()); d > 0 {
				r.later(d)
			}
			r.must(r.dispatch(id))
			if r.state(id) != "SCHEDULED/AwaitingCapacity" {
				break
			}
		}
		r.launchedOnce(id)
	}
}

// TestAQuotaThatIsUsedUpIsNotTried holds that the flow run waits without a call to Cloud Run,
// in the region that is free first, and that its time is kept when it comes.
func TestAQuotaThatIsUsedUpIsNotTried(t *testing.T) {
	r := newRig(t, overflow("europe-west4"))
	fill := func(region string, n int) {
		for range n {
			_, _, err := r.budget.Launch(t.Context(), project+"/"+region, quota.Ask{NewJob: true})
			r.must(err)
		}
	}
	fill(region, 300)
	fill("europe-west4", 250)
	calls, taking := r.refuse()
	fr := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(fr.ID))
	back := r.read(fr.ID)
	if back.StateName != "AwaitingCapacity" || calls.Load() != 0 {
		t.Fatalf("the flow run is %s after %d calls", back.StateName, calls.Load())
	}
	taking()
	fill("europe-west4", 50) // who comes later has a later time
	r.later(back.NextScheduledStartTime.Sub(r.now()))
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
	if x := r.executions(fr.ID)[0]; !strings.Contains(x.Name, "/europe-west4/") {
		t.Errorf("launched as %s", x.Name)
	}
}

// TestWaitingForCapacityEnds holds that a flow run which waited too long in all is CRASHED
// with the reason, and not before, although the ledger is lost while it waits.
func TestWaitingForCapacityEnds(t *testing.T) {
	for name, lost := range map[string]bool{"the ledger is kept": false, "the ledger is lost each time": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *launch.Config) { c.CapacityWait = 10 * time.Minute })
			_, _ = r.refuse()
			fr := r.flowRun(prefect.NewFlowRun{})
			began := r.now()
			for r.state(fr.ID) != "CRASHED/Crashed" {
				if d := r.read(fr.ID).NextScheduledStartTime.Sub(r.now()); d > 0 {
					r.later(max(d, time.Minute)) // it comes late, and asks for another time
				}
				if r.now().Sub(began) > 15*time.Minute {
					t.Fatalf("after %s the flow run is %s", r.now().Sub(began), r.state(fr.ID))
				}
				if lost {
					r.ledger.lose()
				}
				r.must(r.dispatch(fr.ID))
			}
			if waited := r.now().Sub(began); waited < 9*time.Minute {
				t.Errorf("it was given up after %s", waited)
			}
			message := r.read(fr.ID).State.Message
			for _, want := range []string{"wait for capacity since", "10m0s", "Quota exceeded", "raise Cloud Run's quota"} {
				if !strings.Contains(message, want) {
					t.Errorf("the message %q lacks %q", message, want)
				}
			}
			if n := len(r.executions(fr.ID)); n != 0 {
				t.Errorf("%d executions", n)
			}
		})
	}
}

// TestALostLedgerCostsNoFlowRunThatWaits holds that what waits is launched without its
// record, once.
func TestALostLedgerCostsNoFlowRunThatWaits(t *testing.T) {
	r := newRig(t)
	_, taking := r.refuse()
	fr := r.flowRun(prefect.NewFlowRun{})
	r.must(r.dispatch(fr.ID))
	r.ledger.lose()
	taking()
	r.later(time.Minute)
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
}

// TestThePolicyEndsWhatItForbids holds every rule, in all containers, and that the flow run
// says which it broke with which value.
func TestThePolicyEndsWhatItForbids(t *testing.T) {
	policy := cloudrun.Policy{
		Images: []string{"europe-docker.pkg.dev/ours/flows/*"}, ServiceAccounts: []string{"flow-*@ours.iam.gserviceaccount.com"},
		MilliCPU: 2000, Memory: 2 << 30, Timeout: time.Hour,
	}
	type m = map[string]any
	good := m{"image": "europe-docker.pkg.dev/ours/flows/etl:3", "service_account_name": "flow-a@ours.iam.gserviceaccount.com"}
	beside := func(c m) func(body m) {
		return func(task m) { task["containers"] = append(task["containers"].([]any), c) }
	}
	limits := func(l m) func(m) {
		return func(task m) { task["containers"].([]any)[0].(m)["resources"] = m{"limits": l} }
	}
	for name, c := range map[string]struct {
		variables m
		change    func(task m)
		says      []string // none: it is launched
	}{
		"what is allowed":                 {},
		"a GPU is nobody's business":      {change: limits(m{"cpu": "2", "memory": "2Gi", "nvidia.com/gpu": "1"})},
		"another image":                   {variables: m{"image": "docker.io/evil/flow"}, says: []string{"image", `"docker.io/evil/flow"`, "europe-docker.pkg.dev/ours/flows/*"}},
		"an image below an allowed one":   {variables: m{"image": "europe-docker.pkg.dev/ours/flows/a/b"}, says: []string{"image"}},
		"an image that only begins so":    {variables: m{"image": "x/europe-docker.pkg.dev/ours/flows/a"}, says: []string{"image"}},
		"another service account":         {variables: m{"service_account_name": "owner@ours.iam.gserviceaccount.com"}, says: []string{"service account", "owner@ours"}},
		"no service account":              {variables: m{"service_account_name": nil}, says: []string{"service account", "the project's default one"}},
		"too long":                        {variables: m{"timeout": 3601}, says: []string{"timeout", "1h0m1s", "at most 1h0m0s"}},
		"too many CPUs":                   {change: limits(m{"cpu": "4", "memory": "2Gi"}), says: []string{"cpu", "4000m", "at most 2000m"}},
		"too much memory":                 {change: limits(m{"memory": "2049Mi"}), says: []string{"memory", "2049Mi", "at most 2048Mi"}},
		"a quantity that cannot be read":  {change: limits(m{"memory": "lots"}), says: []string{"memory", `"lots"`}},
		"the image of another container":  {change: beside(m{"name": "side", "image": "docker.io/evil/flow", "env": []any{}}), says: []string{"image", "docker.io/evil/flow"}},
		"the memory of all containers":    {change: beside(m{"name": "side", "image": good["image"], "resources": m{"limits": m{"memory": "1800Mi"}}}), says: []string{"memory", "2312Mi"}},
		"the CPUs of all containers":      {change: beside(m{"name": "side", "image": good["image"], "resources": m{"limits": m{"cpu": "1500m"}}}), says: []string{"cpu", "2500m"}},
		"what an image's containers miss": {change: beside(m{"name": "side", "image": ""}), says: []string{"image", `""`}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(cfg *launch.Config) { cfg.Policy = policy })
			changed := template()
			if c.change != nil {
				c.change(changed["job_configuration"].(m)["job_body"].(m)["template"].(m)["template"].(m))
			}
			r.patch("/work_pools/etl", m{"base_job_template": changed})
			variables := m{}
			for _, from := range []m{good, c.variables} {
				for k, v := range from {
					variables[k] = v
				}
			}
			fr := r.flowRun(prefect.NewFlowRun{JobVariables: variables})
			r.must(r.dispatch(fr.ID))
			if len(c.says) == 0 {
				r.launchedOnce(fr.ID)
				return
			}
			r.crashed(fr.ID, append(c.says, "policy")...)
			if n := len(r.executions(fr.ID)); n != 0 {
				t.Errorf("%d executions", n)
			}
		})
	}
}

// TestPatternsOfThePolicy holds what a pattern matches.
func TestPatternsOfThePolicy(t *testing.T) {
	for _, c := range []struct {
		pattern, image string
		want           bool
	}{
		{"a/*", "a/b", true},
		{"a/*", "a/b:1", true},
		{"a/*", "a/b/c", false},
		{"a/**", "a/b/c@sha256:1", true},
		{"a/**", "b/a/c", false},
		{"a.b/*", "aXb/c", false},
		{"**", "anything/at:all", true},
		{"a/b", "a/b", true},
		{"a/b", "a/b\nc", false},
		{"a/b:*", "a/b", false},
	} {
		t.Run(fmt.Sprintf("%s of %q", c.pattern, c.image), func(t *testing.T) {
			r := newRig(t, func(cfg *launch.Config) { cfg.Policy.Images = []string{c.pattern} })
			fr := r.flowRun(prefect.NewFlowRun{JobVariables: map[string]any{"image": c.image}})
			r.must(r.dispatch(fr.ID))
			if got := r.read(fr.ID).StateType != flowrun.StateCrashed; got != c.want {
				t.Errorf("launched: %t, want %t: %s", got, c.want, r.state(fr.ID))
			}
		})
	}
}
