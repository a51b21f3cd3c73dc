variable "project" {
  description = "The id of the Google Cloud project."
  type        = string
}

variable "region" {
  description = "The region of the installation, and of jobs first."
  type        = string
}

variable "second_region" {
  description = "The region of jobs when the first is full."
  type        = string
}

variable "prefect_api_url" {
  description = "The server's API inside the network, such as http://prefect.internal:4200/api."
  type        = string
}

variable "prefect_auth_string" {
  description = "USER:PASSWORD for Terraform itself: export TF_VAR_prefect_auth_string=…"
  type        = string
  ephemeral   = true
  sensitive   = true
}

variable "auth_string_secret" {
  description = "The name of the secret with USER:PASSWORD, for functions and flows."
  type        = string
}

variable "webhook_secret" {
  description = "The name of the secret with the webhook's bearer secrets."
  type        = string
}

variable "webhook_secret_value" {
  description = "The bearer secret that Prefect is to send: export TF_VAR_webhook_secret_value=$(gcloud secrets versions access latest --secret=…)"
  type        = string
  ephemeral   = true
  sensitive   = true
}

variable "webhook_secret_version" {
  description = "A number to raise with each new webhook_secret_value."
  type        = number
  default     = 1
}

variable "network" {
  description = "The network of the Prefect server."
  type        = string
}

variable "subnetwork" {
  description = "Subnetworks of it with this name, in region and in second_region, with a /26 or more to spare."
  type        = string
}

variable "flow_repository" {
  description = "The Artifact Registry repository with flows' images, in region."
  type        = string
}

variable "kms_key" {
  description = "The key that encrypts what is stored, in region."
  type        = string
}

variable "notification_channels" {
  description = "Where alerts go."
  type        = list(string)
}
