// Package jobtemplate turns a work pool's base job template and the job variables of a
// deployment and a flow run into a Cloud Run job, as Prefect's Cloud Run workers do.
//
// Render reproduces Prefect 3.8.8 with prefect-gcp 0.6.22: the job has the body that their
// cloud-run-v2 worker would send, and fails where that worker would fail. testdata/vectors
// holds what their code makes of given inputs, testdata/rules.json what single rules of
// theirs and of Python's do; scripts/template-vectors makes both again, compares them with
// another release, and Render with Prefect on random vectors. The body of a cloud-run (v1) work pool is resolved in its own form and
// then translated.
//
// Deliberately different are the job's name (JobID), and that a document nested deeper than
// 400 levels or resolving to more than 16 MiB is refused.
//
// Everything here is pure except for Lookup. An error about the template, a job variable or
// a block is a *flowrun.Error with Fault Permanent, worded for the flow's author, and names
// keys, never values: a value can be a secret.
package jobtemplate
