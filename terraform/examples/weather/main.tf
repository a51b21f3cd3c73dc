# The guide's flow on an installation of its own: as the quickstart, with a repository for its image.

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
}

provider "google" {
  project = var.project
  region  = var.region
}

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
  source = "../.."

  project         = var.project
  region          = var.region
  prefect_api_url = var.prefect_api_url
  work_pools      = ["weather"]

  prefect_api_key       = var.prefect_api_key_version == null ? null : { version = var.prefect_api_key_version }
  prefect_api_key_value = var.prefect_api_key
  webhook_secrets_value = local.webhook_secret

  create_flow_repository = true
}

module "prefect" {
  source = "../../modules/prefect_connection"

  work_pools           = { weather = {} }
  region               = module.pushpool.region
  flow_service_account = module.pushpool.flow_service_account
  webhook_url          = module.pushpool.webhook_url
  webhook_secret       = local.webhook_secret
}
