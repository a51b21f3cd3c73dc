package cloudruntest

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/run/apiv2/runpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// quotaWindow is the time in which calls are counted. Google counts in minutes of its own
// choice; a minute that ends with each call is the strictest of them.
const quotaWindow = time.Minute

// meter counts the calls of one kind in one region that were let through.
type meter struct{ times []time.Time }

// spend counts a call, or reports that the quota is used up.
func (m *meter) spend(most int, now time.Time) bool {
	old, _ := slices.BinarySearchFunc(m.times, now.Add(-quotaWindow), func(t, from time.Time) int {
		if t.After(from) {
			return 1
		}
		return -1
	})
	m.times = m.times[old:]
	if len(m.times) >= most {
		return false
	}
	m.times = append(m.times, now)
	return true
}

// charge counts a call against the quota of its region, if it has one. A call that is refused
// is not counted. Whether a start_execution_token counts as a job run besides the write is
// not known; here it does not.
func (s *Server) charge(method string, req any) error {
	kind, most := "Write", s.options.WritesPerMinute
	if strings.HasPrefix(method, "Get") || strings.HasPrefix(method, "List") {
		kind, most = "Read", s.options.ReadsPerMinute
	}
	region := regionOf(req)
	if most == 0 || region == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := kind + " " + region
	if s.meters[key] == nil {
		s.meters[key] = &meter{}
	}
	if s.meters[key].spend(most, time.Now()) {
		return nil
	}
	s.refused[method]++
	refusal := status.Newf(codes.ResourceExhausted,
		"Quota exceeded for quota metric '%s requests' and limit '%s requests per minute per region' of service 'run.googleapis.com' for consumer 'project_number:%s'.",
		kind, kind, projectNumber)
	if detailed, err := refusal.WithDetails(&errdetails.ErrorInfo{
		Reason: "RATE_LIMIT_EXCEEDED", Domain: "googleapis.com",
		Metadata: map[string]string{"service": "run.googleapis.com", "quota_location": path.Base(region), "quota_limit_value": fmt.Sprint(most)},
	}); err == nil {
		refusal = detailed
	}
	return refusal.Err()
}

// regionOf returns projects/P/locations/R of a request; empty where it names none.
func regionOf(req any) string {
	var name string
	switch r := req.(type) {
	case interface{ GetParent() string }:
		name = r.GetParent()
	case interface{ GetName() string }:
		name = r.GetName()
	case *runpb.UpdateJobRequest:
		name = r.GetJob().GetName()
	}
	p := strings.SplitN(name, "/", 5)
	if len(p) < 4 {
		return ""
	}
	return strings.Join(p[:4], "/")
}

// Refused returns how many calls of a method were refused for the quota of calls.
func (s *Server) Refused(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[method]
}

// roomForExecution refuses an execution beyond the quota of those that are alive in a
// region. That the call which starts it is refused is assumed. The caller holds s.mu.
func (s *Server) roomForExecution(parent string) error {
	if s.options.MaxExecutions == 0 {
		return nil
	}
	alive := 0
	for _, x := range s.executions {
		if x.job.parent() == parent && x.proto.GetCompletionTime() == nil {
			alive++
		}
	}
	if alive < s.options.MaxExecutions {
		return nil
	}
	return status.Errorf(codes.ResourceExhausted, "Quota exceeded for total allowable count of running executions per project per region: %d.", s.options.MaxExecutions)
}
