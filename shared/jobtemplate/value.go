package jobtemplate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// maxDepth bounds the nesting of what is read. Python gives up on deeper documents too.
const maxDepth = 400

// indexFrom is the size from which on looking a key up by hash beats comparing.
const indexFrom = 16

// object is a JSON object whose keys keep their order, as Python's do. The order shows in
// the text of an object, in which of two labels wins, and in which are dropped.
//
// A value is nil, a bool, a string, a json.Number, a []any or an *object.
type object struct {
	pairs []pair
	index map[string]int // nil while there are few pairs
}

type pair struct {
	key   string
	value any
}

func newObject(size int) *object { return &object{pairs: make([]pair, 0, size)} }

func (o *object) find(key string) int {
	if o == nil {
		return -1
	}
	if o.index != nil {
		if i, ok := o.index[key]; ok {
			return i
		}
		return -1
	}
	for i := range o.pairs {
		if o.pairs[i].key == key {
			return i
		}
	}
	return -1
}

func (o *object) get(key string) (any, bool) {
	i := o.find(key)
	if i < 0 {
		return nil, false
	}
	return o.pairs[i].value, true
}

// set replaces the value of key in its place, or appends it.
func (o *object) set(key string, value any) {
	if i := o.find(key); i >= 0 {
		o.pairs[i].value = value
		return
	}
	o.pairs = append(o.pairs, pair{key, value})
	switch {
	case o.index != nil:
		o.index[key] = len(o.pairs) - 1
	case len(o.pairs) >= indexFrom:
		o.index = make(map[string]int, 2*indexFrom)
		for i := range o.pairs {
			o.index[o.pairs[i].key] = i
		}
	}
}

func (o *object) delete(key string) {
	if i := o.find(key); i >= 0 {
		o.pairs = slices.Delete(o.pairs, i, i+1)
		o.index = nil
		if len(o.pairs) >= indexFrom {
			o.index = make(map[string]int, len(o.pairs))
			for i := range o.pairs {
				o.index[o.pairs[i].key] = i
			}
		}
	}
}

func (o *object) len() int {
	if o == nil {
		return 0
	}
	return len(o.pairs)
}

func (o *object) all() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		if o == nil {
			return
		}
		for _, p := range o.pairs {
			if !yield(p.key, p.value) {
				return
			}
		}
	}
}

// union returns a new object with o's pairs and over's, which win.
func (o *object) union(over *object) *object {
	u := newObject(o.len() + over.len())
	for k, v := range o.all() {
		u.set(k, v)
	}
	for k, v := range over.all() {
		u.set(k, v)
	}
	return u
}

var errTooDeep = fmt.Errorf("is nested deeper than %d levels", maxDepth)

// convert returns what a caller holds of a JSON document as a value: a json.RawMessage,
// which keeps the order of keys; what encoding/json decodes into an any, best with
// UseNumber; or anything that encoding/json can encode.
func convert(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errTooDeep
	}
	switch v := v.(type) {
	case nil, bool, string, json.Number, *object:
		return v, nil
	case json.RawMessage:
		return decode(v, depth)
	case Document:
		return clone(v.value), nil
	case map[string]any:
		o := newObject(len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			c, err := convert(v[k], depth+1)
			if err != nil {
				return nil, err
			}
			o.set(k, c)
		}
		return o, nil
	case []any:
		l := make([]any, len(v))
		for i := range v {
			c, err := convert(v[i], depth+1)
			if err != nil {
				return nil, err
			}
			l[i] = c
		}
		return l, nil
	case float64:
		// Without UseNumber 600 and 600.0 are the same; the first is what people write.
		return json.Number(strconv.FormatFloat(v, 'f', -1, 64)), nil
	case int:
		return json.Number(strconv.Itoa(v)), nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("cannot be encoded as JSON: %w", err)
	}
	return decode(b, depth)
}

// Document is JSON that was read once, to be used in many renders, also at the same time.
type Document struct{ value any }

// Read reads a JSON document and keeps the order of its keys.
func Read(raw json.RawMessage) (Document, error) {
	v, err := decode(raw, 0)
	if err != nil {
		return Document{}, fmt.Errorf("the document %w", err)
	}
	return Document{v}, nil
}

// clone copies a value as deep as it can be changed.
func clone(v any) any {
	switch v := v.(type) {
	case *object:
		o := newObject(v.len())
		for k, e := range v.all() {
			o.set(k, clone(e))
		}
		return o
	case []any:
		l := make([]any, len(v))
		for i := range v {
			l[i] = clone(v[i])
		}
		return l
	}
	return v
}

// decode reads a JSON document of which nothing is known yet. No document at all is null.
func decode(b []byte, depth int) (any, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := decodeNext(d, depth)
	if err != nil {
		if errors.Is(err, errTooDeep) {
			return nil, err
		}
		return nil, fmt.Errorf("is not valid JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("is followed by something else")
	}
	return v, nil
}

func decodeNext(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errTooDeep
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('['):
		l := []any{}
		for d.More() {
			v, err := decodeNext(d, depth+1)
			if err != nil {
				return nil, err
			}
			l = append(l, v)
		}
		_, err := d.Token()
		return l, err
	case json.Delim('{'):
		o := newObject(4)
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := decodeNext(d, depth+1)
			if err != nil {
				return nil, err
			}
			o.set(k.(string), v) //nolint:forcetypeassert // the decoder returns nothing else for a key
		}
		_, err := d.Token()
		return o, err
	}
	return t, nil
}

// plain returns the value in the types that encoding/json decodes into an any. Nothing in
// it is shared with v.
func plain(v any) any {
	switch v := v.(type) {
	case *object:
		m := make(map[string]any, v.len())
		for k, e := range v.all() {
			m[k] = plain(e)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i := range v {
			l[i] = plain(v[i])
		}
		return l
	}
	return v
}

// kind names the type of a value in an error, which must not show the value itself.
func kind(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case string:
		if v == "" {
			return "an empty string"
		}
		return "a string"
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return "a number with a fraction"
		}
		return "a number"
	case []any:
		return "an array"
	case *object:
		return "an object"
	}
	return fmt.Sprintf("%T", v)
}
