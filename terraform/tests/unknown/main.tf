# A configuration that knows next to nothing before it is applied, as one does that makes project,
# network, repositories and identities itself. ../unknown.tftest.hcl plans it.

terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.45, < 8"
    }
    archive = {
      source  = "hashicorp/archive"
      version = ">= 2.8, < 3"
    }
    random = {
      source  = "hashicorp/random"
      version = ">= 3.9, < 4"
    }
  }
}

resource "terraform_data" "later" {
  input = "later"
}

locals {
  later = terraform_data.later.output
}

module "pushpool" {
  source    = "../.."
  providers = { google = google, archive = archive, random = random }

  project                = local.later
  region                 = "europe-west1"
  prefect_api_url        = local.later
  flow_prefect_api_url   = local.later
  prefect_api_key        = { secret = local.later }
  prefect_auth_string    = { secret = local.later }
  webhook_secrets        = { secret = local.later }
  flow_service_accounts  = { etl = local.later }
  flow_repositories      = { images = { location = local.later, repository = local.later, project = local.later } }
  create_flow_repository = true
  vpc                    = { network = local.later, subnetwork = local.later }
  default_flow_image     = local.later
  policy                 = { images = [local.later] }
  settings               = { START_DEADLINE = local.later }
  notification_channels  = [local.later]
  labels                 = { team = local.later }
}
