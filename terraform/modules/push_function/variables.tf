variable "installation" {
  description = "What all functions of an installation share; see the module function."
  type = object({
    project    = string
    region     = string
    name       = string
    labels     = map(string)
    runtime    = string
    bucket     = string
    object     = string
    repository = string
    builder    = string
    vpc = optional(object({
      network    = string
      subnetwork = string
      tags       = list(string)
    }))
    kms_key  = optional(string)
    settings = optional(map(string), {})
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
  description = "What the function gets."
  type = object({
    cpu             = string
    memory          = string
    concurrency     = number
    max_instances   = number
    timeout_seconds = number
  })

  validation {
    condition     = var.size.timeout_seconds <= 600
    error_message = "size: write timeout_seconds of 600 or less: Pub/Sub waits no longer for an acknowledgement."
  }
}

variable "environment" {
  description = "Environment variables, without those that the module knows: DEAD_LETTER_TOPIC and MAX_DELIVERY_ATTEMPTS."
  type        = map(string)
}

variable "secrets" {
  description = "Environment variables with a secret's value; see the module function."
  type = map(object({
    secret  = string
    version = string
  }))
  default = {}
}

variable "topic" {
  description = "Name and id of the topic whose messages are pushed."
  type = object({
    name = string
    id   = string
  })
}

variable "filter" {
  description = "Which messages are pushed, by their attributes. It cannot be changed afterwards."
  type        = string
  default     = null
}

variable "max_delivery_attempts" {
  description = "How often a message is delivered before it goes to the dead-letter topic."
  type        = number
  default     = 100

  validation {
    condition     = var.max_delivery_attempts >= 5 && var.max_delivery_attempts <= 100
    error_message = "max_delivery_attempts: write 5 to 100."
  }
}

variable "pubsub_agent" {
  description = "Pub/Sub's service agent in the project, as IAM spells it."
  type        = string
}

variable "topic_kms_key" {
  description = "The key that encrypts the dead-letter topic, with Pub/Sub's grant on it made before."
  type        = string
  default     = null
}

variable "notification_channels" {
  description = "Where alerts go."
  type        = list(string)
  default     = []
}
