package launch

import (
	"bytes"
	"encoding/json"
	"sync"

	"github.com/pushpool/pushpool/shared/jobtemplate"
	"github.com/pushpool/pushpool/shared/prefect"
)

// documents keeps the base job template of each work pool as it was read last: most of a
// render's time would go into reading it again.
type documents struct {
	mu     sync.Mutex
	byPool map[string]document
}

type document struct {
	raw  json.RawMessage
	read jobtemplate.Document
}

// of returns the pool's template, read; or as it came where it cannot be read, which Render words.
func (d *documents) of(pool prefect.WorkPool) any {
	d.mu.Lock()
	defer d.mu.Unlock()
	if kept, ok := d.byPool[pool.Name]; ok && bytes.Equal(kept.raw, pool.BaseJobTemplate) {
		return kept.read
	}
	read, err := jobtemplate.Read(pool.BaseJobTemplate)
	if err != nil {
		return pool.BaseJobTemplate
	}
	if d.byPool == nil {
		d.byPool = map[string]document{}
	}
	d.byPool[pool.Name] = document{pool.BaseJobTemplate, read}
	return read
}
