package containerlog_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/cloudrun/cloudruntest"
	"github.com/pushpool/pushpool/shared/containerlog"
	"github.com/pushpool/pushpool/shared/flowrun"
)

// rig runs a script in an execution, to its end, and reads Cloud Logging of the same machine.
type rig struct {
	*containerlog.Client
	t      *testing.T
	ended  cloudruntest.Execution
	server *cloudruntest.Server
}

func newRig(t *testing.T, perMinute int, script string) rig {
	t.Helper()
	server, err := cloudruntest.Start(cloudruntest.Options{Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	jobs, err := cloudrun.New(t.Context(), server.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = jobs.Close() })
	err = jobs.CreateJob(t.Context(), cloudrun.Launch{
		Name: cloudrun.JobName{Project: "p", Region: "r", Job: "pp-a"},
		Job: &runpb.Job{Template: &runpb.ExecutionTemplate{Template: &runpb.TaskTemplate{
			Retries: &runpb.TaskTemplate_MaxRetries{}, Containers: []*runpb.Container{{Image: "i", Command: []string{"sh", "-c", script}}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := rig{t: t, server: server}
	for end := time.Now().Add(20 * time.Second); r.ended.Completed.IsZero(); time.Sleep(10 * time.Millisecond) {
		if r.ended = server.Executions()[0]; time.Now().After(end) {
			t.Fatal("the execution does not end")
		}
	}
	if r.Client, err = containerlog.New(t.Context(), cloudruntest.LogView, perMinute, server.ClientOptions()...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (r rig) last(execution string) []string {
	r.t.Helper()
	lines, err := r.Last(r.t.Context(), "p", "pp-a", execution, r.ended.JobCreated)
	if err != nil {
		r.t.Fatal(err)
	}
	var texts []string
	for _, l := range lines {
		if l.Time.Before(r.ended.JobCreated) || l.Time.After(time.Now()) {
			r.t.Errorf("%q was written at %s", l.Text, l.Time)
		}
		texts = append(texts, l.Text)
	}
	return texts
}

func TestTheLastLinesAreReadInOrder(t *testing.T) {
	r := newRig(t, 10, `for i in $(seq 60); do echo line $i; done; exit 1`)
	var want []string
	for i := 11; i <= 60; i++ {
		want = append(want, fmt.Sprintf("line %d", i))
	}
	if diff := cmp.Diff(want, r.last("pp-a-x")); diff != "" {
		t.Error(diff)
	}
	if got := r.last("pp-a-another"); got != nil {
		t.Errorf("of another execution: %q", got)
	}
}

func TestLongLinesAreFewer(t *testing.T) {
	r := newRig(t, 10, `for i in $(seq 20); do head -c 5000 /dev/zero | tr '\0' x; echo; done; printf 'é%.0s' $(seq 3000); echo`)
	got := r.last("pp-a-x")
	total := 0
	for _, l := range got {
		if total += len(l); len(l) > 2_000+len("…") {
			t.Errorf("a line of %d bytes", len(l))
		}
	}
	if total > 17_000 || len(got) < 5 || !strings.HasSuffix(got[len(got)-1], "é…") {
		t.Errorf("%d lines, %d bytes, the last ends with %q", len(got), total, got[len(got)-1][1_990:])
	}
}

func TestWhatAContainerWroteOfSecretsIsTakenOut(t *testing.T) {
	const key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\n-----END PRIVATE KEY-----"
	r := newRig(t, 10, "cat <<'END'\nbefore\nPREFECT_API_KEY=pnu_abcdef0123456789\n"+key+"\nafter\nEND\n")
	want := []string{"before", "PREFECT_API_KEY=(secret)", "(secret)", "(secret)", "(secret)", "after"}
	if diff := cmp.Diff(want, r.last("pp-a-x")); diff != "" {
		t.Error(diff)
	}
}

func TestAPrivateKeyThatBeganBeforeTheLastLinesIsTakenOut(t *testing.T) {
	r := newRig(t, 10, "echo -----BEGIN PRIVATE KEY-----; for i in $(seq 60); do echo MIIEvQIBADAN$i; done; echo -----END PRIVATE KEY-----; echo after")
	got := r.last("pp-a-x")
	if all := strings.Join(got, "\n"); len(got) != containerlog.MaxLines || strings.Contains(all, "MII") || !strings.HasSuffix(all, "(secret)\nafter") {
		t.Errorf("%q", got)
	}
}

// TestASecretWhereALineIsCutIsTakenOut holds that lines are cut after that: neither half a token nor a
// key whose end was cut off, which would hide what follows, is left.
func TestASecretWhereALineIsCutIsTakenOut(t *testing.T) {
	r := newRig(t, 10, "long() { head -c $1 /dev/zero | tr '\\0' x; }\n"+
		"long 1985; echo ' sk_live_0123456789abcdefgh'\n"+
		"long 1950; printf ' -----BEGIN PRIVATE KEY-----'; long 100; echo '-----END PRIVATE KEY-----'\n"+
		"echo after")
	want := []string{strings.Repeat("x", 1985) + " (secret)", "(secret)", "after"}
	if diff := cmp.Diff(want, r.last("pp-a-x")); diff != "" {
		t.Error(diff)
	}
}

// TestReadsKeepWithinTheirBudget holds that no call is made beyond it, and none waited for.
func TestReadsKeepWithinTheirBudget(t *testing.T) {
	r := newRig(t, 2, "true")
	for range 2 {
		r.last("pp-a-x")
	}
	start := time.Now()
	_, err := r.Last(t.Context(), "p", "pp-a", "pp-a-x", time.Time{})
	if !errors.Is(err, containerlog.ErrBudget) || flowrun.FaultOf(err) != flowrun.Refused || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

// TestAMissingViewSaysWhatToDo holds for a view that may not be read, too: Cloud Logging tells
// neither from the other.
func TestAMissingViewSaysWhatToDo(t *testing.T) {
	r := newRig(t, 10, "true")
	other, err := containerlog.New(t.Context(), "locations/global/buckets/_Default/views/gone", 1, r.server.ClientOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	_, err = other.Last(t.Context(), "p", "pp-a", "pp-a-x", time.Time{})
	if flowrun.FaultOf(err) != flowrun.Refused || !strings.Contains(err.Error(), "LOG_VIEW") || !strings.Contains(err.Error(), "roles/logging.viewAccessor") {
		t.Error(err)
	}
}

func TestTheProjectsOwnQuotaIsRespected(t *testing.T) {
	r := newRig(t, 60, "true")
	var err error
	for range 61 {
		other, nerr := containerlog.New(t.Context(), cloudruntest.LogView, 1, r.server.ClientOptions()...)
		if nerr != nil {
			t.Fatal(nerr)
		}
		_, err = other.Last(t.Context(), "p", "pp-a", "pp-a-x", time.Time{})
		_ = other.Close()
	}
	if status.Code(errors.Unwrap(err)) != codes.ResourceExhausted || flowrun.FaultOf(err) != flowrun.Refused {
		t.Errorf("%v", err)
	}
}
