package prefecttest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// checkJobVariables refuses job variables whose type is not the one in the work pool's schema.
func (s *Server) checkJobVariables(pool string, variables map[string]any) error {
	p := s.pools[pool]
	if p == nil {
		return nil
	}
	schema, _ := p.BaseJobTemplate["variables"].(map[string]any)
	schema = maps.Clone(schema)
	delete(schema, "required")
	given := maps.Clone(variables)
	maps.DeleteFunc(given, func(_ string, v any) bool { return v == nil })
	if err := validate(schema, given); err != nil {
		return refuse(http.StatusUnprocessableEntity, "Error creating flow run: Validation failed. "+err.Error())
	}
	return nil
}

// validate checks a value against a JSON schema; one that cannot be compiled allows everything.
func validate(schema map[string]any, value map[string]any) error {
	if len(schema) == 0 {
		return nil
	}
	c := jsonschema.NewCompiler()
	plain, err := json.Marshal(schema)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(plain)))
	if err != nil || c.AddResource("schema.json", doc) != nil {
		return err
	}
	compiled, err := c.Compile("schema.json")
	if err != nil {
		return nil //nolint:nilerr // as the comment says
	}
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if value == nil {
		data = []byte("{}")
	}
	instance, err := jsonschema.UnmarshalJSON(strings.NewReader(string(data)))
	if err != nil {
		return err
	}
	return compiled.Validate(instance)
}

// slug is a name as Prefect makes them up.
func slug() string {
	first := []string{"amber", "brisk", "calm", "dapper", "eager", "fuzzy", "golden", "humble", "jolly", "lucid"}
	second := []string{"badger", "cricket", "dolphin", "egret", "ferret", "gecko", "heron", "ibex", "jackal", "lemur"}
	return fmt.Sprintf("%s-%s", first[rand.N(len(first))], second[rand.N(len(second))])
}
