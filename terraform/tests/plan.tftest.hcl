# The smallest installation, planned. The rules are held in the runs that follow, each of which
# says what went wrong, or would, without it.

mock_provider "google" {
  override_during = plan

  mock_data "google_project" {
    defaults = { number = "123456789" }
  }
  mock_resource "google_cloudfunctions2_function" {
    defaults = {
      service_config = { uri = "https://function-abc.a.run.app", service = "projects/my-project/locations/europe-west1/services/function" }
    }
  }
  mock_resource "google_secret_manager_secret" {
    defaults = { id = "projects/my-project/secrets/made" }
  }
}
mock_provider "archive" {
  override_during = plan
}
mock_provider "random" {
  override_during = plan
  mock_resource "random_id" {
    defaults = { hex = "ab12" }
  }
}

variables {
  project               = "my-project"
  region                = "europe-west1"
  prefect_api_url       = "https://prefect.example.com/api"
  webhook_secrets_value = "sentinel-webhook-secret-value"
}

run "smallest" {
  command = plan

  assert {
    condition     = output.work_pools == tolist(["cloud-run"]) && output.region == "europe-west1"
    error_message = "the defaults serve no work pool"
  }

  assert {
    condition     = google_pubsub_topic.flow_runs.name == "flow-runs" && google_pubsub_topic.executions.name == "executions" && google_pubsub_topic.lifecycle.name == "lifecycle"
    error_message = "the topics of a single installation have plain names"
  }

  assert {
    condition     = google_firestore_database.ledger.deletion_policy == "DELETE"
    error_message = "destroy would leave the database, and the next installation would meet its name taken"
  }

  assert {
    condition     = endswith(google_cloud_tasks_queue.timers.name, random_id.suffix.hex) && endswith(google_storage_bucket.source.name, random_id.suffix.hex)
    error_message = "the name of a deleted queue stays taken for days: it needs a suffix"
  }

  assert {
    condition     = google_cloud_scheduler_job.sweep.http_target[0].http_method == "POST" && endswith(google_cloud_scheduler_job.sweep.http_target[0].uri, "/")
    error_message = "without a method and a final slash every plan shows a change"
  }

  assert {
    condition     = length(google_cloud_scheduler_job.sweep.retry_config) == 1
    error_message = "an answer with the defaults would be a change in every plan"
  }

  assert {
    condition     = google_cloud_scheduler_job.sweep.http_target[0].oidc_token[0].audience == module.reconciler.uri
    error_message = "Cloud Run refuses a token for another audience"
  }

  assert {
    condition     = google_firestore_field.expire_at.ttl_config != null && google_firestore_field.expire_at.field == "expireAt"
    error_message = "without a TTL policy the ledger grows for ever"
  }

  assert {
    condition     = length(google_secret_manager_secret_iam_member.flows) == 0
    error_message = "without an API key there is no secret for flows to read"
  }

  assert {
    condition     = length(module.webhook) == 1 && google_cloud_run_v2_service_iam_member.webhook_public["webhook"].member == "allUsers"
    error_message = "Prefect's action sends no Google token: public is the default"
  }
}

run "no_webhook_where_the_organisation_refuses_allUsers" {
  command = plan

  variables {
    webhook               = "none"
    webhook_secrets_value = null
  }

  assert {
    condition     = length(module.webhook) == 0 && length(google_cloud_run_v2_service_iam_member.webhook_public) == 0 && output.webhook_url == null
    error_message = "none leaves no webhook, and nothing that everybody may call"
  }
}

run "internal_webhook" {
  command = plan

  variables {
    webhook = "internal"
  }

  assert {
    condition     = output.webhook_url != null
    error_message = "internal is a webhook, too"
  }
}

run "secrets_exist_already" {
  command = plan

  variables {
    prefect_api_key       = { secret = "my-key" }
    prefect_auth_string   = { secret = "my-auth" }
    webhook_secrets       = { secret = "my-webhook" }
    webhook_secrets_value = null
    flow_service_accounts = { etl = "etl@my-project.iam.gserviceaccount.com" }
  }

  assert {
    condition     = length(google_secret_manager_secret.this) == 0 && length(google_secret_manager_secret_version.this) == 0 && length(google_secret_manager_secret_version.webhook) == 0
    error_message = "a secret that exists is not made again"
  }

  assert {
    condition     = sort(distinct([for m in google_secret_manager_secret_iam_member.flows : m.secret_id])) == tolist(["my-auth", "my-key"])
    error_message = "flows read what they need to reach Prefect, and not the webhook's secrets"
  }

  assert {
    condition     = length(google_secret_manager_secret_iam_member.flows) == 4 && length(google_service_account_iam_member.flows) == 2
    error_message = "each of flow_service_accounts, and the module's own, reads both and may be acted as"
  }

  assert {
    condition     = google_service_account_iam_member.flows["given-etl"].role == "roles/iam.serviceAccountUser" && endswith(google_service_account_iam_member.flows["given-etl"].service_account_id, "/etl@my-project.iam.gserviceaccount.com")
    error_message = "actAs is granted on the one identity"
  }
}

run "secrets_are_made" {
  command = plan

  variables {
    prefect_api_key           = { version = 3 }
    prefect_api_key_value     = "sentinel-api-key-value"
    prefect_auth_string       = { version = 1 }
    prefect_auth_string_value = "sentinel-user:sentinel-password"
  }

  assert {
    condition     = sort([for s in google_secret_manager_secret.this : s.secret_id]) == tolist(["pushpool-api-key", "pushpool-auth-string", "pushpool-webhook-secrets"])
    error_message = "three secrets are made"
  }

  assert {
    condition     = google_secret_manager_secret_version.this["api-key"].secret_data_wo_version == "3" && google_secret_manager_secret_version.this["api-key"].secret_data == null
    error_message = "the value is write-only, and written again when its version is raised"
  }
}

run "second_installation_in_a_project" {
  command = plan

  variables {
    name = "blue-green"
  }

  assert {
    condition     = google_pubsub_topic.flow_runs.name == "blue-green-flow-runs" && google_firestore_database.ledger.name == "blue-green-ledger"
    error_message = "two installations in one project would share names"
  }

  assert {
    condition     = google_project_iam_custom_role.launch.role_id == "blue_green_launch"
    error_message = "ids of roles take no dash"
  }
}

run "no_last_lines" {
  command = plan

  variables {
    log_location = null
  }

  assert {
    condition     = length(google_logging_log_view.jobs) == 0 && length(google_logging_log_view_iam_member.jobs) == 0 && local.core_environment.LOG_READS_PER_MINUTE == "0"
    error_message = "where nothing is copied, nobody may read logs"
  }
}

run "everything" {
  command = plan

  variables {
    work_pools             = ["cloud-run", "gpu"]
    job_regions            = ["europe-west4", "europe-west1"]
    create_flow_repository = true
    flow_repositories      = { shared = { location = "europe", repository = "images", project = "other-project" } }
    kms_key                = "projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/key"
    vpc                    = { network = "default", subnetwork = "default" }
    flow_prefect_api_url   = "https://prefect.internal/api"
    notification_channels  = ["projects/my-project/notificationChannels/1"]
    labels                 = { team = "data" }
  }

  assert {
    condition     = output.region == "europe-west4"
    error_message = "the first of job_regions is preferred"
  }

  assert {
    condition     = google_pubsub_topic.flow_runs.kms_key_name == var.kms_key && google_firestore_database.ledger.cmek_config[0].kms_key_name == var.kms_key && google_storage_bucket.source.encryption[0].default_kms_key_name == var.kms_key
    error_message = "what is stored is encrypted with the key"
  }

  assert {
    condition     = google_artifact_registry_repository_iam_member.flows["given-shared"].project == "other-project" && google_artifact_registry_repository_iam_member.flows["own"].role == "roles/artifactregistry.reader"
    error_message = "who creates a job has to be able to read its image"
  }
}

run "prefect_cloud" {
  command = plan

  variables {
    prefect_api_url = "https://api.prefect.cloud/api/accounts/0a/workspaces/0b"
  }

  assert {
    condition     = local.requests_per_minute * local.prefect_callers <= 625 && local.requests_per_minute >= 60
    error_message = "all functions together stay under what Prefect Cloud's smallest tier allows"
  }
}
