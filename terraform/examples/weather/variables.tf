variable "project" {
  description = "The id of the Google Cloud project."
  type        = string
}

variable "region" {
  description = "The region of everything."
  type        = string
}

variable "prefect_api_url" {
  description = "The URL of Prefect's API."
  type        = string
}

variable "prefect_api_key" {
  description = "Prefect Cloud's API key: export TF_VAR_prefect_api_key=…"
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}

variable "prefect_api_key_version" {
  description = "1 where there is an API key. null: the server needs none."
  type        = number
  default     = null
}
