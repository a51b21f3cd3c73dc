variable "project" {
  description = "The id of the Google Cloud project to install into."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project: write the project's id, such as my-project-123, not its number or display name."
  }
}

variable "region" {
  description = "The region of functions, queue and scheduler, and of jobs unless job_regions says otherwise. It never changes."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region: write a region such as europe-west1, not a zone and not a multi-region."
  }
}

variable "name" {
  description = "The installation's name. Launch ids are made of it: it never changes. Several installations in one project need one each."
  type        = string
  default     = "pushpool"

  validation {
    # Account ids have at most 30 characters, and the longest suffix is -dispatcher-push.
    condition     = can(regex("^[a-z][a-z0-9-]{2,12}[a-z0-9]$", var.name))
    error_message = "name: write 4 to 14 lower-case letters, digits and dashes, a letter first and no dash at the end."
  }
}

variable "work_pools" {
  description = "The names of the Prefect work pools to serve, of type cloud-run-v2 or cloud-run."
  type        = list(string)
  default     = ["cloud-run"]

  validation {
    condition = length(var.work_pools) > 0 && alltrue([
      for p in var.work_pools : p == trimspace(p) && p != "" && !can(regex("[,*!]", p))
    ])
    error_message = "work_pools: write one name or more, without comma, asterisk, exclamation mark or space around them."
  }
}

variable "job_regions" {
  description = "The regions that jobs may run in, in order of preference; the next is tried when one is full. null means region alone."
  type        = list(string)
  default     = null

  validation {
    condition     = var.job_regions == null ? true : length(var.job_regions) > 0 && alltrue([for r in var.job_regions : can(regex("^[a-z]+-[a-z]+[0-9]+$", r))])
    error_message = "job_regions: write one region or more, such as [\"europe-west1\", \"europe-west4\"], or leave it out."
  }
}

variable "prefect_api_url" {
  description = "The URL of Prefect's API as the functions reach it, ending in /api, or Prefect Cloud's with account and workspace."
  type        = string

  validation {
    condition     = can(regex("^https?://[^/?#@]+(/[^?#]*)?$", var.prefect_api_url))
    error_message = "prefect_api_url: write http:// or https://, host and path, such as https://prefect.example.com/api; no user, no password, no query."
  }
}

variable "flow_prefect_api_url" {
  description = "The URL of Prefect's API as flows reach it, if it is not prefect_api_url."
  type        = string
  default     = null
}

variable "prefect_requests_per_minute" {
  description = "How many calls all functions together may make to Prefect's API in a minute. null: 500 where prefect_api_url is Prefect Cloud's, which allows an account 625 (Hobby) to 5000 (Pro), other clients included; else 2500."
  type        = number
  default     = null

  validation {
    condition     = var.prefect_requests_per_minute == null ? true : var.prefect_requests_per_minute >= 60 && floor(var.prefect_requests_per_minute) == var.prefect_requests_per_minute
    error_message = "prefect_requests_per_minute: write a whole number of 60 or more."
  }
}

variable "prefect_api_key" {
  description = "Prefect Cloud's API key, and where it comes from: secret names an existing secret of the project; or version, a number to raise with each new value, has the module make a secret of prefect_api_key_value. null: the server needs none."
  type = object({
    secret  = optional(string)
    version = optional(number)
  })
  default = null

  validation {
    condition     = var.prefect_api_key == null ? true : (var.prefect_api_key.secret == null) != (var.prefect_api_key.version == null)
    error_message = "prefect_api_key: write either secret = \"NAME\" or version = 1."
  }
}

variable "prefect_api_key_value" {
  description = "The API key itself, if the module is to make its secret. It gets into neither plan nor state, so it is passed each time."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = try(var.prefect_api_key.version, null) == null || var.prefect_api_key_value != null
    error_message = "prefect_api_key_value: set it (TF_VAR_prefect_api_key_value), or name an existing secret: prefect_api_key = { secret = \"NAME\" }."
  }
}

variable "prefect_auth_string" {
  description = "USER:PASSWORD of a Prefect server with basic authentication; secret or version as for prefect_api_key."
  type = object({
    secret  = optional(string)
    version = optional(number)
  })
  default = null

  validation {
    condition     = var.prefect_auth_string == null ? true : (var.prefect_auth_string.secret == null) != (var.prefect_auth_string.version == null)
    error_message = "prefect_auth_string: write either secret = \"NAME\" or version = 1."
  }
}

variable "prefect_auth_string_value" {
  description = "The auth string itself, if the module is to make its secret."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = try(var.prefect_auth_string.version, null) == null || can(regex("^[^:]+:.+$", var.prefect_auth_string_value))
    error_message = "prefect_auth_string_value: set USER:PASSWORD (TF_VAR_prefect_auth_string_value), or name an existing secret: prefect_auth_string = { secret = \"NAME\" }."
  }
}

variable "webhook" {
  description = "Who reaches the webhook: public (Prefect Cloud, or a server elsewhere), internal (a server in this project's network), none (no webhook; the sweep finds what is due within a minute)."
  type        = string
  default     = "public"

  validation {
    condition     = contains(["public", "internal", "none"], var.webhook)
    error_message = "webhook: write public, internal or none."
  }
}

variable "webhook_secrets" {
  description = "The webhook's bearer secrets; secret or version as for prefect_api_key. Several, separated by commas, while one is replaced."
  type = object({
    secret  = optional(string)
    version = optional(number)
  })
  default = { version = 1 }

  validation {
    condition     = (var.webhook_secrets.secret == null) != (var.webhook_secrets.version == null)
    error_message = "webhook_secrets: write either secret = \"NAME\" or version = 1."
  }
}

variable "webhook_secrets_value" {
  description = "The bearer secrets themselves, if the module is to make their secret: 22 characters or more, such as from openssl rand -base64 24."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = var.webhook == "none" || var.webhook_secrets.version == null || var.webhook_secrets_value != null
    error_message = "webhook_secrets_value: set it (export TF_VAR_webhook_secrets_value=$(openssl rand -base64 24)), or name an existing secret: webhook_secrets = { secret = \"NAME\" }, or write webhook = \"none\"."
  }

  validation {
    condition     = var.webhook_secrets_value == null ? true : alltrue([for s in split(",", var.webhook_secrets_value) : length(s) >= 22 && s == trimspace(s)])
    error_message = "webhook_secrets_value: write secrets of 22 characters or more, separated by commas without spaces."
  }
}

variable "flow_service_accounts" {
  description = "More service accounts that flows may run as: e-mails by a name of your choice. The module's own is always there."
  type        = map(string)
  default     = {}
}

variable "flow_repositories" {
  description = "Artifact Registry repositories with flows' images, by a name of your choice: Cloud Run checks that who creates a job can read its image."
  type = map(object({
    location   = string
    repository = string
    project    = optional(string)
  }))
  default = {}
}

variable "create_flow_repository" {
  description = "Whether to make an Artifact Registry repository for flows' images."
  type        = bool
  default     = false
}

variable "default_flow_image" {
  description = "The image of flow runs whose deployment names none."
  type        = string
  default     = "docker.io/prefecthq/prefect:3-latest"
}

variable "fast_start" {
  description = "Whether flows start with Prefect's engine alone, seconds earlier; on_cancellation hooks do not run then. The job variable pushpool_fast_start goes before it."
  type        = bool
  default     = false
}

variable "retries" {
  description = "How often a flow run is launched again by what ended it: some of platform, start, out_of_memory, exit_code, signal, timed_out. null: platform 3, start 2, out_of_memory 1. The job variable pushpool_retries goes before it."
  type        = map(number)
  default     = null

  validation {
    condition = var.retries == null ? true : alltrue([
      for kind, n in var.retries : contains(["platform", "start", "out_of_memory", "exit_code", "signal", "timed_out"], kind) && n >= 0 && n <= 10 && floor(n) == n
    ])
    error_message = "retries: write numbers of 0 to 10 for platform, start, out_of_memory, exit_code, signal or timed_out, such as { platform = 3 }."
  }
}

variable "launch_mode" {
  description = "How executions are started: job creates a job for each; slots updates a fixed set of jobs, one write instead of two, and has not been seen on a live project yet. The job variable pushpool_launch_mode goes before it."
  type        = string
  default     = "job"

  validation {
    condition     = contains(["job", "slots"], var.launch_mode)
    error_message = "launch_mode: write job or slots."
  }
}

variable "policy" {
  description = "What flow runs may ask for; without it, whoever may create a flow run may choose its image and which of the service accounts it runs as. images and service_accounts are patterns: * is any text without a slash, ** any text. The rest is of one task: max_cpu such as 4, max_memory such as 8Gi, max_timeout such as 1h."
  type = object({
    images           = optional(list(string), [])
    service_accounts = optional(list(string), [])
    max_cpu          = optional(string, "")
    max_memory       = optional(string, "")
    max_timeout      = optional(string, "")
  })
  default = {}

  validation {
    condition = (
      alltrue([for p in concat(var.policy.images, var.policy.service_accounts) : can(regex("^[^,\\s]+$", p))])
      && can(regex("^([0-9]+(\\.[0-9]+)?m?)?$", var.policy.max_cpu))
      && can(regex("^([0-9]+(Mi|Gi|M|G))?$", var.policy.max_memory))
      && can(regex("^([0-9]+(h|m|s))*$", var.policy.max_timeout))
    )
    error_message = "policy: write patterns without comma or space, max_cpu such as 4, max_memory such as 8Gi, max_timeout such as 1h30m."
  }
}

variable "cloud_run_quota" {
  description = "The project's quota in each of job_regions: write and job run requests a minute, the smaller of both, read requests, and jobs. Launches keep to it, all instances together; more wait as AwaitingCapacity."
  type = object({
    writes_per_minute = optional(number, 180)
    reads_per_minute  = optional(number, 3000)
    jobs              = optional(number, 1000)
  })
  default = {}

  validation {
    condition     = var.cloud_run_quota.writes_per_minute >= 60 && var.cloud_run_quota.reads_per_minute >= 60 && var.cloud_run_quota.jobs >= 1
    error_message = "cloud_run_quota: write writes_per_minute and reads_per_minute of 60 or more, and jobs of 1 or more, as the console's page of quotas says."
  }
}

variable "log_location" {
  description = "Where the project's log bucket _Default is: global, unless the organization's default is a region. From there the last lines of a container that ended badly are copied to its flow run's log; null: they are not."
  type        = string
  default     = "global"

  validation {
    condition     = var.log_location == null ? true : can(regex("^([a-z]+-[a-z]+[0-9]+|global|eu|us)$", var.log_location))
    error_message = "log_location: write global, a region such as europe-west1, or null."
  }
}

variable "settings" {
  description = "Further settings of the functions, by environment variable: shared/install/config.go and functions/*/config.go describe them. A function that does not know one leaves it alone."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name, value in var.settings : can(regex("^[A-Z][A-Z0-9_]*$", name)) && !can(regex("KEY$|AUTH_STRING$|^WEBHOOK_SECRETS$|^CONTAINER_", name))])
    error_message = "settings: write names of environment variables such as START_DEADLINE. Secrets have variables of their own."
  }
}

variable "vpc" {
  description = "Network and subnetwork by which the functions reach a private Prefect server (Direct VPC egress). null: the internet."
  type = object({
    network    = string
    subnetwork = string
    tags       = optional(list(string), [])
  })
  default = null
}

variable "kms_key" {
  description = "The id of a Cloud KMS key in region that encrypts what the module stores (projects/P/locations/R/keyRings/K/cryptoKeys/C). It has to be there before the plan. The README has the commands to run first."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key == null ? true : can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key: write projects/P/locations/R/keyRings/K/cryptoKeys/C."
  }
}

variable "notification_channels" {
  description = "Cloud Monitoring notification channels that alerts go to (projects/P/notificationChannels/N). Without any, alerts show in the console only."
  type        = list(string)
  default     = []
}

variable "alert_thresholds" {
  description = "When alerts begin: the share of one outcome other than success and cancellation among an hour's flow runs, repairs in 30 minutes, ERROR lines in 10 minutes."
  type = object({
    crash_rate            = optional(number, 0.1)
    repairs_in_30_minutes = optional(number, 20)
    errors_in_10_minutes  = optional(number, 3)
  })
  default = {}

  validation {
    condition     = var.alert_thresholds.crash_rate > 0 && var.alert_thresholds.crash_rate < 1 && var.alert_thresholds.repairs_in_30_minutes >= 0 && var.alert_thresholds.errors_in_10_minutes >= 0
    error_message = "alert_thresholds: write a crash_rate between 0 and 1, and 0 or more of the others."
  }
}

variable "start_slo" {
  description = "How many flow runs are to start how fast: goal (0.99 is 99 %) and seconds from Cloud Run's acceptance of the job to RUNNING."
  type = object({
    goal    = optional(number, 0.99)
    seconds = optional(number, 60)
  })
  default = {}

  validation {
    condition     = var.start_slo.goal > 0 && var.start_slo.goal < 1 && var.start_slo.seconds > 0
    error_message = "start_slo: write a goal between 0 and 1, and seconds of more than 0."
  }
}

variable "labels" {
  description = "Labels on all resources that take them."
  type        = map(string)
  default     = {}
}

variable "log_level" {
  description = "DEBUG, INFO, WARN or ERROR."
  type        = string
  default     = "INFO"

  validation {
    condition     = contains(["DEBUG", "INFO", "WARN", "ERROR"], var.log_level)
    error_message = "log_level: write DEBUG, INFO, WARN or ERROR. Log-based metrics and alerts need INFO or DEBUG."
  }
}
