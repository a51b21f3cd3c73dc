package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// leaves are the commands that a person can give, with what their help says.
func leaves(n *kong.Node, help string) map[string]string {
	found := map[string]string{}
	if n.Detail != "" {
		help = n.Detail
	}
	for _, child := range n.Children {
		if child.Hidden {
			continue
		}
		if len(child.Children) == 0 {
			text := child.Detail
			if text == "" {
				text = help
			}
			found[strings.TrimPrefix(child.FullPath(), "pushpool ")] = text
		}
		for path, text := range leaves(child, help) {
			found[path] = text
		}
	}
	return found
}

var (
	shellWord = regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`)
	endings   = []string{"|", "&&", ";", ">>~/.bashrc", ">>~/.zshrc", "#", "&", `\`}
)

// commandLines returns the arguments of each pushpool command in a text's indented lines, as a
// shell would pass them on. An ellipsis stands for what only the reader knows.
func commandLines(text string) (lines [][]string) {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "  ") {
			continue
		}
		words := shellWord.FindAllString(line, -1)
		for i, word := range words {
			if word != "pushpool" && word != "./scripts/pushpool" || i+1 < len(words) && slices.Contains(endings, words[i+1]) || i > 0 && words[i-1] == "-o" {
				continue
			}
			var args []string
			for _, w := range words[i+1:] {
				if slices.Contains(endings, w) {
					break
				}
				args = append(args, strings.Trim(w, `'"`))
			}
			lines = append(lines, args)
		}
	}
	return lines
}

// parses holds that the command takes the arguments.
func parses(t *testing.T, args []string) {
	t.Helper()
	parser := newParser(kong.Exit(func(int) {}))
	parser.Stdout, parser.Stderr = nowhere{}, nowhere{}
	if _, err := parser.Parse(args); err != nil {
		t.Errorf("pushpool %s: %v", strings.Join(args, " "), err)
	}
}

type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

// TestEveryCommandHasExamplesThatItTakes holds for all that a person can give.
func TestEveryCommandHasExamplesThatItTakes(t *testing.T) {
	for path, help := range leaves(newParser().Model.Node, "") {
		lines := commandLines(help)
		if !slices.ContainsFunc(lines, func(args []string) bool { return strings.HasPrefix(strings.Join(args, " "), path) }) {
			t.Errorf("pushpool %s --help has no example of it", path)
		}
		for _, args := range lines {
			parses(t, args)
		}
	}
}

// TestTheShellIsToldWhatFits holds for commands, flags, and what Prefect knows.
func TestTheShellIsToldWhatFits(t *testing.T) {
	environ := startStack(t)
	complete := func(line string) []string {
		cmd := exec.CommandContext(t.Context(), "pushpool")
		cmd.Env = append(environ, "COMP_LINE="+line)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		words := strings.Fields(string(out))
		slices.Sort(words)
		return words
	}
	for line, want := range map[string][]string{
		"pushpool mi":                          {"migrate"},
		"pushpool deadletters ":                {"drop", "list", "replay", "show"},
		"pushpool request ":                    {"weather/guide", "weather/scheduled"},
		"pushpool request weather/g":           {"weather/guide"},
		"pushpool render --deployment weather": {"weather/guide", "weather/scheduled"},
		"pushpool migrate plan --to ":          {"cloud-run"},
		"pushpool drain --re":                  {"--resume"},
		"pushpool stand":                       nil, // hidden
	} {
		if diff := cmp.Diff(want, complete(line), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", line, diff)
		}
	}
	// Without an installation there is nothing to say, and no error in the middle of a line.
	environ = nil
	if got := complete("pushpool request "); len(got) != 0 {
		t.Errorf("without an installation: %q", got)
	}
}

// TestCtrlCEndsTheFollowingAndNotTheFlowRun holds that an interrupted command says what goes on without it.
func TestCtrlCEndsTheFollowingAndNotTheFlowRun(t *testing.T) {
	environ := append(os.Environ(), startStack(t)...)
	cmd := exec.CommandContext(t.Context(), "pushpool", "request", "weather/guide", "--param", "pause_seconds=2", "--wait")
	cmd.Env = environ
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var printed strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(&printed, lines.Text())
		if strings.Contains(lines.Text(), "Running") {
			break
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(said.String(), "was Running; it goes on by itself (`pushpool explain ") {
		t.Errorf("exit status %d, and it said: %s", code, said.String())
	}
	id := regexp.MustCompile("[0-9a-f-]{36}").FindString(said.String())
	within(t, "the flow run did not go on", func() bool {
		explain := exec.CommandContext(t.Context(), "pushpool", "explain", id)
		explain.Env = environ
		text, _ := explain.Output()
		return strings.Contains(string(text), "It ended COMPLETED")
	})
}
