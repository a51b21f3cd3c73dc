package jobtemplate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const defaultTemplate = "take the default template of the work pool's type"

// jobVariables merges the flow run's job variables over the deployment's. Only `env` is
// merged; everything else is replaced. left is what remains of the flow run's own.
func jobVariables(deployment, flowRun any) (merged, left *object, err error) {
	d, err := asObject("the deployment's job variables", deployment)
	if err != nil {
		return nil, nil, err
	}
	left, err = asObject("the flow run's job variables", flowRun)
	if err != nil {
		return nil, nil, err
	}
	env, _ := d.get("env")
	if dEnv, ok := env.(*object); ok {
		if over, ok := left.get("env"); ok {
			left.delete("env")
			oEnv, isObject := over.(*object)
			if list, isList := over.([]any); !isObject && over != "" && (!isList || len(list) > 0) {
				return nil, nil, problem("the flow run's job variable `env`", "it is "+kind(over), "write an object of names and values")
			}
			d.set("env", dEnv.union(oEnv))
		}
	}
	return d.union(left), left, nil
}

// expand turns dot-delimited keys (`env.FOO`) into nested objects. Keys without a dot win.
func expand(values *object) (*object, error) {
	expanded := newObject(values.len())
	for k, v := range values.all() {
		if !strings.Contains(k, ".") {
			continue
		}
		if err := setPath(expanded, k, v); err != nil {
			return nil, err
		}
	}
	for k, v := range values.all() {
		if strings.Contains(k, ".") {
			continue
		}
		dotted, _ := expanded.get(k)
		dottedObject, ok := dotted.(*object)
		if o, isObject := v.(*object); ok && isObject {
			v = deepMerge(dottedObject, o)
		}
		expanded.set(k, v)
	}
	return expanded, nil
}

func setPath(o *object, path string, value any) error {
	keys := strings.Split(strings.ReplaceAll(strings.ReplaceAll(path, "[", "."), "]", ""), ".")
	where := fmt.Sprintf("job variable %q", path)
	if len(keys) > maxDepth {
		return problem(where, errTooDeep.Error(), "use fewer dots")
	}
	for _, k := range keys[:len(keys)-1] {
		v, there := o.get(k)
		below, ok := v.(*object)
		switch {
		case there && !ok:
			return problem(where, fmt.Sprintf("its part %q is %s in another job variable", k, kind(v)), "remove one of the two")
		case !there:
			below = newObject(1)
			o.set(k, below)
		}
		o = below
	}
	o.set(keys[len(keys)-1], value)
	return nil
}

// deepMerge returns a new object with both objects' pairs; over wins where not both are objects.
func deepMerge(o, over *object) *object {
	merged := o.union(nil)
	for k, v := range over.all() {
		a, _ := merged.get(k)
		below, ok := a.(*object)
		if b, isObject := v.(*object); ok && isObject {
			v = deepMerge(below, b)
		}
		merged.set(k, v)
	}
	return merged
}

// populate resolves the template's job_configuration with the job variables, and returns
// these with the template's defaults where they say nothing.
func (r *resolver) populate(template any, values *object) (populated, all *object, err error) {
	configuration, variables, err := parts(template)
	if err != nil {
		return nil, nil, err
	}
	tree, err := convert(configuration, 0)
	if err != nil {
		return nil, nil, problem("job_configuration of the base job template", "it "+err.Error(), "make it simpler")
	}
	config, ok := tree.(*object)
	if !ok {
		return nil, nil, problem("job_configuration of the base job template", "it is "+kind(tree), defaultTemplate)
	}
	defaults, err := defaultValues(variables)
	if err != nil {
		return nil, nil, err
	}
	if env, _ := defaults.get("env"); truthy(env) {
		if err := withEnv(config, env, true); err != nil {
			return nil, nil, err
		}
	}
	if values, err = expand(values); err != nil {
		return nil, nil, err
	}
	values = defaults.union(values)
	if env, _ := values.get("env"); truthy(env) {
		if err := withEnv(config, env, false); err != nil {
			return nil, nil, err
		}
	}
	applied, err := r.apply(config, values)
	if err != nil {
		return nil, nil, err
	}
	finished, err := r.finish(applied, true)
	if err != nil {
		return nil, nil, err
	}
	populated, ok = finished.(*object) // a job_configuration can be one reference to a block
	if !ok {
		return nil, nil, problem("job_configuration of the base job template", "it resolves to "+kind(finished), defaultTemplate)
	}
	return populated, values, nil
}

// options returns the job variables that are the launcher's.
func (r *resolver) options(values *object) (map[string]any, error) {
	var options map[string]any
	for name, value := range values.all() {
		if !strings.HasPrefix(name, OptionPrefix) || value == nil {
			continue
		}
		finished, err := r.finish(value, true)
		if err != nil {
			return nil, err
		}
		if options == nil {
			options = map[string]any{}
		}
		options[name] = plain(finished)
	}
	return options, nil
}

// withEnv merges env over the configuration's, if that has an object. Where it has none,
// env takes its place only if replace is set.
func withEnv(config *object, env any, replace bool) error {
	have, _ := config.get("env")
	if o, ok := have.(*object); ok {
		over, ok := env.(*object)
		if !ok {
			return problem("`env`", "it is "+kind(env), "write an object of names and values")
		}
		env = o.union(over)
	} else if !replace {
		return nil
	}
	config.set("env", env)
	return nil
}

// parts returns the two halves of a base job template. They are not converted: most of the
// second is text that only people read.
func parts(template any) (configuration, variables any, err error) {
	if template, err = readable(template); err != nil {
		return nil, nil, problem("base job template", "it "+err.Error(), "make it simpler")
	}
	configuration, ok := member(template, "job_configuration")
	variables, also := member(template, "variables")
	if !ok || !also {
		return nil, nil, problem("base job template", "it lacks `job_configuration` or `variables`", defaultTemplate)
	}
	return clone(configuration), variables, nil
}

// defaultValues returns the defaults of the template's variables that are not null.
func defaultValues(variables any) (*object, error) {
	const where = "variables of the base job template"
	variables, err := readable(variables)
	if err != nil {
		return nil, problem(where, "they "+err.Error(), "make them simpler")
	}
	if !isMap(variables) {
		return nil, problem(where, "they are no object", "write a JSON schema")
	}
	defaults := newObject(16)
	properties, ok := member(variables, "properties")
	if !ok {
		return defaults, nil
	}
	if properties, err = readable(properties); err != nil || !isMap(properties) {
		return nil, problem(where, "their `properties` are no object", "write a JSON schema")
	}
	for _, name := range names(properties) {
		schema, _ := member(properties, name)
		if schema, err = readable(schema); err != nil || !isMap(schema) {
			return nil, problem(where, fmt.Sprintf("%q is no object", name), "write a JSON schema")
		}
		d, ok := member(schema, "default")
		if !ok {
			continue
		}
		if d, err = convert(d, 0); err != nil {
			return nil, problem(where, fmt.Sprintf("the default of %q %v", name, err), "make it simpler")
		}
		if d != nil {
			defaults.set(name, clone(d))
		}
	}
	return defaults, nil
}

// readable decodes what is not decoded yet, and leaves a map as it is.
func readable(v any) (any, error) {
	switch v := v.(type) {
	case map[string]any:
		return v, nil
	case Document:
		return v.value, nil
	}
	return convert(v, 0)
}

func isMap(v any) bool {
	switch v.(type) {
	case map[string]any, *object:
		return true
	}
	return false
}

func member(v any, key string) (any, bool) {
	switch v := v.(type) {
	case map[string]any:
		e, ok := v[key]
		return e, ok
	case *object:
		return v.get(key)
	}
	return nil, false
}

func names(v any) []string {
	switch v := v.(type) {
	case map[string]any:
		return slices.Sorted(maps.Keys(v))
	case *object:
		keys := make([]string, 0, v.len())
		for k := range v.all() {
			keys = append(keys, k)
		}
		return keys
	}
	return nil
}

// asObject converts what is an object or null.
func asObject(where string, v any) (*object, error) {
	c, err := convert(v, 0)
	if err != nil {
		return nil, problem(where, "the value "+err.Error(), "make it simpler")
	}
	switch c := c.(type) {
	case nil:
		return newObject(0), nil
	case *object:
		return c, nil
	}
	return nil, problem(where, "the value is "+kind(c), "write an object of names and values")
}
