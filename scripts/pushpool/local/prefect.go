package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/prefect/prefecttest"
)

// startPrefect starts a Prefect server, real or embedded. It returns the environment that
// containers have, and what deploys the flow once the work pool is there.
func (s *Stack) startPrefect(ctx context.Context, root string) (containers []string, deploy func(context.Context) error, err error) {
	venv, given := "", os.Getenv("PREFECT_API_URL")
	if s.Beside != nil {
		given = s.Beside.apiURL
	}
	if !s.Embedded && (given == "" || !s.LightFlow) {
		if venv, err = Venv(ctx, root, Prefect3, s.Python, s.Say); errors.Is(err, errNoPython) {
			s.Say("%v; going on with a stand-in for the Prefect server and the flow", err)
			s.Embedded = true
		} else if err != nil {
			return nil, nil, err
		}
	}
	weather, err := s.weatherURL(ctx)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case s.Embedded:
		containers, err = s.startEmbedded(weather)
		deploy = s.deployEmbedded
	case venv == "":
		s.apiURL = given
		s.note("Prefect", given)
		containers, err = s.lightContainers(weather)
		deploy = s.deployEmbedded
		if s.Beside != nil { // it deployed them
			deploy = func(context.Context) error { return nil }
		}
	default:
		err = s.startServer(ctx, venv)
		containers = []string{
			"PATH=" + filepath.Join(venv, "bin") + ":/usr/bin:/bin", "HOME=" + s.dir, "WEATHER_URL=" + weather,
			"PREFECT_HOME=" + filepath.Join(s.dir, "container"),
		}
		if s.LightFlow && err == nil {
			containers, err = s.lightContainers(weather)
		}
		deploy = func(ctx context.Context) error { return s.deployFlow(ctx, root, venv) }
	}
	if err != nil {
		return nil, nil, err
	}
	s.Prefect, err = prefect.New(prefect.Config{APIURL: s.apiURL, RequestsPerMinute: 6000})
	return containers, deploy, err
}

// startServer starts a real server, unless PREFECT_API_URL names one.
func (s *Stack) startServer(ctx context.Context, venv string) error {
	if s.apiURL = os.Getenv("PREFECT_API_URL"); s.apiURL != "" {
		s.note("Prefect", s.apiURL)
		return nil
	}
	port, err := FreePort(ctx)
	if err != nil {
		return err
	}
	s.Say("starting Prefect's server")
	cmd := exec.Command(filepath.Join(venv, "bin", "prefect"), "server", "start", "--host", "127.0.0.1", "--port", fmt.Sprint(port)) //nolint:noctx // it ends with Close
	cmd.Env = append(s.prefectEnv(venv, "server"), "PREFECT_UI_API_URL="+fmt.Sprintf("http://127.0.0.1:%d/api", port),
		// New schedules are looked for every few seconds anyway; this is about the runs after the first.
		"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS=10")
	if s.Postgres {
		database, err := s.startPostgres(ctx, venv)
		if err != nil {
			return err
		}
		cmd.Env = append(cmd.Env, "PREFECT_SERVER_DATABASE_CONNECTION_URL="+database)
	}
	server, err := s.background(cmd, "prefect.log")
	if err != nil {
		return fmt.Errorf("start Prefect's server: %w", err)
	}
	s.apiURL = fmt.Sprintf("http://127.0.0.1:%d/api", port)
	s.note("Prefect", strings.TrimSuffix(s.apiURL, "/api"))
	return s.healthy(ctx, server.ended, server.log)
}

// process is one that the stack started. It writes to the file log.
type process struct {
	ended chan struct{}
	log   string
	stop  func()
}

// background starts a process that ends with the stack, and all that it started with it.
func (s *Stack) background(cmd *exec.Cmd, name string) (process, error) {
	file, err := os.Create(filepath.Join(s.dir, name))
	if err != nil {
		return process{}, err
	}
	s.later(func() { _ = file.Close() })
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return process{}, err
	}
	p := process{ended: make(chan struct{}), log: file.Name()}
	go func() { _ = cmd.Wait(); close(p.ended) }()
	p.stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(5 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-p.ended
		}
	}
	s.later(p.stop)
	return p, nil
}

// APIURL is the base URL of Prefect's API.
func (s *Stack) APIURL() string { return s.apiURL }

// healthy waits until the server answers. On a slow machine its first start takes a minute.
func (s *Stack) healthy(ctx context.Context, ended chan struct{}, log string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.apiURL+"/health", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ended:
			return fmt.Errorf("start Prefect's server: it ended, and its last words were:\n%s", tail(log))
		case <-ctx.Done():
			return fmt.Errorf("start Prefect's server: no answer from %s/health; its last words were:\n%s", s.apiURL, tail(log))
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// deployFlow deploys scripts/demo-flow with Prefect's own command.
func (s *Stack) deployFlow(ctx context.Context, root, venv string) error {
	flow := filepath.Join(root, "scripts", "demo-flow")
	s.Say("deploying the flow: prefect deploy --all")
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	deploy := func() error {
		cmd := exec.CommandContext(ctx, filepath.Join(venv, "bin", "prefect"), "--no-prompt", "deploy", "--all")
		cmd.Dir = flow
		cmd.Env = append(s.prefectEnv(venv, "client"), "PREFECT_API_URL="+s.apiURL, "WORK_POOL="+WorkPool, "FLOW_DIR="+flow)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("deploy the flow: %w:\n%s", err, out)
		}
		return nil
	}
	if deploy() == nil {
		return nil
	}
	return deploy() // on a machine that is busy it fails now and then, and does not say why
}

func (s *Stack) prefectEnv(venv, home string) []string {
	return []string{
		"PATH=" + filepath.Join(venv, "bin") + ":/usr/bin:/bin", "HOME=" + s.dir,
		"PREFECT_HOME=" + filepath.Join(s.dir, home), "PREFECT_SERVER_ANALYTICS_ENABLED=false", "NO_COLOR=1",
	}
}

// startEmbedded starts the stand-in server.
func (s *Stack) startEmbedded(weather string) (containers []string, err error) {
	server := prefecttest.New(prefecttest.Options{Scheduler: true})
	s.later(server.Close)
	s.apiURL = server.URL()
	s.note("Prefect", s.apiURL+" (stand-in)")
	return s.lightContainers(weather)
}

// lightContainers makes a `prefect` and a `python` for containers that run the stand-in flow.
func (s *Stack) lightContainers(weather string) (containers []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(s.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	script := "#!/bin/sh\nexec '" + self + "' stand-in -- \"$@\"\n"
	for _, name := range []string{"prefect", "python"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			return nil, err
		}
	}
	return []string{"PATH=" + bin + ":/usr/bin:/bin", "HOME=" + s.dir, "WEATHER_URL=" + weather}, nil
}

// deployEmbedded makes the deployments that prefect.yaml describes.
func (s *Stack) deployEmbedded(ctx context.Context) error {
	flow, err := s.Prefect.CreateFlow(ctx, "weather")
	if err != nil {
		return err
	}
	for _, d := range []prefect.NewDeployment{
		{Name: "guide", FlowID: flow.ID, WorkPool: WorkPool},
		{
			Name: "scheduled", FlowID: flow.ID, WorkPool: WorkPool, Parameters: map[string]any{"city": "Paris"},
			// The stand-in has no cron of seconds.
			Schedules: []prefect.Schedule{{Interval: 10 * time.Second, Timezone: "UTC"}}, Paused: true,
		},
	} {
		if _, err := s.Prefect.CreateDeployment(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// counted returns where the functions reach Prefect: by way of a proxy where calls are counted.
func (s *Stack) counted() (string, error) {
	if s.OnPrefectCall == nil && s.OnPrefectAnswer == nil {
		return s.apiURL, nil
	}
	target, err := url.Parse(s.apiURL)
	if err != nil {
		return "", err
	}
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			if s.OnPrefectCall != nil {
				s.OnPrefectCall(r.In)
			}
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, target.Host
		},
		ModifyResponse: func(resp *http.Response) error {
			if s.OnPrefectAnswer != nil {
				s.OnPrefectAnswer(resp)
			}
			return nil
		},
		ErrorHandler: badGateway,
	})
	s.later(proxy.Close)
	return proxy.URL + target.Path, nil
}

// tail returns the end of a file, for an error.
func tail(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	const most = 2000
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-most), io.SeekStart)
	}
	b, _ := io.ReadAll(f)
	return strings.TrimSpace(string(b))
}
