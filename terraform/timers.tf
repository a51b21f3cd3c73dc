# Timers: tasks that publish to the topic flow-runs at a time.
resource "google_cloud_tasks_queue" "timers" {
  project  = var.project
  location = var.region
  name     = "${var.name}-timers-${random_id.suffix.hex}"

  # A timer must not wait for another one. The rate of launches is bounded elsewhere.
  rate_limits {
    max_dispatches_per_second = 500
    max_concurrent_dispatches = 1000
  }

  # The sweep finds what a timer did not tell, so an hour of trying is enough.
  retry_config {
    max_attempts       = -1
    max_retry_duration = "3600s"
    min_backoff        = "1s"
    max_backoff        = "60s"
    max_doublings      = 5
  }

  depends_on = [google_project_service.api]
}

# The identity with which Cloud Tasks publishes. It may publish to flow-runs, and nothing else.
resource "google_service_account" "tasks" {
  project      = var.project
  account_id   = "${var.name}-tasks"
  display_name = "${var.name}: publishes timers"

  depends_on = [google_project_service.api]
}

# Set a timer, and look whether one still waits: cloudtasks.enqueuer cannot do the second.
resource "google_project_iam_custom_role" "timers" {
  project     = var.project
  role_id     = "${local.role_prefix}_timers"
  title       = "${var.name}: set timers"
  description = "Make tasks and look whether they still wait."
  permissions = ["cloudtasks.tasks.create", "cloudtasks.tasks.get"]

  depends_on = [google_project_service.api]
}

resource "google_cloud_tasks_queue_iam_member" "timers" {
  for_each = local.watchers

  project  = var.project
  location = google_cloud_tasks_queue.timers.location
  name     = google_cloud_tasks_queue.timers.name
  role     = google_project_iam_custom_role.timers.id
  member   = each.value
}

# Who makes a task that acts as an identity has to be allowed to act as it.
resource "google_service_account_iam_member" "timers" {
  for_each = local.watchers

  service_account_id = google_service_account.tasks.name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value
}
