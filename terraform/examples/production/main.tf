# An installation as a platform team runs it: a Prefect server in the same network, two work
# pools, two regions, a key of one's own, secrets that exist already, alerts that reach people.

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

  # backend "gcs" {
  #   bucket = "MY_BUCKET"
  #   prefix = "pushpool"
  # }
}

provider "google" {
  project = var.project
  region  = var.region
}

# Where this is applied has to reach the server: a Cloud Build private pool, or a machine in the network.
provider "prefect" {
  endpoint       = var.prefect_api_url
  basic_auth_key = var.prefect_auth_string
}

module "pushpool" {
  source = "../.." # pin it: git::https://github.com/pushpool/pushpool.git//terraform?ref=TAG

  project = var.project
  region  = var.region
  labels  = { team = "data-platform" }

  # Functions and flows reach the server inside the network; so does the server the webhook.
  prefect_api_url = var.prefect_api_url
  vpc             = local.vpc
  webhook         = "internal"

  # Secrets that somebody else puts values into.
  prefect_auth_string = { secret = var.auth_string_secret }
  webhook_secrets     = { secret = var.webhook_secret }

  work_pools  = keys(local.work_pools)
  job_regions = [var.region, var.second_region]

  # What flows may run as, and where their images are. Nothing else is allowed.
  flow_service_accounts = { etl = google_service_account.etl.email }
  flow_repositories     = { images = { location = var.region, repository = var.flow_repository } }

  kms_key = var.kms_key

  notification_channels = var.notification_channels
  start_slo             = { goal = 0.99, seconds = 45 }
  alert_thresholds      = { crash_rate = 0.05 }
}

locals {
  vpc = { network = var.network, subnetwork = var.subnetwork }

  work_pools = {
    etl    = { job_variables = jsonencode({ service_account_name = google_service_account.etl.email, memory = "2Gi" }) }
    models = { concurrency_limit = 4, job_variables = jsonencode({ cpu = "4", memory = "16Gi", timeout = 21600 }) }
  }
}

module "prefect" {
  source = "../../modules/prefect_connection"

  work_pools             = local.work_pools
  region                 = module.pushpool.region
  vpc                    = local.vpc
  flow_service_account   = module.pushpool.flow_service_account
  webhook_url            = module.pushpool.webhook_url
  webhook_secret         = var.webhook_secret_value
  webhook_secret_version = var.webhook_secret_version
}

# The module enables it, too, but waits for the identity.
resource "google_project_service" "iam" {
  service            = "iam.googleapis.com"
  disable_on_destroy = false
}

# Each kind of flow has an identity of its own, with what it needs and no more.
resource "google_service_account" "etl" {
  account_id   = "etl-flows"
  display_name = "Flows of work pool etl"

  depends_on = [google_project_service.iam]
}
