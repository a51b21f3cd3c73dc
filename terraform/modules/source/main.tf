# Which files of the repository make up the functions. Without a provider, so that a test
# can ask for the list and hold it against what Go says the functions import.

locals {
  root = abspath("${path.module}/../../..")

  # Tests and fakes stay out; the functions' folders hold nothing else.
  candidates = fileset(local.root, "{functions,shared}/**")
  packed = [
    for f in local.candidates : f
    if can(regex("\\.(go|json)$", f)) && !can(regex("_test\\.go$|(^|/)testdata/|(^|/)[a-z]+test/", f))
  ]
}

output "root" {
  description = "The repository's root."
  value       = local.root
}

output "files" {
  description = "The files of the source archive, relative to root, sorted."
  value       = sort(concat(["function.go", "go.mod", "go.sum"], local.packed))
}
