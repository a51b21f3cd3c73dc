package install

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"

	"github.com/caarlos0/env/v11"
)

// fieldsOf returns the fields of a configuration struct and of those in it by variable.
func fieldsOf(t reflect.Type) map[string]reflect.StructField {
	fields := map[string]reflect.StructField{}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("env"), ","); name != "" {
			fields[name] = f
		}
	}
	return fields
}

// describe returns the variable that an error of env is about, and what is wrong with it
// without its value.
func describe(err error, fields map[string]reflect.StructField) (name, problem string) {
	var (
		unset env.VarIsNotSetError
		empty env.EmptyVarError
		parse env.ParseError
	)
	switch {
	case errors.As(err, &unset):
		return unset.Key, "not set"
	case errors.As(err, &empty):
		return empty.Key, "not set"
	case errors.As(err, &parse):
		for name, f := range fields {
			if f.Name == parse.Name {
				return name, "cannot be read as " + f.Type.String()
			}
		}
	}
	return "", err.Error()
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { // joined errors themselves, not what they wrap
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

func jsonObject(s string) (JSONObject, error) {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var m JSONObject
	if err := d.Decode(&m); err != nil || m == nil || d.More() {
		return nil, errors.New("not a JSON object")
	}
	return m, nil
}

func jsonStrings(s string) (map[string]string, error) {
	if s == "" {
		return nil, nil
	}
	var m map[string]string
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		return nil, errors.New("not a JSON object of strings")
	}
	return m, nil
}
