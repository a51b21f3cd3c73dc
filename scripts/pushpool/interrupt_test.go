package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// endless are the commands that end when they are told to, or that have no data to print.
var endless = []string{"serve", "local", "demo", "drill", "soak", "bench", "completion", "read-event"}

// TestEveryCommandSaysThatItWaitsAndEndsByCtrlC holds against an installation of which nothing ever
// answers: progress after two seconds, and after Ctrl-C the end, as an interruption. The table has
// every command that prints data, each of which takes --json.
func TestEveryCommandSaysThatItWaitsAndEndsByCtrlC(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() }) // it accepts in the kernel, and nobody reads
	addr := silent.Addr().String()
	environ := append(os.Environ(),
		"GOOGLE_CLOUD_PROJECT=local", "INSTALL_NAME=pushpool", "WORK_POOLS=cloud-run", "REGIONS=us-central1", "LEDGER=memory", "LEDGER_URL=http://"+addr,
		"PREFECT_API_URL=http://"+addr+"/api", "CONTAINER_PREFECT_API_URL=http://"+addr+"/api", "WEBHOOK_URL=http://"+addr, "WEBHOOK_SECRETS=secret",
		"PUBSUB_EMULATOR_HOST="+addr, "CLOUD_RUN_EMULATOR_HOST="+addr, "CLOUD_LOGGING_EMULATOR_HOST="+addr, "CLOUD_TASKS_EMULATOR_HOST="+addr,
		"TASKS_QUEUE=projects/local/locations/us-central1/queues/pushpool", "DEAD_LETTER_TOPIC=dead-letter", "DEAD_LETTER_SUBSCRIPTIONS=dead-letter",
	)
	commands := []string{
		"request weather/guide", "explain 00000000-0000-0000-0000-000000000000", "doctor", "render --deployment weather/guide", "connect",
		"migrate plan --from workers --to cloud-run", "migrate switch --from workers --to cloud-run --yes", "migrate back --yes --state moved.json",
		"deadletters list", "deadletters show 1", "deadletters replay --yes", "deadletters drop --yes",
		"drain", "drain --resume", "uninstall-check", "sweep --dry-run",
	}
	for path := range leaves(newParser().Model.Node, "") {
		if !slices.Contains(endless, path) && !slices.ContainsFunc(commands, func(c string) bool { return strings.HasPrefix(c, path) }) {
			t.Errorf("pushpool %s is in neither table", path)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/moved.json", []byte(`{"from": "workers", "to": "cloud-run", "deployments": [{"id": "00000000-0000-0000-0000-000000000000", "name": "weather/guide", "moved": true}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range commands {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			args := append(strings.Fields(command), "--json")
			if _, err := newParser(kong.Exit(func(int) {})).Parse(args); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "pushpool", args...)
			cmd.Dir, cmd.Env = dir, environ
			said, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var first string
			lines := bufio.NewScanner(said)
			for !strings.HasPrefix(first, "· ") && lines.Scan() {
				first = lines.Text()
			}
			_ = cmd.Process.Signal(os.Interrupt)
			var rest string
			for lines.Scan() {
				rest += lines.Text() + "\n"
			}
			_ = cmd.Wait()
			if !strings.HasPrefix(first, "· ") {
				t.Errorf("it did not say that it waits: %s", first)
			}
			if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(rest, "pushpool: interrupted: ") {
				t.Errorf("exit status %d, and it said:\n%s", code, rest)
			}
		})
	}
}
