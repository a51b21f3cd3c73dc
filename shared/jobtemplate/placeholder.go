package jobtemplate

import (
	"strings"
	"unicode/utf8"
)

const (
	blockPrefix    = "prefect.blocks."
	variablePrefix = "prefect.variables."
)

// A placeholder is `{{ name }}` at [start, end) of a string.
type placeholder struct {
	start, end int
	name       string
}

func (p placeholder) isBlock() bool       { return strings.HasPrefix(p.name, blockPrefix) }
func (p placeholder) isVariable() bool    { return strings.HasPrefix(p.name, variablePrefix) }
func (p placeholder) isEnvironment() bool { return strings.HasPrefix(p.name, "$") }

// isStandard reports whether the placeholder names a job variable.
func (p placeholder) isStandard() bool {
	return !p.isBlock() && !p.isVariable() && !p.isEnvironment()
}

// next finds the first placeholder in s from an index on. It matches what Prefect's
// `{{\s*([\w\.\-\[\]$]+)\s*}}` does, and reads no byte twice.
func next(s string, from int) (placeholder, bool) {
	for {
		i := strings.Index(s[from:], "{{")
		if i < 0 {
			return placeholder{}, false
		}
		start := from + i
		first := skip(s, start+2, isSpace)
		last := skip(s, first, isName)
		end := skip(s, last, isSpace)
		if last > first && strings.HasPrefix(s[end:], "}}") {
			return placeholder{start: start, end: end + 2, name: s[first:last]}, true
		}
		from = start + 1 // `{{{ a }}` has one too
	}
}

func isName(r rune) bool {
	switch r {
	case '.', '-', '[', ']', '$':
		return true
	}
	return isWord(r)
}

func skip(s string, i int, in func(rune) bool) int {
	for i < len(s) {
		r, size := utf8.DecodeRuneInString(s[i:])
		if !in(r) {
			break
		}
		i += size
	}
	return i
}

// whole returns the placeholder that a string consists of.
func whole(s string) (placeholder, bool) {
	p, ok := next(s, 0)
	return p, ok && p.start == 0 && p.end == len(s)
}

// substitute replaces the placeholders for which text returns a replacement.
func substitute(s string, text func(placeholder) (string, bool, error)) (string, error) {
	var b strings.Builder
	done := 0
	for from := 0; ; {
		p, ok := next(s, from)
		if !ok {
			break
		}
		t, replace, err := text(p)
		if err != nil {
			return "", err
		}
		if replace {
			b.WriteString(s[done:p.start])
			b.WriteString(t)
			done = p.end
		}
		from = p.end
	}
	if done == 0 {
		return s, nil
	}
	b.WriteString(s[done:])
	return b.String(), nil
}

func quoted(name string) string { return "{{ " + name + " }}" }
