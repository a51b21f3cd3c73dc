package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/pushpool/pushpool/functions"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/install"
	"github.com/pushpool/pushpool/shared/ledger"
)

type serveCommand struct {
	Addr        string `help:"Where to listen." default:"127.0.0.1:8080" env:"PUSHPOOL_ADDR"`
	ShowProcess bool   `hidden:"" help:"Tell at /process what memory and goroutines are in use." env:"PUSHPOOL_SHOW_PROCESS"`
}

// Help shows examples.
func (serveCommand) Help() string {
	return `Wrong configuration ends it at once, with every variable that is wrong and what to write. FUNCTION_TARGET names one function; all
four are served without it. docs/configuration.md describes the variables.

Examples:

  pushpool serve
  FUNCTION_TARGET=webhook pushpool serve --addr 0.0.0.0:8080`
}

// Run serves the functions until ctx ends, then lets requests under way finish.
func (c *serveCommand) Run(ctx context.Context) error {
	memory := ledger.NewMemory()
	handlers, err := functions.Make(os.Getenv("FUNCTION_TARGET"), install.Surroundings{
		Environ: os.Environ(), Log: os.Stderr, Memory: memory,
	})
	if err != nil {
		return fmt.Errorf("the configuration is wrong:\n%w", err)
	}
	mux := http.NewServeMux()
	for name, h := range handlers {
		mux.Handle("/"+name, h)
	}
	if os.Getenv("LEDGER") == "memory" { // which nobody else can look into
		mux.Handle("GET /ledger/{id}", operator.Show(memory))
	}
	if c.ShowProcess {
		mux.HandleFunc("GET /process", showProcess)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; choose another address with --addr", c.Addr, err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Fprintf(os.Stdout, "serving on http://%s\n", listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// showProcess tells what is in use once what is not has been collected.
func showProcess(w http.ResponseWriter, _ *http.Request) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	_ = json.NewEncoder(w).Encode(map[string]any{"heap": m.HeapAlloc, "goroutines": runtime.NumGoroutine()})
}
