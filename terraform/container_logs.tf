# What containers wrote last, for the logs of flow runs that ended badly.

locals {
  # Of each project that jobs run in.
  log_view = var.log_location == null ? null : "locations/${var.log_location}/buckets/_Default/views/${var.name}-jobs"
}

# roles/logging.viewer would show every log of the project. A view can ask for the type of a
# resource, not for its name: other jobs' lines are in it, too.
resource "google_logging_log_view" "jobs" {
  count = var.log_location == null ? 0 : 1

  parent      = "projects/${var.project}"
  location    = var.log_location
  bucket      = "_Default"
  name        = "${var.name}-jobs"
  description = "What the containers of Cloud Run jobs write, for ${var.name}."
  filter      = "resource.type = \"cloud_run_job\""

  depends_on = [google_project_service.api]
}

resource "google_logging_log_view_iam_member" "jobs" {
  for_each = var.log_location == null ? {} : local.settlers

  parent   = google_logging_log_view.jobs[0].parent
  location = google_logging_log_view.jobs[0].location
  bucket   = google_logging_log_view.jobs[0].bucket
  name     = google_logging_log_view.jobs[0].name
  role     = "roles/logging.viewAccessor"
  member   = each.value
}
