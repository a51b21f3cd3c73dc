package functions

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// problems gathers what is wrong with the functions' configuration. What several functions
// complain of is said once.
type problems struct {
	lines     []string
	functions map[string][]string // by line
}

func (p *problems) add(function string, err error) {
	if err == nil {
		return
	}
	if p.functions == nil {
		p.functions = map[string][]string{}
	}
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSuffix(line, "\n")
		if !slices.Contains(p.lines, line) {
			p.lines = append(p.lines, line)
		}
		p.functions[line] = append(p.functions[line], function)
	}
}

func (p *problems) err() error {
	if len(p.lines) == 0 {
		return nil
	}
	errs := make([]error, len(p.lines))
	for i, line := range p.lines {
		errs[i] = fmt.Errorf("%s (%s)", line, strings.Join(p.functions[line], ", "))
	}
	return errors.Join(errs...)
}
