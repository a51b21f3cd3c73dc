# webhook: Prefect's automation → topic flow-runs.

locals {
  # Prefect's action waits 5 s, the function answers within 4.
  # 1 CPU, for 80 at a time: a request is a read of 2 MiB at most and one publication, 20 ms of
  # CPU. 80 × 2 MiB = 160 MiB beside 60 MiB of program: 512Mi. A publication takes 50 ms, so one
  # instance takes more than 50 × 80 / 4 = 1,000 events/s, and three are for failures.
  webhook = {
    cpu             = "1"
    memory          = "512Mi"
    concurrency     = 80
    max_instances   = 3
    timeout_seconds = 10
  }

  # A set, and not a count, so that addresses tell what is there.
  webhook_keys = toset(var.webhook == "none" ? [] : ["webhook"])
}

module "webhook" {
  source   = "./modules/function"
  for_each = local.webhook_keys

  installation = local.installation
  function     = "webhook"
  description  = "Takes Prefect's events to the topic flow-runs."
  size         = local.webhook
  environment  = local.common_environment
  secrets      = { WEBHOOK_SECRETS = local.webhook_reference }
  ingress      = var.webhook == "public" ? "ALLOW_ALL" : "ALLOW_INTERNAL_ONLY"
}

# Prefect's action can send a header and no Google token. So Cloud Run lets everybody in that
# ingress lets in, and the function itself checks the secret, in constant time, before it reads.
resource "google_cloud_run_v2_service_iam_member" "webhook_public" {
  for_each = local.webhook_keys

  project  = var.project
  location = var.region
  name     = module.webhook[each.key].name
  role     = "roles/run.invoker"
  member   = "allUsers"
}
