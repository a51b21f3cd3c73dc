package jobtemplate

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pushpool/pushpool/shared/flowrun"
)

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
