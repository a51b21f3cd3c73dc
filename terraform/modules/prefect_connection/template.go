// Package prefectconnection holds the base job template that the module gives to its work pools, for whoever makes the same without Terraform.
package prefectconnection

import _ "embed"

// BaseJobTemplate is JSON.
//
//go:embed base-job-template.json
var BaseJobTemplate []byte
