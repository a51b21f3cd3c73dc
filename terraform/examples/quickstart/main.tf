# The smallest installation: three variables, one apply. Copy this folder.

terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.45, < 8"
    }
    prefect = {
      source  = "prefecthq/prefect"
      version = ">= 3.4, < 4"
    }
  }

  # Where several people apply. The bucket has to be there, with versioning on.
  # backend "gcs" {
  #   bucket = "MY_BUCKET"
  #   prefix = "pushpool"
  # }
}

provider "google" {
  project = var.project
  region  = var.region
}

# A server with basic authentication needs basic_auth_key here and prefect_auth_string below; examples/production has both.
provider "prefect" {
  endpoint = var.prefect_api_url
  api_key  = var.prefect_api_key
}

locals {
  # What Prefect says to the webhook: random, and made anew each time. It is written where its version
  # is raised, to the secret and to Prefect in the same apply, and kept nowhere else.
  webhook_secret = uuid()
}

module "pushpool" {
  source = "../.." # or git::https://github.com/pushpool/pushpool.git//terraform?ref=TAG

  project         = var.project
  region          = var.region
  prefect_api_url = var.prefect_api_url
  work_pools      = setunion(var.work_pools, var.existing_work_pools)

  prefect_api_key       = var.prefect_api_key_version == null ? null : { version = var.prefect_api_key_version }
  prefect_api_key_value = var.prefect_api_key

  webhook               = var.webhook
  webhook_secrets       = { version = var.webhook_secret_version }
  webhook_secrets_value = local.webhook_secret

  notification_channels = [for c in google_monitoring_notification_channel.email : c.id]
}

module "prefect" {
  source = "../../modules/prefect_connection"

  work_pools             = { for pool in var.work_pools : pool => {} }
  existing_work_pools    = var.existing_work_pools
  region                 = module.pushpool.region
  flow_service_account   = module.pushpool.flow_service_account
  webhook                = var.webhook != "none"
  webhook_url            = module.pushpool.webhook_url
  webhook_secret         = local.webhook_secret
  webhook_secret_version = var.webhook_secret_version
}

# The module enables it, too, but waits for the channel.
resource "google_project_service" "monitoring" {
  service            = "monitoring.googleapis.com"
  disable_on_destroy = false
}

resource "google_monitoring_notification_channel" "email" {
  for_each = var.alert_emails

  display_name = each.value
  type         = "email"
  labels       = { email_address = each.value }

  depends_on = [google_project_service.monitoring]
}

check "somebody_is_told" {
  assert {
    condition     = length(var.alert_emails) > 0
    error_message = "alert_emails is empty: alerts show in the console only, and nobody is told. Write alert_emails = [\"you@example.com\"]."
  }
}
