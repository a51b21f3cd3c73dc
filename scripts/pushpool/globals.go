package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/pushpool/pushpool/scripts/pushpool/operator"
)

// globals are the flags that every command about an installation takes.
type globals struct {
	EnvFile string `help:"A file of NAME=VALUE lines that says which installation is meant, as terraform output -raw operator_env prints it; the environment wins over it. Default: .pushpool.env, if there is one." placeholder:"FILE" env:"PUSHPOOL_ENV_FILE" predictor:"file"`
	JSON    bool   `help:"Print JSON, for programs."`
}

// open makes the clients of the installation that is meant.
func (g globals) open(ctx context.Context) (*operator.Installation, error) {
	cfg, err := operator.Load(g.EnvFile, os.Environ())
	if err != nil {
		return nil, err
	}
	return operator.Open(ctx, cfg, io.Discard)
}

// print writes v as JSON where that is wanted, and for people otherwise.
func (g globals) print(v any, people func(io.Writer)) error {
	if !g.JSON {
		people(os.Stdout)
		return nil
	}
	return printJSON(v)
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// unlessInterrupted runs what does not know of ctx, as a read from a terminal, and leaves it alone once ctx ends.
func unlessInterrupted[T any](ctx context.Context, f func() (T, error)) (v T, err error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

// progressEvery says again and again on standard error that it goes on, for as long as it does.
// done ends it.
func progressEvery(each time.Duration, what string) (done func()) {
	start, ended := time.Now(), make(chan struct{})
	go func() {
		t := time.NewTicker(each)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				fmt.Fprintf(os.Stderr, "· %s: %s\n", time.Since(start).Round(time.Second), what)
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended) }
}

// progress says on standard error what is going on, if it takes longer than two seconds.
// done ends it.
func progress(format string, args ...any) (done func()) {
	t := time.AfterFunc(2*time.Second, func() { fmt.Fprintf(os.Stderr, "· "+format+"\n", args...) })
	return func() { t.Stop() }
}
