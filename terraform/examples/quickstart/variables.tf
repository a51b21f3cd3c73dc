variable "project" {
  description = "The id of the Google Cloud project."
  type        = string
}

variable "region" {
  description = "The region of everything."
  type        = string
}

variable "prefect_api_url" {
  description = "The URL of Prefect's API, ending in /api, or Prefect Cloud's with account and workspace."
  type        = string
}

variable "prefect_api_key" {
  description = "Prefect Cloud's API key: export TF_VAR_prefect_api_key=…, for each plan and apply."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}

variable "prefect_api_key_version" {
  description = "1 where there is an API key, and a number more with each new one. null: the server needs none."
  type        = number
  default     = null
}

variable "work_pools" {
  description = "The work pools to make and to serve."
  type        = set(string)
  default     = ["cloud-run"]
}

variable "existing_work_pools" {
  description = "Work pools that exist already, such as a worker's, to serve as well; they stay as they are."
  type        = set(string)
  default     = []
}

variable "webhook" {
  description = "public, internal or none; see the module's README."
  type        = string
  default     = "public"
}

variable "webhook_secret_version" {
  description = "A number to raise when the webhook's secret is to be replaced, or when the first apply stopped half-way."
  type        = number
  default     = 1
}

variable "alert_emails" {
  description = "Who is told when flow runs do not start."
  type        = set(string)
  default     = []
}
