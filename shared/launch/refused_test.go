package launch_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
)

// TestARefusalIsNotTheEndOfALaunchThatWasMade holds that a flow run is neither put back nor
// crashed, and so executed beside or without its flow run, when an earlier try made the job and
// only its answer was lost.
func TestARefusalIsNotTheEndOfALaunchThatWasMade(t *testing.T) {
	for name, refuse := range map[string]func(r *rig){
		"out of quota, the ledger lost": func(r *rig) {
			r.ledger.lose()
			r.answer("CreateJob", cloudruntest.Before, status.Error(codes.ResourceExhausted, "Quota exceeded"))
		},
		"out of quota": func(r *rig) {
			r.answer("CreateJob", cloudruntest.Before, status.Error(codes.ResourceExhausted, "Quota exceeded"))
		},
		"a permission was taken away": func(r *rig) {
			r.answer("CreateJob", cloudruntest.Before, status.Error(codes.PermissionDenied, "Permission 'run.jobs.create' denied"))
		},
		"the template is broken by now": func(r *rig) {
			r.patch("/deployments/"+r.deployed.ID, map[string]any{"job_variables": map[string]any{"image": "{{ prefect.blocks.secret.nowhere }}"}})
		},
		"the template is broken by now, the ledger lost": func(r *rig) {
			r.ledger.lose()
			r.patch("/deployments/"+r.deployed.ID, map[string]any{"job_variables": map[string]any{"image": "{{ prefect.blocks.secret.nowhere }}"}})
		},
		"the job would have another name, the ledger lost": func(r *rig) {
			r.ledger.lose()
			r.patch("/deployments/"+r.deployed.ID, map[string]any{"job_variables": map[string]any{"name": "another"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun(prefect.NewFlowRun{})
			r.answer("CreateJob", cloudruntest.After, status.Error(codes.Unavailable, "the service is unavailable"))
			r.fails(fr.ID)
			refuse(r)
			r.later(callTimeout)
			r.must(r.dispatch(fr.ID))
			r.launchedOnce(fr.ID)
		})
	}
}

// TestARefusalIsNoVerdictWhileNobodyCanLook holds that out of quota, for the launch as for the look whether
// an earlier try made it, the flow run is left to the next delivery.
func TestARefusalIsNoVerdictWhileNobodyCanLook(t *testing.T) {
	r := newRig(t)
	fr := r.unclear()
	r.strikeCloudRun(func(string, cloudruntest.Phase) error { return status.Error(codes.ResourceExhausted, "Quota exceeded") })
	r.later(callTimeout)
	r.fails(fr.ID)
	r.strikeCloudRun(nil)
	r.later(callTimeout)
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
}

// TestAJobThatIsBeingDeletedIsNoVerdict holds that a name that is taken, by nobody who can be
// asked, is tried again.
func TestAJobThatIsBeingDeletedIsNoVerdict(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.answer("CreateJob", cloudruntest.Before, status.Error(codes.AlreadyExists, "the job exists"))
	r.fails(fr.ID)
	r.later(callTimeout)
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
}

// TestWhatAPersonEndedIsNotPutBack holds that a flow run that was cancelled while Cloud Run was
// asked stays so: Prefect would take SCHEDULED over it.
func TestWhatAPersonEndedIsNotPutBack(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.strikeCloudRun(func(method string, phase cloudruntest.Phase) error {
		if method != "CreateJob" || phase != cloudruntest.Before {
			return nil
		}
		r.set(fr.ID, flowrun.StateCancelled)
		return status.Error(codes.ResourceExhausted, "Quota exceeded")
	})
	r.must(r.dispatch(fr.ID))
	if got := r.state(fr.ID); got != "CANCELLED/Cancelled" {
		t.Errorf("the flow run is %s, want CANCELLED", got)
	}
	if rec := r.record(fr.ID); rec.Status != flowrun.StatusFinished || rec.ReportedAt.IsZero() || rec.LeaseHolder != "" {
		t.Errorf("the ledger has %+v, want it finished, reported and given back", rec)
	}
}

// TestAForeignJobOfTheSameNameIsNotTakenForOurs holds that such a launch crashes with both named.
func TestAForeignJobOfTheSameNameIsNotTakenForOurs(t *testing.T) {
	for name, lose := range map[string]bool{"found at once": false, "found after the ledger was lost": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun(prefect.NewFlowRun{Name: "mine"})
			job := &runpb.Job{Template: &runpb.ExecutionTemplate{Template: &runpb.TaskTemplate{Containers: []*runpb.Container{{Image: "i", Command: []string{"true"}}}}}}
			cloudrun.SetLabels(job, map[string]string{cloudrun.LabelLaunch: "theirs"})
			r.must(r.cloudRun.CreateJob(t.Context(), cloudrun.Launch{Name: cloudrun.JobName{Project: project, Region: region, Job: jobtemplate.JobID("mine", launchID(fr))}, Job: job}))
			if lose {
				_, err := r.people.SetState(t.Context(), fr.ID, prefect.Proposal{Type: flowrun.StatePending, TransitionID: string(launchID(fr))})
				r.must(err)
			}
			r.must(r.dispatch(fr.ID))
			r.crashed(fr.ID, "theirs", string(launchID(fr)))
		})
	}
}

// crashed fails the test unless the flow run is CRASHED with a message that contains the
// words, and the ledger says so.
func (r *rig) crashed(id string, words ...string) {
	r.t.Helper()
	fr := r.read(id)
	if fr.StateType != flowrun.StateCrashed {
		r.t.Fatalf("the flow run is %s, want CRASHED", fr.StateType)
	}
	for _, w := range words {
		if !strings.Contains(fr.State.Message, w) {
			r.t.Errorf("the message does not say %q: %s", w, fr.State.Message)
		}
	}
	if rec := r.record(id); rec.Status != flowrun.StatusRejected || rec.ReportedAt.IsZero() || rec.LeaseHolder != "" {
		r.t.Errorf("the ledger has %s reported at %s, held by %q, want Rejected, reported and given back", rec.Status, rec.ReportedAt, rec.LeaseHolder)
	}
}

// TestWhatCanNeverBeLaunchedCrashes holds that the flow's author reads in Prefect what to change.
func TestWhatCanNeverBeLaunchedCrashes(t *testing.T) {
	for name, tt := range map[string]struct {
		pool  map[string]any // the template's variables, as defaults
		run   map[string]any
		cloud error
		words []string
	}{
		"a job variable of the wrong type": {pool: map[string]any{"timeout": "soon"}, words: []string{"timeout"}},
		"a block that does not exist":      {pool: map[string]any{"image": "{{ prefect.blocks.secret.nowhere }}"}, words: []string{"nowhere"}},
		"a permission that is missing":     {cloud: status.Error(codes.PermissionDenied, "Permission 'iam.serviceaccounts.actAs' denied"), words: []string{"actAs", "serviceAccountUser"}},
		"a job that Cloud Run refuses":     {cloud: status.Error(codes.InvalidArgument, "Violation in cpu"), words: []string{"Violation in cpu", "job variables"}},
		"the key of a service account": {
			pool:  map[string]any{"credentials": map[string]any{"service_account_info": map[string]any{"project_id": "project", "private_key": "k"}}},
			words: []string{"`credentials`", "service_account_name"},
		},
		"another project": {
			pool:  map[string]any{"credentials": map[string]any{"project": "elsewhere"}},
			words: []string{"elsewhere", "`credentials`"},
		},
		"a region that is not the installation's": {pool: map[string]any{"region": "mars-north1"}, words: []string{"mars-north1", region}},
		"a credential in clear": {
			run: map[string]any{"env": map[string]any{"PREFECT_API_KEY": "pnu_123"}}, words: []string{"PREFECT_API_KEY"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if tt.pool != nil {
				changed := template()
				configuration := changed["job_configuration"].(map[string]any)
				for k, v := range tt.pool {
					if k == "image" {
						changed["variables"].(map[string]any)["properties"].(map[string]any)["image"].(map[string]any)["default"] = v
						continue
					}
					configuration[k] = v
				}
				r.patch("/work_pools/etl", map[string]any{"base_job_template": changed})
			}
			fr := r.flowRun(prefect.NewFlowRun{JobVariables: tt.run})
			if tt.cloud != nil {
				r.answer("CreateJob", cloudruntest.Before, tt.cloud)
			}
			r.must(r.dispatch(fr.ID))
			r.crashed(fr.ID, append(tt.words, "Failed to submit flow run to infrastructure")...)
			if got := r.read(fr.ID).State.Message; strings.Contains(got, "pnu_123") {
				t.Errorf("the message shows a secret: %s", got)
			}
			r.must(r.dispatch(fr.ID)) // and stays so
			r.crashed(fr.ID)
			if got := len(r.executions(fr.ID)); got != 0 {
				t.Errorf("%d executions, want none", got)
			}
		})
	}
}

// TestWithoutCapacityAFlowRunIsPutBack_Prefect16448 holds that Prefect shows why it waits, and that it is launched later.
func TestWithoutCapacityAFlowRunIsPutBack_Prefect16448(t *testing.T) {
	r := newRig(t)
	fr := r.flowRun(prefect.NewFlowRun{})
	r.answer("CreateJob", cloudruntest.Before, status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Write requests'"))
	before := r.now()
	r.must(r.dispatch(fr.ID))
	back := r.read(fr.ID)
	if got := r.state(fr.ID); got != "SCHEDULED/AwaitingCapacity" || !strings.Contains(back.State.Message, "Quota exceeded") {
		t.Fatalf("%s %q, want AwaitingCapacity with the reason", got, back.State.Message)
	}
	if at := *back.NextScheduledStartTime; at.Before(before.Add(time.Second)) || at.After(r.now().Add(5*time.Second)) {
		t.Errorf("it is tried again at %s, want some seconds from %s", at, before)
	}
	if rec := r.record(fr.ID); rec.Status != flowrun.StatusFinished || rec.ReportedAt.IsZero() || rec.LeaseHolder != "" {
		t.Errorf("the ledger has %+v, want it finished, reported and given back", rec)
	}
	timer := []sent{{FlowRunID: fr.ID, At: *back.NextScheduledStartTime, Cause: "due"}}
	if diff := cmp.Diff(timer, r.messages.take()); diff != "" {
		t.Error(diff)
	}
	r.must(r.dispatch(fr.ID)) // Prefect tells of its new state
	if diff := cmp.Diff(timer, r.messages.take()); diff != "" {
		t.Error(diff)
	}
	r.later(2 * time.Minute)
	r.must(r.dispatch(fr.ID))
	r.launchedOnce(fr.ID)
	if rec := r.record(fr.ID); rec.LaunchID != launchID(back) || len(rec.Previous) != 1 {
		t.Errorf("launch %s after %d others, want a new one, %s, after the one put back", rec.LaunchID, len(rec.Previous), launchID(back))
	}
}

// TestAVerdictThatPrefectMissedIsTold holds that the next delivery tells it, once.
func TestAVerdictThatPrefectMissedIsTold(t *testing.T) {
	for name, tt := range map[string]struct {
		code codes.Code
		lost bool // only the answer; the proposal took effect
		want string
	}{
		"put back":                      {codes.ResourceExhausted, false, "SCHEDULED/AwaitingCapacity"},
		"rejected":                      {codes.PermissionDenied, false, "CRASHED/Crashed"},
		"put back, the answer was lost": {codes.ResourceExhausted, true, "SCHEDULED/AwaitingCapacity"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fr := r.flowRun(prefect.NewFlowRun{})
			r.answer("CreateJob", cloudruntest.Before, status.Error(tt.code, "no"))
			proposals := 0
			r.strikePrefect(func(_ http.ResponseWriter, req *http.Request, next http.Handler) bool {
				if strings.HasSuffix(req.URL.Path, "/set_state") {
					if proposals++; proposals == 2 {
						if tt.lost {
							next.ServeHTTP(httptest.NewRecorder(), req)
						}
						panic(http.ErrAbortHandler)
					}
				}
				return false
			})
			r.fails(fr.ID)
			if got := r.state(fr.ID); (got == "PENDING/Pending") == tt.lost {
				t.Fatalf("%s after a proposal that took effect: %t", got, tt.lost)
			}
			r.later(2 * lease)
			r.must(r.dispatch(fr.ID))
			if tt.lost { // it is due again
				r.launchedOnce(fr.ID)
				return
			}
			if got := r.state(fr.ID); got != tt.want || len(r.executions(fr.ID)) != 0 {
				t.Errorf("%s with %d executions, want %s with none", got, len(r.executions(fr.ID)), tt.want)
			}
			if rec := r.record(fr.ID); rec.ReportedAt.IsZero() {
				t.Error("the ledger does not know that Prefect was told")
			}
		})
	}
}
