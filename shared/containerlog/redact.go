package containerlog

import "regexp"

const hidden = "(secret)"

// What looks like a secret, and what is left of it. Too much is better than too little: the
// whole line stays in Cloud Logging, where fewer people read.
var secrets = []struct {
	pattern *regexp.Regexp
	left    string
}{
	// scheme://user:password@host
	{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#"']*:[^\s/?#"']+@`), "${1}" + hidden + "@"},
	// Authorization: Bearer …, Basic …
	{regexp.MustCompile(`(?i)\b(bearer|basic|digest)\s+[A-Za-z0-9._~+/=-]{8,}`), "${1} " + hidden},
	// Well-known forms: Prefect, Google, GitHub, AWS, Slack, Stripe and others, JSON Web Tokens.
	{regexp.MustCompile(
		`\b(?:pn[ub]_[A-Za-z0-9]{8,}|AIza[0-9A-Za-z_-]{30,}|ya29\.[0-9A-Za-z_.-]+|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}` +
			`|glpat-[A-Za-z0-9_-]{16,}|A(?:KIA|SIA)[0-9A-Z]{16}|xox[a-z]-[0-9A-Za-z-]{8,}|(?:sk|rk|pk)[-_][A-Za-z0-9_-]{16,}` +
			`|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?)`), hidden},
	// name=value, name: value, "name": "value", where the name says that it is one
	{regexp.MustCompile(
		`(?i)([A-Za-z0-9_.-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|auth[_-]?string|credential|connection[_-]?string|cookie|signature)[A-Za-z0-9_.-]*` +
			`["']?\s*(?:=|:)\s*)(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\(secret\)|[^\s"',;&)}\]]+)`), "${1}" + hidden},
}

var keyMark = regexp.MustCompile(`-----(BEGIN|END) [A-Z ]*PRIVATE KEY`)

// redact takes out of lines what looks like a secret. A private key goes over several; of one that
// ends and does not begin, it began before the first of them.
func redact(lines []Line) {
	inKey := false
	for i, l := range lines {
		hide := inKey
		for _, mark := range keyMark.FindAllStringSubmatch(l.Text, -1) {
			begins := mark[1] == "BEGIN"
			if !begins && !inKey {
				for j := range i {
					lines[j].Text = hidden
				}
			}
			inKey, hide = begins, true
		}
		if hide {
			lines[i].Text = hidden
		} else {
			lines[i].Text = redacted(l.Text)
		}
	}
}

func redacted(s string) string {
	for _, r := range secrets {
		s = r.pattern.ReplaceAllString(s, r.left)
	}
	return s
}
