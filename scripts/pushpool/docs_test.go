package main

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

// block is a fenced piece of a page.
type block struct {
	line int
	info string // what follows the fence: sh, mermaid, sh by-hand
	text string
}

var fence = regexp.MustCompile("^( *)```(.*)$")

func blocks(page string) (found []block) {
	var open *block
	indent := ""
	for i, line := range strings.Split(page, "\n") {
		m := fence.FindStringSubmatch(line)
		switch {
		case m != nil && open == nil:
			indent, open = m[1], &block{line: i + 2, info: strings.TrimSpace(m[2])}
		case m != nil:
			found, open = append(found, *open), nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	return found
}

// pages are the documents for operators, and the READMEs of the repository, of the module, of its modules and examples, by name.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	names, err := filepath.Glob(filepath.Join(docs, "*.md"))
	if err != nil || len(names) < 8 {
		t.Fatalf("%v: %v", names, err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		found[filepath.Base(name)] = string(data)
	}
	for _, pattern := range []string{"../README.md", "../terraform/README.md", "../terraform/*/*/README.md"} {
		readmes, err := filepath.Glob(filepath.Join(docs, pattern))
		if err != nil || len(readmes) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, readme := range readmes {
			name, err := filepath.Rel(docs, readme)
			if err != nil {
				t.Fatal(err)
			}
			found[name] = read(t, readme)
		}
	}
	return found
}

// byHand are the beginnings of lines that cannot be run here: they take a browser, the internet or Docker, or they end what the page is about.
var byHand = []string{"gcloud auth ", "git clone ", "cd ", "go install ./scripts/pushpool", "pip install ", "terraform destroy", "prefect --no-prompt deploy --all", "scripts/demo", "scripts/test"}

// TestEveryCommandOfThePagesRuns runs what the pages say, page by page, against an embedded local
// stack. What needs Google Cloud, Terraform or Prefect's command meets a stand-in that takes the commands and
// flags that the real one has, and nothing else.
func TestEveryCommandOfThePagesRuns(t *testing.T) {
	t.Parallel() // it mostly waits, and so do the others
	environ := startStack(t)
	ran := 0
	all := pages(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			var script []block
			for _, b := range blocks(all[name]) {
				switch b.info {
				case "sh":
					script = append(script, b)
				case "sh by-hand":
					for line := range strings.Lines(b.text) {
						if !slices.ContainsFunc(byHand, func(p string) bool {
							return strings.HasPrefix(strings.TrimRight(line, "\n")+" ", p) || strings.HasPrefix(line, p)
						}) {
							t.Errorf("line %d: this can be run: %s", b.line, line)
						}
					}
				case "mermaid", "text", "hcl":
				case "python", "go": // run with Google's clients by shared/delivery
					if name != "../README.md" {
						t.Errorf("line %d: nobody runs a block of %s here", b.line, b.info)
					}
				default:
					t.Errorf("line %d: a block %q: write sh for what is run, sh by-hand for what cannot be", b.line, b.info)
				}
			}
			if len(script) == 0 {
				return
			}
			vars := prepare(t, environ, name)
			for _, b := range script {
				ran++
				if strings.Contains(b.text, "$MESSAGE") && !strings.Contains(strings.Join(vars, "\n"), "MESSAGE=") {
					vars = append(vars, deadLetter(t, vars))
				}
				if out, err := bash(t, vars, b.text); err != nil {
					t.Fatalf("line %d: %v\n%s\n%s", b.line, err, b.text, out)
				}
			}
		})
	}
	if ran < 30 {
		t.Errorf("only %d blocks were found", ran)
	}
}

// bash runs a block in the page's directory. Variables that it exports are gone afterwards, as
// those of the page are given.
func bash(t *testing.T, environ []string, text string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", text)
	cmd.Dir, cmd.Env = variable(environ, "HOME"), environ
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// prepare is the world that a page starts in: a flow run that ended, and for moving over a worker's
// work pool with deployments.
func prepare(t *testing.T, environ []string, page string) []string {
	t.Helper()
	home := t.TempDir()
	environ = append(slices.Clone(environ), "PATH="+os.Getenv("PATH"), "HOME="+home, "PROJECT=my-project", "REGION=europe-west1", "DOCS_OPERATOR_ENV="+strings.Join(environ, "\n"))
	p, err := prefect.New(prefect.Config{APIURL: variable(environ, "PREFECT_API_URL")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(home, ".cache"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".cache", "local.env"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A page may end with the installation drained.
	out, err := bash(t, environ, "pushpool drain --resume && pushpool request weather/guide --wait --json")
	m := regexp.MustCompile(`"flow_run_id":"([^"]+)"`).FindStringSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v: %s", err, out)
	}
	environ = append(environ, "FLOW_RUN="+m[1])
	if page != "moving-over.md" {
		return environ
	}
	flow, err := p.CreateFlow(t.Context(), "weather")
	if err != nil {
		t.Fatal(err)
	}
	template, err := p.WorkerMetadataTemplate(t.Context(), "cloud-run-v2")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.CreateWorkPool(t.Context(), "workers", "cloud-run-v2", template); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hourly", "daily"} {
		if _, err := p.CreateDeployment(t.Context(), prefect.NewDeployment{Name: name, FlowID: flow.ID, WorkPool: "workers"}); err != nil {
			t.Fatal(err)
		}
	}
	return environ
}

// deadLetter makes one and returns the variable that names it.
func deadLetter(t *testing.T, environ []string) string {
	t.Helper()
	publish := fmt.Sprintf(`curl --silent --fail -d '{"messages": [{"data": "eyJkZXBsb3ltZW50IjogIm5vL3N1Y2gifQ=="}]}' http://%s/v1/projects/local/topics/flow-runs:publish`,
		variable(environ, "PUBSUB_EMULATOR_HOST"))
	if out, err := bash(t, environ, publish); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var m []string
	within(t, "there is no dead letter", func() bool {
		out, _ := bash(t, environ, "pushpool deadletters list --json")
		m = regexp.MustCompile(`"id": "([^"]+)"`).FindStringSubmatch(out)
		return m != nil
	})
	return "MESSAGE=" + m[1]
}

// TestLogQueriesAskForWhatIsLogged holds that each key and message that a page's filter names is
// one that the code writes.
func TestLogQueriesAskForWhatIsLogged(t *testing.T) {
	var code strings.Builder
	for _, dir := range []string{"../../functions", "../../shared"} {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			data, err := os.ReadFile(name)
			code.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	key, value := regexp.MustCompile(`jsonPayload\.(\w+)`), regexp.MustCompile(`jsonPayload\.message=\\?"([^"\\]+)`)
	for name, page := range pages(t) {
		for _, m := range append(key.FindAllStringSubmatch(page, -1), value.FindAllStringSubmatch(page, -1)...) {
			if m[1] != "message" && !strings.Contains(code.String(), `"`+m[1]+`"`) {
				t.Errorf("%s asks for %q, which nothing logs", name, m[1])
			}
		}
	}
}

// TestLinksLeadSomewhere holds for files and headings.
func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	all := pages(t)
	for name, page := range all {
		for _, m := range link.FindAllStringSubmatch(page, -1) {
			u, err := url.Parse(m[1])
			if err != nil || u.Host != "" {
				continue
			}
			target := page
			if u.Path != "" {
				file := filepath.Join(docs, filepath.Dir(name), u.Path)
				info, err := os.Stat(file)
				if err != nil {
					t.Errorf("%s: %s leads nowhere", name, m[1])
					continue
				}
				if u.Fragment == "" {
					continue
				}
				if info.IsDir() {
					file = filepath.Join(file, "README.md")
				}
				target = read(t, file)
			}
			if u.Fragment != "" && !slices.Contains(anchors(target), u.Fragment) {
				t.Errorf("%s: %s: there is no such heading", name, m[1])
			}
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// anchors are the names that GitHub gives headings.
func anchors(page string) (names []string) {
	heading, out := regexp.MustCompile(`(?m)^#+ (.+)$`), regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		names = append(names, strings.ReplaceAll(out.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return names
}

// TestTroubleshootingQuotesWhatIsSaid holds the page's tables to the messages that Prefect shows and to what `pushpool explain` prints.
func TestTroubleshootingQuotesWhatIsSaid(t *testing.T) {
	page := read(t, filepath.Join(docs, "troubleshooting.md"))
	for _, o := range []flowrun.Outcome{
		{Kind: flowrun.Succeeded}, {Kind: flowrun.ExitCode, ExitCode: 1}, {Kind: flowrun.Signal, Signal: 9}, {Kind: flowrun.OutOfMemory}, {Kind: flowrun.TimedOut},
		{Kind: flowrun.Image}, {Kind: flowrun.Secret}, {Kind: flowrun.Permission}, {Kind: flowrun.Cancelled}, {Kind: flowrun.Deleted}, {Kind: flowrun.Platform},
	} {
		begins, _, _ := strings.Cut(o.Message(), ". ")
		begins = strings.Replace(begins, "code 1", "code N", 1)
		if row := fmt.Sprintf("| `%s` | %s. |", o.Kind, begins); !strings.Contains(page, row) {
			t.Errorf("it does not have %q", row)
		}
	}
	said := read(t, "explain/answer.go")
	quoting, quoted := false, 0
	for line := range strings.Lines(page) {
		cells := strings.Split(line, " | ")
		first := strings.TrimPrefix(cells[0], "| ")
		switch {
		case !strings.HasPrefix(line, "|"):
			quoting = false
		case first == "`explain` says":
			quoting = true
		case quoting && !strings.HasPrefix(line, "|---"):
			quoted++
			if !strings.Contains(strings.ToLower(said), strings.ToLower(first)) {
				t.Errorf("explain does not say %q", first)
			}
		}
	}
	if quoted < 10 {
		t.Errorf("only %d rows were found", quoted)
	}
}
