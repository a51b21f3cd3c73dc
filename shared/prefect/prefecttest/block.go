package prefecttest

import (
	"embed"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

type blockType struct {
	ID          string    `json:"id"`
	Created     time.Time `json:"created"`
	Updated     time.Time `json:"updated"`
	Name        string    `json:"name"`
	Slug        string    `json:"slug"`
	LogoURL     text      `json:"logo_url"`
	DocsURL     text      `json:"documentation_url"`
	Description text      `json:"description"`
	CodeExample text      `json:"code_example"`
	IsProtected bool      `json:"is_protected"`
}

type blockSchema struct {
	ID           string         `json:"id"`
	Created      time.Time      `json:"created"`
	Updated      time.Time      `json:"updated"`
	Checksum     string         `json:"checksum"`
	Fields       map[string]any `json:"fields"`
	BlockTypeID  string         `json:"block_type_id"`
	BlockType    *blockType     `json:"block_type"`
	Capabilities []string       `json:"capabilities"`
	Version      string         `json:"version"`
}

type blockDocument struct {
	ID            string         `json:"id"`
	Created       time.Time      `json:"created"`
	Updated       time.Time      `json:"updated"`
	Name          string         `json:"name"`
	Data          map[string]any `json:"data"`
	BlockSchemaID string         `json:"block_schema_id"`
	BlockSchema   *blockSchema   `json:"block_schema"`
	BlockTypeID   string         `json:"block_type_id"`
	BlockTypeName string         `json:"block_type_name"`
	BlockType     *blockType     `json:"block_type"`
	References    map[string]any `json:"block_document_references"`
	IsAnonymous   bool           `json:"is_anonymous"`
}

// templates are what servers of both versions answer about the worker types of prefect-gcp.
//
//go:embed testdata/aggregate-worker-metadata-*.json
var templates embed.FS

// installBlockTypes installs the system blocks that templates and automations use.
func (s *Server) installBlockTypes() {
	webhook := []string{"method", "url", "headers", "allow_private_urls", "verify"}
	if s.v2() {
		webhook = webhook[:4]
	}
	s.installBlockType("webhook", "Webhook", webhook, []any{"url", "headers.*"})
	s.installBlockType("secret", "Secret", []string{"value"}, []any{"value"})
	s.installBlockType("json", "JSON", []string{"value"}, []any{})
	s.installBlockType("gcp-credentials", "GCP Credentials", []string{"service_account_file", "service_account_info", "project"}, []any{"service_account_info.*"})
}

func (s *Server) installBlockType(slug, name string, fields []string, secret []any) {
	now := s.now()
	properties := map[string]any{}
	for _, f := range fields {
		properties[f] = map[string]any{"title": f}
	}
	t := &blockType{ID: uuid.NewString(), Created: now, Updated: now, Name: name, Slug: slug, IsProtected: true}
	schema := &blockSchema{
		ID: uuid.NewString(), Created: now, Updated: now, Checksum: "sha256:" + slug, BlockTypeID: t.ID, BlockType: t,
		Fields:       map[string]any{"block_type_slug": slug, "title": name, "type": "object", "properties": properties, "secret_fields": secret},
		Capabilities: []string{}, Version: "3.8.8",
	}
	s.blockTypes[t.Slug], s.schemas[schema.ID] = t, schema
}

func (s *Server) blockRoutes() {
	s.handle("GET /block_types/slug/{slug}", func(c *call) (int, any, error) {
		if t, ok := s.blockTypes[c.PathValue("slug")]; ok {
			return http.StatusOK, t, nil
		}
		return 0, nil, missing("Block type not found")
	})
	s.handle("POST /block_schemas/filter", s.filterSchemas)
	s.handle("POST /block_documents/{$}", s.createDocument)
	s.handle("GET /block_documents/{id}", func(c *call) (int, any, error) {
		if d, ok := s.documents[c.PathValue("id")]; ok {
			return http.StatusOK, d.show(c), nil
		}
		return 0, nil, missing("Block document not found")
	})
	s.handle("PATCH /block_documents/{id}", s.updateDocument)
	s.handle("GET /block_types/slug/{slug}/block_documents/name/{name}", func(c *call) (int, any, error) {
		for _, d := range s.documents {
			if d.BlockType.Slug == c.PathValue("slug") && d.Name == c.PathValue("name") {
				return http.StatusOK, d.show(c), nil
			}
		}
		return 0, nil, missing("Block document not found")
	})
	s.handle("GET /collections/views/{view}", func(c *call) (int, any, error) {
		if c.PathValue("view") != "aggregate-worker-metadata" {
			return 0, nil, missing("View " + c.PathValue("view") + " not found in registry")
		}
		file := "testdata/aggregate-worker-metadata-3.8.8.json"
		if s.v2() {
			file = "testdata/aggregate-worker-metadata-2.20.25.json"
		}
		data, err := templates.ReadFile(file)
		return http.StatusOK, map[string]json.RawMessage{"prefect-gcp": data}, err
	})
}

func (s *Server) filterSchemas(c *call) (int, any, error) {
	fields, err := c.fields()
	if err != nil {
		return 0, nil, err
	}
	part, err := readPage(fields)
	if err != nil {
		return 0, nil, err
	}
	var f struct {
		BlockTypeID *words `json:"block_type_id"`
		ID          *words `json:"id"`
	}
	if raw, ok := fields["block_schemas"]; ok {
		if err := strict(raw, &f); err != nil {
			return 0, nil, err
		}
	}
	found := []*blockSchema{}
	for _, schema := range s.schemas {
		if f.BlockTypeID.match(schema.BlockTypeID) && f.ID.match(schema.ID) {
			found = append(found, schema)
		}
	}
	slices.SortFunc(found, func(a, b *blockSchema) int { return b.Created.Compare(a.Created) })
	return http.StatusOK, cutPage(found, part), nil
}

func (s *Server) createDocument(c *call) (int, any, error) {
	d := &blockDocument{ID: uuid.NewString(), References: map[string]any{}}
	if err := c.only("name", "data", "block_schema_id", "block_type_id", "is_anonymous"); err != nil {
		return 0, nil, err
	}
	if err := c.decode(d); err != nil {
		return 0, nil, err
	}
	schema := s.schemas[d.BlockSchemaID]
	if schema == nil || schema.BlockTypeID != d.BlockTypeID {
		return 0, nil, invalid("block_schema_id", "Input should be a schema of the block type")
	}
	for _, other := range s.documents {
		if other.Name == d.Name && other.BlockTypeID == d.BlockTypeID {
			return 0, nil, refuse(http.StatusConflict, "Block already exists")
		}
	}
	d.Created = s.now()
	d.Updated, d.BlockSchema, d.BlockType, d.BlockTypeName = d.Created, schema, schema.BlockType, schema.BlockType.Name
	if d.Data == nil {
		d.Data = map[string]any{}
	}
	s.documents[d.ID] = d
	return http.StatusCreated, d.show(c), nil
}

func (s *Server) updateDocument(c *call) (int, any, error) {
	b := struct {
		Data          map[string]any `json:"data"`
		BlockSchemaID string         `json:"block_schema_id"`
		Merge         bool           `json:"merge_existing_data"`
	}{Merge: true}
	if err := c.decode(&b); err != nil {
		return 0, nil, err
	}
	d, ok := s.documents[c.PathValue("id")]
	if !ok {
		return 0, nil, missing("Block document not found")
	}
	data := map[string]any{}
	if b.Merge {
		data = maps.Clone(d.Data)
	}
	maps.Copy(data, b.Data)
	d.Data, d.Updated = data, s.now()
	return http.StatusNoContent, nil, nil
}

// show hides the secrets, unless they are asked for.
func (d *blockDocument) show(c *call) *blockDocument {
	if c.URL.Query().Get("include_secrets") == "true" {
		return d
	}
	const hidden = "********"
	shown := *d
	shown.Data = maps.Clone(d.Data)
	secret, _ := d.BlockSchema.Fields["secret_fields"].([]any)
	for _, f := range secret {
		name, all := strings.CutSuffix(f.(string), ".*")
		object, isObject := shown.Data[name].(map[string]any)
		switch {
		case all && isObject:
			object = maps.Clone(object)
			for k := range object {
				object[k] = hidden
			}
			shown.Data[name] = object
		case shown.Data[name] != nil:
			shown.Data[name] = hidden
		}
	}
	return &shown
}
