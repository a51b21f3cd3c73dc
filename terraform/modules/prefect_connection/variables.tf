variable "name" {
  description = "The installation's name; webhook block and automation are named so."
  type        = string
  default     = "pushpool"
}

variable "work_pools" {
  description = "The work pools to make, by name. job_variables are defaults of their base job templates as JSON, options of pushpool among them: jsonencode({ memory = \"2Gi\", pushpool_fast_start = true })."
  type = map(object({
    description       = optional(string)
    concurrency_limit = optional(number)
    paused            = optional(bool, false)
    job_variables     = optional(string, "{}")
  }))

  validation {
    condition     = alltrue([for name, p in var.work_pools : name == trimspace(name) && !can(regex("[,*!]|^[Pp]refect", name))])
    error_message = "work_pools: write names without comma, asterisk, exclamation mark or space around them, and not beginning with prefect."
  }

  validation {
    condition     = alltrue([for p in var.work_pools : can(keys(jsondecode(p.job_variables)))])
    error_message = "work_pools: write job_variables as jsonencode({ … })."
  }
}

variable "existing_work_pools" {
  description = "Names of work pools that exist already, such as a worker's: Prefect tells of their flow runs as well, and they stay as they are."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for name in var.existing_work_pools : name == trimspace(name) && name != "" && !can(regex("[,*!]", name)) && !contains(keys(var.work_pools), name)])
    error_message = "existing_work_pools: write names that are not among work_pools, without comma, asterisk, exclamation mark or space around them."
  }

  validation {
    condition     = length(var.existing_work_pools) + length(var.work_pools) > 0
    error_message = "existing_work_pools: write one, or make one with work_pools."
  }
}

variable "region" {
  description = "The region that jobs run in unless a deployment says otherwise: the module's output region."
  type        = string
}

variable "flow_service_account" {
  description = "The e-mail of the identity that flows run as: the module's output flow_service_account."
  type        = string
}

variable "vpc" {
  description = "Network and subnetwork by which flows reach a private Prefect server (Direct VPC egress); where jobs may run in several regions, each needs a subnetwork of that name. null: the internet, or a pool's vpc_connector_name."
  type = object({
    network    = string
    subnetwork = string
    tags       = optional(list(string), [])
  })
  default = null
}

variable "webhook" {
  description = "Whether Prefect is to call the webhook; false where the module's webhook is none."
  type        = bool
  default     = true
}

variable "webhook_url" {
  description = "The webhook's address: the module's output webhook_url."
  type        = string
  default     = null
}

variable "webhook_secret" {
  description = "The bearer secret that the webhook knows, one of webhook_secrets_value. It gets into neither plan nor state."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}

variable "webhook_secret_version" {
  description = "A number to raise with each new webhook_secret."
  type        = number
  default     = 1
}
