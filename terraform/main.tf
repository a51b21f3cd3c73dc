# What the functions have in common. One file for each function, in the order in which a
# flow run meets them: webhook.tf, dispatcher.tf, finalizer.tf, reconciler.tf.

data "google_project" "this" {
  project_id = var.project
}

# Names of deleted queues stay taken for days, and bucket names are everybody's.
resource "random_id" "suffix" {
  byte_length = 4
}

locals {
  job_regions = var.job_regions == null ? [var.region] : var.job_regions
  labels      = merge({ installation = var.name }, var.labels)

  # Topics are what people publish to: the plain names, unless there are several installations.
  topic_prefix = var.name == "pushpool" ? "" : "${var.name}-"

  # Service agents are made with the API that they belong to.
  agent = {
    for service in ["gcp-sa-pubsub", "gcp-sa-artifactregistry", "gcp-sa-secretmanager", "gcp-sa-firestore", "gcf-admin-robot", "serverless-robot-prod", "gs-project-accounts"] :
    service => "serviceAccount:service-${data.google_project.this.number}@${service}.iam.gserviceaccount.com"
  }

  # Who writes about flow runs: to Prefect, to the ledger, to the topics.
  settlers = {
    dispatcher = module.dispatcher.member
    finalizer  = module.finalizer.member
    reconciler = module.reconciler.member
  }

  # Those of them that look at launches by themselves: they stop what has to be stopped, and set timers.
  watchers = {
    dispatcher = module.dispatcher.member
    reconciler = module.reconciler.member
  }

  # Ids of roles take no dash.
  role_prefix = replace(var.name, "-", "_")

  # The newest runtime of the Go buildpack that go.mod's go line allows.
  runtime = "go126"

  # All instances that call Prefect at the same time, below: the dispatcher's, the finalizer's, the reconciler's.
  prefect_callers     = local.dispatcher.max_instances + local.finalizer.max_instances + local.reconciler.max_instances
  requests_per_minute = floor(coalesce(var.prefect_requests_per_minute, startswith(var.prefect_api_url, "https://api.prefect.cloud/") ? 500 : 2500) / local.prefect_callers)

  # What the functions share. The module function turns it into a function.
  installation = {
    project    = var.project
    region     = var.region
    name       = var.name
    labels     = local.labels
    runtime    = local.runtime
    bucket     = google_storage_bucket.source.name
    object     = google_storage_bucket_object.source.name
    repository = google_artifact_registry_repository.functions.id
    builder    = google_service_account.build.id
    vpc        = var.vpc
    kms_key    = var.kms_key
    settings   = var.settings
  }

  common_environment = {
    GOOGLE_CLOUD_PROJECT = var.project
    INSTALL_NAME         = var.name
    LOG_LEVEL            = var.log_level
    TOPIC_FLOW_RUNS      = google_pubsub_topic.flow_runs.name
  }

  # Of the functions that act on flow runs.
  core_environment = merge(local.common_environment, {
    WORK_POOLS                  = join(",", var.work_pools)
    REGIONS                     = join(",", local.job_regions)
    PREFECT_API_URL             = var.prefect_api_url
    PREFECT_REQUESTS_PER_MINUTE = tostring(local.requests_per_minute)
    TASKS_QUEUE                 = google_cloud_tasks_queue.timers.id
    TASKS_SERVICE_ACCOUNT       = google_service_account.tasks.email
    FIRESTORE_DATABASE          = google_firestore_database.ledger.name
    TOPIC_LIFECYCLE             = google_pubsub_topic.lifecycle.name
    CLOUD_RUN_WRITES_PER_MINUTE = tostring(var.cloud_run_quota.writes_per_minute)
    CLOUD_RUN_READS_PER_MINUTE  = tostring(var.cloud_run_quota.reads_per_minute)
    CLOUD_RUN_MAX_JOBS          = tostring(var.cloud_run_quota.jobs)
    }, var.log_location == null ? { LOG_READS_PER_MINUTE = "0" } : { LOG_VIEW = local.log_view },
    var.retries == null ? {} : { RETRIES = jsonencode(var.retries) },
  )

  core_secrets = merge(
    var.prefect_api_key == null ? {} : { PREFECT_API_KEY = local.reference["api-key"] },
    var.prefect_auth_string == null ? {} : { PREFECT_API_AUTH_STRING = local.reference["auth-string"] },
  )
}
