variable "installation" {
  description = "What all functions of an installation share."
  type = object({
    project    = string
    region     = string
    name       = string
    labels     = map(string)
    runtime    = string # of the Go buildpack
    bucket     = string # with the source archive
    object     = string # the source archive
    repository = string # for the image; its id
    builder    = string # the identity that builds; its id
    vpc = optional(object({
      network    = string
      subnetwork = string
      tags       = list(string)
    }))
    kms_key  = optional(string)
    settings = optional(map(string), {}) # more environment variables, of all functions
  })
}

variable "function" {
  description = "The function's name, which is its entry point, too."
  type        = string
}

variable "description" {
  description = "What the function does, in one sentence."
  type        = string
}

variable "size" {
  description = "What the function gets. More than one request at a time needs a whole CPU."
  type = object({
    cpu             = string
    memory          = string
    concurrency     = number
    max_instances   = number
    timeout_seconds = number
  })

  validation {
    condition     = var.size.concurrency == 1 || tonumber(var.size.cpu) >= 1
    error_message = "size: write cpu = \"1\" or more, or concurrency = 1."
  }
}

variable "environment" {
  description = "Environment variables."
  type        = map(string)
}

variable "secrets" {
  description = "Environment variables with a secret's value: the name of a secret of the project, and which of its versions; latest is the newest when an instance starts."
  type = map(object({
    secret  = string
    version = string
  }))
  default = {}
}

variable "ingress" {
  description = "ALLOW_ALL or ALLOW_INTERNAL_ONLY. Pub/Sub, Cloud Scheduler and Cloud Tasks of the project are internal."
  type        = string
  default     = "ALLOW_INTERNAL_ONLY"

  validation {
    condition     = contains(["ALLOW_ALL", "ALLOW_INTERNAL_ONLY"], var.ingress)
    error_message = "ingress: write ALLOW_ALL or ALLOW_INTERNAL_ONLY."
  }
}
