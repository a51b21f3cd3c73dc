# dispatcher: topic flow-runs → Cloud Run jobs.

locals {
  # Time: 60 s for a message and 10 s for its dead letter, below the lease of 75 s.
  # CPU: a launch is 1.5 s of waiting for about ten calls, and 30 ms of CPU. 80 at a time are
  # 80 / 1.5 = 53 launches/s with 1.6 CPU: bound by the CPU to 33/s, and far above what a region
  # takes, 180 writes a minute = 3/s. Two instances, so that one may die.
  # Memory: 80 messages of 1 MiB at most beside 100 MiB of program: 512Mi.
  dispatcher = {
    cpu             = "1"
    memory          = "512Mi"
    concurrency     = 80
    max_instances   = 2
    timeout_seconds = 75
  }

  # The operator's command renders jobs as the dispatcher does.
  dispatcher_environment = merge(local.core_environment, {
    DEFAULT_IMAGE           = var.default_flow_image
    FAST_START              = tostring(var.fast_start)
    LAUNCH_MODE             = var.launch_mode
    OVERFLOW_REGIONS        = join(",", local.job_regions)
    POLICY_IMAGES           = join(",", var.policy.images)
    POLICY_SERVICE_ACCOUNTS = join(",", var.policy.service_accounts)
    POLICY_MAX_CPU          = var.policy.max_cpu
    POLICY_MAX_MEMORY       = var.policy.max_memory
    POLICY_MAX_TIMEOUT      = var.policy.max_timeout
    },
    var.flow_prefect_api_url == null ? {} : { CONTAINER_PREFECT_API_URL = var.flow_prefect_api_url },
    var.prefect_api_key == null ? {} : { CONTAINER_PREFECT_API_KEY_SECRET = local.api_key },
    var.prefect_auth_string == null ? {} : { CONTAINER_PREFECT_API_AUTH_STRING_SECRET = local.auth_string },
  )
}

module "dispatcher" {
  source = "./modules/push_function"

  installation  = local.installation
  function      = "dispatcher"
  description   = "Starts one execution for each flow run that is due."
  size          = local.dispatcher
  topic         = google_pubsub_topic.flow_runs
  topic_kms_key = local.topic_kms_key
  pubsub_agent  = local.agent["gcp-sa-pubsub"]
  secrets       = local.core_secrets

  environment = local.dispatcher_environment

  notification_channels = var.notification_channels
}

# Jobs are made here and have no names before, so a project is the narrowest that there is.
resource "google_project_iam_custom_role" "launch" {
  project     = var.project
  role_id     = "${local.role_prefix}_launch"
  title       = "${var.name}: launch"
  description = "Create jobs, which starts them, and update those of launch mode slots."
  permissions = [
    "run.jobs.create",
    "run.jobs.update",
    "run.jobs.run", # a job with a start token starts when it is created or updated
  ]

  depends_on = [google_project_service.api]
}

resource "google_project_iam_member" "launch" {
  project = var.project
  role    = google_project_iam_custom_role.launch.id
  member  = module.dispatcher.member
}
