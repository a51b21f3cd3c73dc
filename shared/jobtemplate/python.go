package jobtemplate

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
)

// str returns Python's str() of a value.
func str(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	var b strings.Builder
	repr(&b, v)
	return b.String()
}

// repr writes Python's repr() of a value.
func repr(b *strings.Builder, v any) {
	switch v := v.(type) {
	case nil:
		b.WriteString("None")
	case bool:
		if v {
			b.WriteString("True")
		} else {
			b.WriteString("False")
		}
	case json.Number:
		b.WriteString(number(v))
	case string:
		quote(b, v)
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			repr(b, e)
		}
		b.WriteByte(']')
	case *object:
		b.WriteByte('{')
		first := true
		for k, e := range v.all() {
			if !first {
				b.WriteString(", ")
			}
			first = false
			quote(b, k)
			b.WriteString(": ")
			repr(b, e)
		}
		b.WriteByte('}')
	}
}

// number returns the text of a number that json.loads made an int or a float of.
func number(n json.Number) string {
	s := n.String()
	if !isFloat(n) {
		if s == "-0" {
			return "0"
		}
		return s
	}
	f, err := n.Float64()
	switch {
	case err != nil && f == 0:
		return s // not a number at all; the caller's own doing
	case math.IsInf(f, 0):
		return strings.TrimPrefix(strings.ToLower(strconv.FormatFloat(f, 'g', -1, 64)), "+")
	}
	e := strconv.FormatFloat(f, 'e', -1, 64)
	exponent, _ := strconv.Atoi(e[strings.IndexByte(e, 'e')+1:])
	if exponent < -4 || exponent >= 16 {
		return e
	}
	d := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(d, ".") {
		d += ".0"
	}
	return d
}

// isFloat reports whether Python reads the number as a float: how it is written decides.
func isFloat(n json.Number) bool { return strings.ContainsAny(n.String(), ".eE") }

// quote writes Python's repr() of a string.
func quote(b *strings.Builder, s string) {
	q := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		q = '"'
	}
	b.WriteByte(q)
	for _, r := range s {
		switch {
		case r == rune(q) || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xff:
			fmt.Fprintf(b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(b, `\u%04x`, r)
		default:
			fmt.Fprintf(b, `\U%08x`, r)
		}
	}
	b.WriteByte(q)
}

// truthy reports whether Python's bool() of a value is True.
func truthy(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != ""
	case json.Number:
		if isFloat(v) {
			f, _ := v.Float64()
			return f != 0
		}
		return strings.ContainsAny(v.String(), "123456789")
	case []any:
		return len(v) > 0
	case *object:
		return v.len() > 0
	}
	return true
}

// isSpace reports whether Python's \s matches r.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

// isWord reports whether Python's \w matches r.
func isWord(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) }

// isIndex reports whether Python's int() reads a segment of a path, and what it reads. A
// number that no list can have as an index is returned as one that none has.
func isIndex(segment string) (index int, ok bool) {
	digits := strings.TrimPrefix(segment, "-")
	if digits == "" || len(digits) > 4300 { // beyond that int() refuses
		return 0, false
	}
	value, after := 0, '_'
	for _, r := range digits {
		switch {
		case r == '_' && after == '_':
			return 0, false
		case r != '_':
			d, ok := digit(r)
			if !ok {
				return 0, false
			}
			value = min(value*10+d, math.MaxInt32)
		}
		after = r
	}
	if after == '_' {
		return 0, false
	}
	if len(digits) != len(segment) {
		value = -value
	}
	return value, true
}

// digit returns the value of a decimal digit of any script.
func digit(r rune) (int, bool) {
	if r <= unicode.MaxASCII {
		return int(r - '0'), '0' <= r && r <= '9'
	}
	// Unicode keeps each script's digits together, 0 first.
	for _, t := range unicode.Nd.R16 {
		if rune(t.Lo) <= r && r <= rune(t.Hi) {
			return int(r-rune(t.Lo)) % 10, true
		}
	}
	for _, t := range unicode.Nd.R32 {
		if rune(t.Lo) <= r && r <= rune(t.Hi) {
			return int(r-rune(t.Lo)) % 10, true
		}
	}
	return 0, false
}
