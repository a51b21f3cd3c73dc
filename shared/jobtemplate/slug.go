package jobtemplate

import (
	"encoding/xml"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/gosimple/unidecode"
	"golang.org/x/text/unicode/norm"
)

var (
	namedEntity   = regexp.MustCompile(`&([A-Za-z][A-Za-z0-9]*);`)
	decimalEntity = regexp.MustCompile(`&#([0-9]+);`)
	hexEntity     = regexp.MustCompile(`&#x([0-9a-fA-F]+);`)
)

// transliterated is what text-unidecode makes of characters that unidecode treats otherwise.
var transliterated = map[rune]string{
	'Є': "E", '\u05c0': "|", 'ẜ': "s", 'ẝ': "s", 'ẟ': "d", '€': "EUR", 'Ⅎ': "", '一': "Yi ",
	'し': "si", 'ち': "ti", 'っ': "tu", 'つ': "tu", 'シ': "si", 'チ': "ti", 'ッ': "tu", 'ツ': "tu",
}

// unknown are characters that text-unidecode marks as unknown and unidecode leaves out:
// the first part a word there, the second does not.
var unknown = &unicode.RangeTable{R16: []unicode.Range16{
	{0x02ff, 0x02ff, 1}, {0x03ff, 0x03ff, 1}, {0x04ff, 0x04ff, 1}, {0x05ff, 0x05ff, 1},
	{0x06ff, 0x06ff, 1}, {0x07ff, 0x08ff, 1}, {0x09ff, 0x09ff, 1}, {0x0aff, 0x0aff, 1},
	{0x0bff, 0x0bff, 1}, {0x0cff, 0x0cff, 1}, {0x0dff, 0x0dff, 1}, {0x0eff, 0x0eff, 1},
	{0x0fff, 0x0fff, 1}, {0x10ff, 0x10ff, 1}, {0x11ff, 0x11ff, 1}, {0x13ff, 0x13ff, 1},
	{0x16ff, 0x16ff, 1}, {0x17ff, 0x17ff, 1}, {0x18ff, 0x1dff, 1}, {0x1eff, 0x1eff, 1},
	{0x1fff, 0x1fff, 1}, {0x20ff, 0x20ff, 1}, {0x214e, 0x214e, 1}, {0x21ff, 0x23ff, 1},
	{0x24ff, 0x24ff, 1}, {0x25ff, 0x25ff, 1}, {0x26ff, 0x26ff, 1}, {0x27ff, 0x27ff, 1},
	{0x2900, 0x2fff, 1}, {0x31ff, 0x31ff, 1}, {0x3400, 0x4dff, 1}, {0x9fff, 0x9fff, 1},
	{0xa4ff, 0xfaff, 1}, {0xfdff, 0xfdff, 1},
}}

// Slug returns a name in lower case letters, digits and single dashes between them, at most
// length long: what python-slugify makes of it for Prefect. Other scripts are transliterated
// and HTML entities decoded. It is empty if nothing of the name can be kept.
func Slug(name string, length int) string {
	s := strings.ToValidUTF8(strings.ReplaceAll(name, "'", "-"), "-")
	s = norm.NFKD.String(entities(transliterate(norm.NFKD.String(s))))
	s = strings.ReplaceAll(s, "'", "")
	var b strings.Builder
	dash := false
	for i, r := range s {
		switch {
		case 'A' <= r && r <= 'Z':
			r += 'a' - 'A'
		case 'a' <= r && r <= 'z' || '0' <= r && r <= '9':
		case r == ',' && isDigitAt(s, i-1) && isDigitAt(s, i+1):
			continue
		default:
			dash = true
			continue
		}
		if dash && b.Len() > 0 {
			b.WriteByte('-')
		}
		dash = false
		b.WriteByte(byte(r))
	}
	slug := b.String()
	return strings.TrimRight(slug[:min(len(slug), length)], "-")
}

func isDigitAt(s string, i int) bool {
	return i >= 0 && i < len(s) && '0' <= s[i] && s[i] <= '9'
}

// entities decodes HTML entities, one kind after the other.
func entities(s string) string {
	if !strings.Contains(s, "&") {
		return s
	}
	s = namedEntity.ReplaceAllStringFunc(s, func(e string) string {
		if c, ok := xml.HTMLEntity[e[1:len(e)-1]]; ok {
			return c
		}
		return e
	})
	s = numericEntities(s, decimalEntity, 10)
	return numericEntities(s, hexEntity, 16)
}

// numericEntities decodes entities of one kind, or none if one of them is no character.
func numericEntities(s string, kind *regexp.Regexp, base int) string {
	valid := true
	decoded := kind.ReplaceAllStringFunc(s, func(e string) string {
		n, err := strconv.ParseInt(kind.FindStringSubmatch(e)[1], base, 32)
		if err != nil || n > unicode.MaxRune {
			valid = false
		}
		return string(rune(n))
	})
	if !valid {
		return s
	}
	return decoded
}

// transliterate writes other scripts in ASCII, as text-unidecode does, which Prefect is
// installed with. Its tables and those of unidecode differ in what the two variables hold.
func transliterate(s string) string {
	var b strings.Builder
	ascii := 0
	for i, r := range s {
		if r <= unicode.MaxASCII {
			continue
		}
		b.WriteString(s[ascii:i])
		ascii = i + len(string(r))
		if t, ok := transliterated[r]; ok {
			b.WriteString(t)
		} else if unicode.Is(unknown, r) {
			b.WriteString("[?] ")
		} else {
			b.WriteString(unidecode.Unidecode(string(r)))
		}
	}
	b.WriteString(s[ascii:])
	return b.String()
}
