package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// startOthers starts the processes of the functions beside the first, and has pushes go to all
// of them in turn, as to the instances of a deployed function.
func (s *Stack) startOthers(ctx context.Context) error {
	s.push = s.Functions.addr
	if s.Processes < 2 {
		return nil
	}
	proxies := []*httputil.ReverseProxy{proxyTo(s.Functions.addr)}
	for range s.Processes - 1 {
		port, err := FreePort(ctx)
		if err != nil {
			return err
		}
		f := &Functions{addr: fmt.Sprintf("127.0.0.1:%d", port), environ: s.Functions.environ, output: s.Output}
		s.later(f.Stop)
		s.Others = append(s.Others, f)
		if err := f.Start(ctx); err != nil {
			return err
		}
		proxies = append(proxies, proxyTo(f.addr))
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var turn atomic.Uint64
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		proxies[turn.Add(1)%uint64(len(proxies))].ServeHTTP(w, req)
	})}
	go func() { _ = server.Serve(listener) }() // ends with Close
	s.later(func() { _ = server.Close() })
	s.push = listener.Addr().String()
	return nil
}

func proxyTo(addr string) *httputil.ReverseProxy {
	p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	p.Transport = &http.Transport{MaxIdleConnsPerHost: 100, IdleConnTimeout: 5 * time.Second}
	p.ErrorHandler = badGateway
	return p
}

// badGateway answers for a process that died, without a line: it is killed on purpose.
func badGateway(w http.ResponseWriter, _ *http.Request, _ error) {
	w.WriteHeader(http.StatusBadGateway)
}

// startFirestore starts the Firestore emulator of the Google Cloud SDK, which several
// processes need to share a ledger, unless FIRESTORE_EMULATOR_HOST names one.
func (s *Stack) startFirestore(ctx context.Context) error {
	const variable = "FIRESTORE_EMULATOR_HOST"
	if os.Getenv(variable) != "" || s.Processes < 2 {
		return nil
	}
	port, err := FreePort(ctx)
	if err != nil {
		return err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	log, err := os.Create(filepath.Join(s.dir, "firestore.log"))
	if err != nil {
		return err
	}
	s.later(func() { _ = log.Close() })
	cmd := exec.Command("gcloud", "--quiet", "emulators", "firestore", "start", "--host-port="+addr) //nolint:noctx // it ends with the stack, not with ctx
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // gcloud starts Java, which has to end with it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the Firestore emulator, which comes with the Google Cloud SDK: %w", err)
	}
	s.later(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			break
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(log.Name())
			return errors.Join(fmt.Errorf("start the Firestore emulator: nothing listens on %s: %s", addr, text), ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
	if err := os.Setenv(variable, addr); err != nil {
		return err
	}
	s.later(func() { _ = os.Unsetenv(variable) })
	return nil
}
