# reconciler: every minute, whatever no event told.

locals {
  # One sweep at a time, one instance: two only for the moment of a deployment. A sweep takes 55 s
  # at most and 4 s to give back its leases. 1,000 flow runs of 10 KiB: 512Mi. Sixteen calls at a
  # time wait for Prefect most of the time, half a CPU is enough; more than one request at a time
  # would need a whole one.
  reconciler = {
    cpu             = "0.5"
    memory          = "512Mi"
    concurrency     = 1
    max_instances   = 2
    timeout_seconds = 60
  }
}

module "reconciler" {
  source = "./modules/function"

  installation = local.installation
  function     = "reconciler"
  description  = "Finds each minute what no event told, and repairs it."
  size         = local.reconciler
  environment  = local.core_environment
  secrets      = local.core_secrets
}

resource "google_service_account" "scheduler" {
  project      = var.project
  account_id   = "${var.name}-scheduler"
  display_name = "${var.name}: calls the reconciler"

  depends_on = [google_project_service.api]
}

resource "google_cloud_run_v2_service_iam_member" "scheduler" {
  project  = var.project
  location = var.region
  name     = module.reconciler.name
  role     = "roles/run.invoker"
  member   = google_service_account.scheduler.member
}

resource "google_cloud_scheduler_job" "sweep" {
  project          = var.project
  region           = var.region
  name             = "${var.name}-sweep"
  description      = "Calls ${var.name}'s reconciler."
  schedule         = "* * * * *"
  time_zone        = "Etc/UTC"
  attempt_deadline = "${local.reconciler.timeout_seconds}s"

  # No retries: the next minute is the next try. The default is written out because an answer that
  # has the defaults would be a change in every plan.
  retry_config {
    max_doublings = 5
  }

  http_target {
    http_method = "POST"
    uri         = "${module.reconciler.uri}/"

    oidc_token {
      service_account_email = google_service_account.scheduler.email
      audience              = module.reconciler.uri
    }
  }

  depends_on = [google_project_service.api, google_cloud_run_v2_service_iam_member.scheduler]
}
