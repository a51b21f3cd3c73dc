package jobtemplate

import (
	"errors"
	"strings"
)

// split cuts text into words as Python's shlex.split does: quotes and backslashes as in a
// POSIX shell, no comments, and a backslash before a line's end keeps the line's end.
func split(text string) ([]any, error) {
	var (
		words  = []any{}
		word   strings.Builder
		inWord bool
		quote  rune // the open quotation mark, or 0
		escape bool
	)
	for _, r := range text {
		switch {
		case escape:
			if quote != 0 && r != quote && r != '\\' {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			escape = false
		case r == '\\' && quote != '\'':
			escape, inWord = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\r' || r == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	switch {
	case escape:
		return nil, errors.New("it ends with a backslash")
	case quote != 0:
		return nil, errors.New("a quotation mark is not closed")
	case inWord:
		words = append(words, word.String())
	}
	return words, nil
}
