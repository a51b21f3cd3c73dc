package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// StartWorker starts Prefect's own worker on the work pool. It is of the type process, which
// warns of the pool's type and takes its template all the same: what a container would do, a
// process of the worker does. It asks for flow runs each second, until it is stopped or the stack ends.
func (s *Stack) StartWorker(ctx context.Context) (stop func(), err error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	venv, err := Venv(ctx, root, Prefect3, s.Python, s.Say)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(venv, "bin", "prefect"), //nolint:noctx // it ends with Close
		"worker", "start", "--pool", WorkPool, "--type", "process", "--name", "neighbour", "--prefetch-seconds", "0")
	cmd.Env = append(s.prefectEnv(venv, "worker"), "PREFECT_API_URL="+s.apiURL, "PREFECT_WORKER_QUERY_SECONDS=1")
	cmd.Env = append(cmd.Env, s.containers...) // the last of a name counts
	worker, err := s.background(cmd, "worker.log")
	if err != nil {
		return nil, fmt.Errorf("start Prefect's worker: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		said, err := os.ReadFile(worker.log)
		if err != nil {
			return nil, err
		}
		if strings.Contains(string(said), "started!") {
			return worker.stop, nil
		}
		select {
		case <-worker.ended:
			return nil, errors.New("start Prefect's worker: it ended, and its last words were:\n" + tail(worker.log))
		case <-ctx.Done():
			return nil, errors.New("start Prefect's worker: it does not start; its last words were:\n" + tail(worker.log))
		case <-time.After(200 * time.Millisecond):
		}
	}
}
