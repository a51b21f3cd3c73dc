# finalizer: an execution's end, by way of Cloud Run's audit log → what Prefect is told.

locals {
  # Time as the dispatcher's. 0.5 s of waiting and 10 ms of CPU for an end: one instance takes
  # 80 / 0.5 = 160 ends/s, and 1,000 executions that end together, the most that a region runs,
  # are done in 10 s of CPU. Two instances, so that one may die.
  # Memory: 80 entries of 256 KiB at most, the limit of Cloud Logging: 512Mi.
  finalizer = {
    cpu             = "1"
    memory          = "512Mi"
    concurrency     = 80
    max_instances   = 2
    timeout_seconds = 75
  }

  # What ended is told by RunJob, also where it failed. CreateJob at ERROR is a job that can never
  # start, UpdateJob likewise one of launch mode slots. All fields are in split entries, too. Severity is not asked of RunJob: that of an entry
  # about success is not documented.
  sink_filter = <<-EOT
    logName="projects/${var.project}/logs/cloudaudit.googleapis.com%2Fsystem_event"
    AND resource.type="cloud_run_job"
    AND resource.labels.job_name=~"^pp-"
    AND protoPayload.serviceName="run.googleapis.com"
    AND (protoPayload.methodName="/Jobs.RunJob" OR ((protoPayload.methodName="/Jobs.CreateJob" OR protoPayload.methodName="/Jobs.UpdateJob") AND severity=ERROR))
  EOT
}

module "finalizer" {
  source = "./modules/push_function"

  installation          = local.installation
  function              = "finalizer"
  description           = "Tells Prefect how executions ended, where the flow could not."
  size                  = local.finalizer
  topic                 = google_pubsub_topic.executions
  topic_kms_key         = local.topic_kms_key
  pubsub_agent          = local.agent["gcp-sa-pubsub"]
  environment           = local.core_environment
  secrets               = local.core_secrets
  notification_channels = var.notification_channels
}

# System event entries are always written, and routing them costs nothing.
resource "google_logging_project_sink" "executions" {
  project                = var.project
  name                   = "${var.name}-executions"
  description            = "Ends of ${var.name}'s executions, for the finalizer."
  destination            = "pubsub.googleapis.com/${google_pubsub_topic.executions.id}"
  filter                 = trimspace(local.sink_filter)
  unique_writer_identity = true

  depends_on = [google_project_service.api]
}

resource "google_pubsub_topic_iam_member" "sink" {
  project = var.project
  topic   = google_pubsub_topic.executions.name
  role    = "roles/pubsub.publisher"
  member  = google_logging_project_sink.executions.writer_identity
}
