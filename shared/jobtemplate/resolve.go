package jobtemplate

import (
	"context"
	"fmt"
	"strings"
)

// maxWork bounds what a template resolves to, in bytes of text and values: a few small
// values, each used many times, could otherwise fill the memory.
const maxWork = 16 << 20

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
	size  int
	found bool
}

func (r *resolver) spend(n int) error {
	if r.work += n; r.work > maxWork {
		return problem("base job template", "it resolves to more than 16 MiB", "use large job variables, blocks and variables fewer times, or none")
	}
	return nil
}

// size is what a value counts against maxWork.
func size(v any) int {
	n := 1
	switch v := v.(type) {
	case string:
		n += len(v)
	case []any:
		for _, e := range v {
			n += size(e)
		}
	case *object:
		for k, e := range v.all() {
			n += len(k) + size(e)
		}
	}
	return n
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
		if err := r.spend(len(t)); err != nil {
			return nil, err
		}
		s = t
	}
	return r.variableString(s)
}

// variableString resolves the variable placeholders of a string. A variable that does not
// exist is an empty string.
func (r *resolver) variableString(s string) (any, error) {
	if p, ok := whole(s); ok && p.isVariable() {
		v, err := r.variable(p)
		if err != nil || !v.found {
			return "", err
		}
		return v.value, r.spend(v.size)
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
	r.variables[name] = variable{value, size(value), found}
	return r.variables[name], nil
}
