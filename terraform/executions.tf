# Reading and stopping what was launched. Jobs have no names before they are made, so a project
# is the narrowest that there is.

resource "google_project_iam_custom_role" "read" {
  project     = var.project
  role_id     = "${local.role_prefix}_read_executions"
  title       = "${var.name}: read executions"
  description = "Read how executions fare and end."
  permissions = ["run.executions.get", "run.tasks.get"]

  depends_on = [google_project_service.api]
}

resource "google_project_iam_member" "read" {
  for_each = local.settlers

  project = var.project
  role    = google_project_iam_custom_role.read.id
  member  = each.value
}

# Who is told of an end stops nothing: the finalizer is not among these.
resource "google_project_iam_custom_role" "stop" {
  project     = var.project
  role_id     = "${local.role_prefix}_stop_executions"
  title       = "${var.name}: stop executions"
  description = "Find jobs and executions, cancel executions, delete jobs."
  permissions = [
    "run.jobs.get",
    "run.jobs.list",   # where a lost ledger left no name, and for the sweep of old jobs
    "run.jobs.delete", # a job that has not started its execution yet can be stopped in no other way
    "run.executions.list",
    "run.executions.cancel",
  ]

  depends_on = [google_project_service.api]
}

resource "google_project_iam_member" "stop" {
  for_each = local.watchers

  project = var.project
  role    = google_project_iam_custom_role.stop.id
  member  = each.value
}
