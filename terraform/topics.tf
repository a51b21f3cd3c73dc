# flow-runs: what the dispatcher is to look at. Everybody who may publish here may start flow runs.
resource "google_pubsub_topic" "flow_runs" {
  project      = var.project
  name         = "${local.topic_prefix}flow-runs"
  labels       = local.labels
  kms_key_name = local.topic_kms_key

  depends_on = [google_project_service.api]
}

# executions: Cloud Run's audit entries about executions that ended.
resource "google_pubsub_topic" "executions" {
  project      = var.project
  name         = "${local.topic_prefix}executions"
  labels       = local.labels
  kms_key_name = local.topic_kms_key

  depends_on = [google_project_service.api]
}

# lifecycle: each step of a launch, for whoever wants to follow; nothing here is subscribed to it.
resource "google_pubsub_topic" "lifecycle" {
  project      = var.project
  name         = "${local.topic_prefix}lifecycle"
  labels       = local.labels
  kms_key_name = local.topic_kms_key

  depends_on = [google_project_service.api]
}

resource "google_pubsub_topic_iam_member" "lifecycle" {
  for_each = local.settlers

  project = var.project
  topic   = google_pubsub_topic.lifecycle.name
  role    = "roles/pubsub.publisher"
  member  = each.value
}

# Dispatches and wakes are messages, too. The webhook hands on events; Cloud Tasks publishes timers.
resource "google_pubsub_topic_iam_member" "flow_runs" {
  for_each = merge(
    local.settlers,
    { tasks = google_service_account.tasks.member },
    { for key in local.webhook_keys : key => module.webhook[key].member },
  )

  project = var.project
  topic   = google_pubsub_topic.flow_runs.name
  role    = "roles/pubsub.publisher"
  member  = each.value
}
