package jobtemplate

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// SecretRef names a version of a Secret Manager secret: SECRET of the job's own project, or
// projects/PROJECT/secrets/SECRET.
type SecretRef struct {
	Secret string
	// Version is a number or "latest".
	Version string
}

// configuration is a populated job_configuration after validation, as the worker's model
// reads it.
type configuration struct {
	name           string
	env            *object // of strings and nil
	labels         *object // of strings
	envFromSecrets []namedSecret
	apiKey         *SecretRef
	authString     *SecretRef
	cloudSQL       []any // of strings
	body           *object
	keepJob        bool
	region         string
	project        string
	accountKey     bool  // the credentials hold the key of a service account
	timeout        int64 // in seconds; 0 is none (v1 only)
}

type namedSecret struct {
	name   string
	secret SecretRef
}

// readConfiguration validates a populated job_configuration as pydantic does in the worker.
func readConfiguration(populated *object, v1 bool, defaultProject string) (configuration, error) {
	r := reader{from: populated}
	maxTimeout := int64(604800)
	if v1 {
		maxTimeout = 3600
	}
	c := configuration{
		name:       r.text("name", "", true),
		env:        r.env(),
		labels:     r.labels(),
		apiKey:     r.secret("prefect_api_key_secret"),
		authString: r.secret("prefect_api_auth_string_secret"),
		region:     r.text("region", "us-central1", false),
		keepJob:    r.flag("keep_job", v1),
		timeout:    r.seconds("timeout", maxTimeout, v1),
		project:    r.project(defaultProject),
		body:       r.body(v1),
	}
	r.text("command", "", true) // the body has a placeholder of its own for it
	c.accountKey = r.accountKey
	if !v1 {
		c.envFromSecrets = r.envFromSecrets()
		c.cloudSQL = r.texts("cloudsql_instances")
	}
	return c, r.err
}

// reader reads the keys of a populated job_configuration and keeps the first error.
type reader struct {
	from       *object
	accountKey bool
	err        error
}

func (r *reader) fail(key string, v any, todo string) {
	if r.err == nil {
		r.err = problem("`"+key+"`", "it is "+kind(v), todo)
	}
}

func (r *reader) text(key, fallback string, nullable bool) string {
	v, ok := r.from.get(key)
	s, isString := v.(string)
	switch {
	case !ok:
		return fallback
	case !isString && (v != nil || !nullable):
		r.fail(key, v, "write a string")
	}
	return s
}

func (r *reader) texts(key string) []any {
	v, _ := r.from.get(key)
	l, ok := v.([]any)
	if v != nil && !ok {
		r.fail(key, v, "write an array of strings")
	}
	for _, e := range l {
		if _, ok := e.(string); !ok {
			r.fail(key, e, "write an array of strings")
		}
	}
	return l
}

func (r *reader) object(key string) *object {
	v, ok := r.from.get(key)
	o, isObject := v.(*object)
	if ok && !isObject {
		r.fail(key, v, "write an object; leave the key out for none")
	}
	return o
}

func (r *reader) env() *object {
	o := r.object("env")
	env := newObject(o.len())
	for k, v := range o.all() {
		if v != nil {
			v = str(v)
		}
		env.set(k, v)
	}
	return env
}

func (r *reader) labels() *object {
	o := r.object("labels")
	for k, v := range o.all() {
		if _, ok := v.(string); !ok {
			r.fail("labels."+k, v, "write a string")
		}
	}
	return o
}

func (r *reader) envFromSecrets() []namedSecret {
	var secrets []namedSecret
	for k, v := range r.object("env_from_secrets").all() {
		secrets = append(secrets, namedSecret{k, r.selector("env_from_secrets."+k, v)})
	}
	return secrets
}

func (r *reader) secret(key string) *SecretRef {
	v, _ := r.from.get(key)
	if v == nil {
		return nil
	}
	s := r.selector(key, v)
	return &s
}

func (r *reader) selector(key string, v any) SecretRef {
	o, _ := v.(*object)
	secret, _ := o.get("secret")
	version, _ := o.get("version")
	s, ok := secret.(string)
	n, also := version.(string)
	if !ok || !also {
		r.fail(key, v, `write {"secret": "NAME", "version": "latest"}, both as strings`)
	}
	return SecretRef{s, n}
}

func (r *reader) flag(key string, nullable bool) bool {
	v, ok := r.from.get(key)
	switch t := v.(type) {
	case nil:
		if !ok || nullable {
			return false
		}
	case bool:
		return t
	case string:
		switch strings.ToLower(t) {
		case "1", "on", "t", "true", "y", "yes":
			return true
		case "0", "off", "f", "false", "n", "no":
			return false
		}
	case json.Number:
		switch number(t) {
		case "1", "1.0":
			return true
		case "0", "0.0", "-0.0":
			return false
		}
	}
	r.fail(key, v, "write true or false")
	return false
}

// wholeNumber matches the strings that pydantic reads as a positive whole number.
var wholeNumber = regexp.MustCompile(`^\+?[0-9]+(_[0-9]+)*(\.0+)?$`)

func (r *reader) seconds(key string, most int64, nullable bool) int64 {
	v, ok := r.from.get(key)
	if !ok {
		return 600
	}
	n := wholeSeconds(v)
	switch v {
	case nil:
		if nullable {
			return 0
		}
	case true:
		n = 1
	}
	if n <= 0 || n > most {
		r.fail(key, v, fmt.Sprintf("write whole seconds, from 1 to %d", most))
	}
	return n
}

// wholeSeconds reads a number or the text of one as pydantic does; -1 is none.
func wholeSeconds(v any) int64 {
	switch t := v.(type) {
	case string:
		s := strings.TrimSpace(t)
		if !wholeNumber.MatchString(s) {
			return -1
		}
		s, _, _ = strings.Cut(strings.ReplaceAll(strings.TrimPrefix(s, "+"), "_", ""), ".")
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n
		}
	case json.Number:
		if f, err := t.Float64(); err == nil && f == math.Trunc(f) && f < math.MaxInt32 {
			return int64(f)
		}
	}
	return -1
}

// project returns the project of the credentials, and notes whether they hold a key. The
// key is of no use here: jobs are created with the launcher's own identity.
func (r *reader) project(fallback string) string {
	v, ok := r.from.get("credentials")
	if !ok {
		return fallback
	}
	const todo = "write a reference to a gcp-credentials block, or leave the key out"
	o, isObject := v.(*object)
	if !isObject {
		r.fail("credentials", v, todo)
		return ""
	}
	if file, _ := o.get("service_account_file"); file != nil {
		r.fail("credentials.service_account_file", file, "a key file of a worker cannot be read here; leave it out")
	}
	info, _ := o.get("service_account_info")
	if s, isString := info.(string); isString {
		var err error
		if info, err = decode([]byte(s), 0); err != nil || strings.TrimSpace(s) == "" {
			r.fail("credentials.service_account_info", s, "write the key file's JSON")
			return ""
		}
	}
	account, isObject := info.(*object)
	if info != nil && !isObject {
		r.fail("credentials.service_account_info", info, "write the key file's JSON")
	}
	r.accountKey = account.len() > 0
	project, _ := o.get("project")
	if project == nil && account != nil {
		project, _ = account.get("project_id")
	} else if project == nil {
		return fallback
	}
	s, isString := project.(string)
	if project != nil && !isString {
		r.fail("credentials.project", project, "write a project's id")
	}
	return s
}

// body checks that the job body has what the worker insists on.
func (r *reader) body(v1 bool) *object {
	v, _ := r.from.get("job_body")
	body, ok := v.(*object)
	if !ok {
		r.fail("job_body", v, defaultTemplate)
		return nil
	}
	paths := [][]string{{"template", "template", "containers"}}
	if v1 {
		for _, fixed := range fixedV1 {
			if have, _ := dig(body, fixed.path...); have != fixed.value {
				r.fail("job_body."+strings.Join(fixed.path, "."), have, fmt.Sprintf("write %q", fixed.value))
			}
		}
		paths[0] = []string{"spec", "template", "spec", "template", "spec", "containers"}
	}
	containers, _ := dig(body, paths[0]...)
	list, _ := containers.([]any)
	where := "job_body." + strings.Join(paths[0], ".")
	if len(list) == 0 {
		r.fail(where, containers, "write an array with one container at least")
		return nil
	}
	first, ok := list[0].(*object)
	if !ok {
		r.fail(where+"[0]", list[0], "write a container")
		return nil
	}
	if env, _ := first.get("env"); !v1 {
		if _, ok := env.([]any); !ok {
			r.fail(where+"[0].env", env, `add "env": [] to the container; the environment is appended to it`)
		}
	}
	return body
}

// dig follows keys of objects.
func dig(o *object, keys ...string) (any, bool) {
	for _, k := range keys[:len(keys)-1] {
		v, _ := o.get(k)
		o, _ = v.(*object)
	}
	return o.get(keys[len(keys)-1])
}
