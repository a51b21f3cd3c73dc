package jobtemplate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/pushpool/pushpool/shared/flowrun"
)

const (
	blockPrefix    = "prefect.blocks."
	variablePrefix = "prefect.variables."
)

// maxWork bounds what a template resolves to, in bytes of text and values: a few small
// values, each used many times, could otherwise fill the memory.
const maxWork = 16 << 20

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

// missing is what a whole placeholder resolves to that names nothing: its key or array
// element is dropped.
type missing struct{}

// resolver resolves the placeholders of one template. It reads no block or variable twice.
type resolver struct {
	ctx         context.Context //nolint:containedctx // lives for one Render
	lookup      Lookup
	environment map[string]string
	blocks      map[[2]string]any
	variables   map[string]variable
	work        int
}

type variable struct {
	value any
	found bool
}

func (r *resolver) spend(n int) error {
	if r.work += n; r.work > maxWork {
		return problem("base job template", "it resolves to more than 16 MiB", "use large job variables, blocks and variables fewer times, or none")
	}
	return nil
}

// apply resolves job variables and environment variables. Values are not scanned again.
func (r *resolver) apply(template any, values *object) (any, error) {
	if err := r.spend(1); err != nil {
		return nil, err
	}
	switch t := template.(type) {
	case string:
		return r.applyString(t, values)
	case *object:
		o := newObject(t.len())
		for k, v := range t.all() {
			a, err := r.apply(v, values)
			if err != nil {
				return nil, err
			}
			if a != (missing{}) {
				o.set(k, a)
			}
		}
		return o, nil
	case []any:
		l := make([]any, 0, len(t))
		for _, v := range t {
			a, err := r.apply(v, values)
			if err != nil {
				return nil, err
			}
			if a != (missing{}) {
				l = append(l, a)
			}
		}
		return l, nil
	}
	return template, nil
}

func (r *resolver) applyString(s string, values *object) (any, error) {
	if p, ok := whole(s); ok && p.isStandard() {
		v, ok := r.at(values, p.name)
		if !ok {
			return missing{}, nil
		}
		return v, nil
	}
	return substitute(s, func(p placeholder) (string, bool, error) {
		var text string
		switch {
		case p.isStandard():
			if v, ok := r.at(values, p.name); ok {
				text = str(v)
			}
		case p.isEnvironment():
			text = r.environment[strings.TrimLeft(p.name, "$")]
		default:
			return "", false, nil
		}
		return text, true, r.spend(len(text))
	})
}

// at follows a path such as `a.b[0].c` from v.
func (r *resolver) at(v any, path string) (any, bool) {
	path = strings.ReplaceAll(strings.ReplaceAll(path, "[", "."), "]", "")
	for segment := range strings.SplitSeq(path, ".") {
		i, isIndex := isIndex(segment)
		switch t := v.(type) {
		case *object:
			var ok bool
			// An index is never a key: Python's are strings.
			if v, ok = t.get(segment); !ok || isIndex {
				return nil, false
			}
		case []any:
			if i < 0 {
				i += len(t)
			}
			if !isIndex || i < 0 || i >= len(t) {
				return nil, false
			}
			v = t[i]
		case string:
			r.work += len(t) // whoever asked spends more
			runes := []rune(t)
			if i < 0 {
				i += len(runes)
			}
			if !isIndex || i < 0 || i >= len(runes) {
				return nil, false
			}
			v = string(runes[i])
		default:
			return nil, false
		}
	}
	return v, true
}

// finish resolves blocks, and then variables, everywhere in a tree. Of what a block holds
// only variables are resolved; of what a variable holds nothing is. Nothing in the result
// is shared with v, except what variables hold.
func (r *resolver) finish(v any, blocks bool) (any, error) {
	if err := r.spend(1); err != nil {
		return nil, err
	}
	switch t := v.(type) {
	case string:
		return r.finishString(t, blocks)
	case []any:
		l := make([]any, len(t))
		for i := range t {
			f, err := r.finish(t[i], blocks)
			if err != nil {
				return nil, err
			}
			l[i] = f
		}
		return l, nil
	case *object:
		if ref, ok := t.get("$ref"); ok && blocks {
			data, ok, err := r.reference(ref)
			if err != nil {
				return nil, err
			}
			if ok {
				return r.finish(data, false)
			}
		}
		o := newObject(t.len())
		for k, e := range t.all() {
			f, err := r.finish(e, blocks)
			if err != nil {
				return nil, err
			}
			if err := r.spend(len(k)); err != nil {
				return nil, err
			}
			o.set(k, f)
		}
		return o, nil
	}
	return v, nil
}

func (r *resolver) finishString(s string, blocks bool) (any, error) {
	if err := r.spend(len(s)); err != nil {
		return nil, err
	}
	if !strings.Contains(s, "{{") {
		return s, nil
	}
	if blocks {
		v, err := r.blockString(s)
		if err != nil {
			return nil, err
		}
		t, ok := v.(string)
		if !ok {
			return r.finish(v, false)
		}
		s = t
	}
	return r.variableString(s)
}

// blockString resolves the block placeholders of a string.
func (r *resolver) blockString(s string) (any, error) {
	if p, ok := whole(s); ok && p.isBlock() {
		return r.block(p)
	}
	return substitute(s, func(p placeholder) (string, bool, error) {
		if !p.isBlock() {
			return "", false, nil
		}
		v, err := r.block(p)
		if err != nil {
			return "", false, err
		}
		switch v.(type) {
		case *object, []any:
			return "", false, problem(quoted(p.name), fmt.Sprintf("it is %s, which cannot stand inside other text", kind(v)),
				"name one of its keys, as in {{ "+p.name+".host }}")
		}
		text := str(v)
		return text, true, r.spend(len(text))
	})
}

// block returns what a placeholder `prefect.blocks.TYPE.NAME[.PATH]` names.
func (r *resolver) block(p placeholder) (any, error) {
	parts := strings.SplitN(strings.ReplaceAll(p.name, blockPrefix, ""), ".", 3)
	if len(parts) < 2 || parts[0] == "" || parts[1] == "" {
		return nil, problem(quoted(p.name), "it does not name a block", "write {{ prefect.blocks.BLOCK-TYPE.BLOCK-NAME }}")
	}
	data, err := r.read(quoted(p.name), [2]string{parts[0], parts[1]})
	if err != nil {
		return nil, err
	}
	path := ""
	if len(parts) == 3 {
		path = parts[2]
	}
	atValue := path == "value" || strings.HasPrefix(path, "value.") || strings.HasPrefix(path, "value[")
	if o, ok := data.(*object); ok && o.len() == 1 && !atValue {
		if v, ok := o.get("value"); ok {
			data = v
		}
	}
	if len(parts) < 3 {
		return data, nil
	}
	v, ok := r.at(data, path)
	if !ok {
		return nil, problem(quoted(p.name), fmt.Sprintf("the block %s/%s has nothing at %q", parts[0], parts[1], path), "check the path against the block's fields")
	}
	return v, nil
}

// reference returns the document that `{"$ref": {"block_document_id": ID}}` names; ok is
// false for a reference to something else.
func (r *resolver) reference(ref any) (data any, ok bool, err error) {
	o, isObject := ref.(*object)
	if !isObject {
		return nil, false, problem("$ref", "it is "+kind(ref), `write {"$ref": {"block_document_id": "ID"}}`)
	}
	id, _ := o.get("block_document_id")
	if !truthy(id) {
		return nil, false, nil
	}
	s, isString := id.(string)
	if !isString {
		return nil, false, problem("$ref", "its block_document_id is "+kind(id), `write {"$ref": {"block_document_id": "ID"}}`)
	}
	data, err = r.read("$ref "+s, [2]string{"", s})
	return data, true, err
}

// read returns a block's data: key is its type's slug and its name, or no slug and its id.
func (r *resolver) read(where string, key [2]string) (any, error) {
	if data, ok := r.blocks[key]; ok {
		return data, nil
	}
	var (
		data any
		err  error
	)
	if key[0] == "" {
		data, err = r.lookup.BlockDocumentByID(r.ctx, key[1])
	} else {
		data, err = r.lookup.BlockDocument(r.ctx, key[0], key[1])
	}
	if err != nil {
		if flowrun.FaultOf(err) == flowrun.NotFound {
			return nil, &flowrun.Error{
				Fault: flowrun.Permanent, Act: "resolve " + where, Err: errors.New("there is no such block"),
				Hint: "create it in Prefect, or change the base job template or the job variables",
			}
		}
		return nil, fmt.Errorf("read block %s: %w", where, err)
	}
	if data, err = convert(data, 0); err != nil {
		return nil, problem(where, "the block "+err.Error(), "make it simpler")
	}
	if r.blocks == nil {
		r.blocks = map[[2]string]any{}
	}
	r.blocks[key] = data
	return data, nil
}

// variableString resolves the variable placeholders of a string. A variable that does not
// exist is an empty string.
func (r *resolver) variableString(s string) (any, error) {
	if p, ok := whole(s); ok && p.isVariable() {
		v, err := r.variable(p)
		if err != nil || !v.found {
			return "", err
		}
		return v.value, nil
	}
	return substitute(s, func(p placeholder) (string, bool, error) {
		if !p.isVariable() {
			return "", false, nil
		}
		v, err := r.variable(p)
		if err != nil || !v.found {
			return "", true, err
		}
		text := str(v.value)
		return text, true, r.spend(len(text))
	})
}

func (r *resolver) variable(p placeholder) (variable, error) {
	name := strings.ReplaceAll(p.name, variablePrefix, "")
	if v, ok := r.variables[name]; ok || name == "" {
		return v, nil
	}
	value, found, err := r.lookup.Variable(r.ctx, name)
	if err != nil {
		return variable{}, fmt.Errorf("read variable %q: %w", name, err)
	}
	if value, err = convert(value, 0); err != nil {
		return variable{}, problem(quoted(p.name), "the variable "+err.Error(), "make it simpler")
	}
	if r.variables == nil {
		r.variables = map[string]variable{}
	}
	r.variables[name] = variable{value, found}
	return r.variables[name], nil
}

func quoted(name string) string { return "{{ " + name + " }}" }
