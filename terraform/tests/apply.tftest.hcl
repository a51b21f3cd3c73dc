# Applied to mocks with every option, and planned once more. Go tests read what comes of it:
# terraform/tests/*_test.go hold grants, environments and the sink's filter against the code.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789" }
  }
  mock_resource "google_cloudfunctions2_function" {
    defaults = {
      service_config = { uri = "https://function-abc.a.run.app", service = "projects/my-project/locations/europe-west1/services/function" }
    }
  }
  mock_resource "google_cloud_tasks_queue" {
    defaults = { id = "projects/my-project/locations/europe-west1/queues/timers" }
  }
  mock_resource "google_logging_project_sink" {
    defaults = { writer_identity = "serviceAccount:sink" }
  }
}
mock_provider "archive" {
  mock_data "archive_file" {
    defaults = { output_sha256 = "0a1b", output_path = "source.zip" }
  }
}
mock_provider "random" {}

variables {
  project                   = "my-project"
  region                    = "europe-west1"
  prefect_api_url           = "https://prefect.example.com/api"
  prefect_api_key           = { version = 1 }
  prefect_api_key_value     = "sentinel-api-key-value"
  prefect_auth_string       = { version = 1 }
  prefect_auth_string_value = "sentinel-user:sentinel-password"
  webhook_secrets_value     = "sentinel-webhook-secret-value"
  work_pools                = ["cloud-run", "gpu"]
  job_regions               = ["europe-west4", "europe-west1"]
  create_flow_repository    = true
  flow_repositories         = { shared = { location = "europe", repository = "images", project = "other-project" } }
  flow_service_accounts     = { etl = "etl@my-project.iam.gserviceaccount.com" }
  kms_key                   = "projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/key"
  vpc                       = { network = "default", subnetwork = "default" }
  flow_prefect_api_url      = "https://prefect.internal/api"
  fast_start                = true
  retries                   = { platform = 1 }
  launch_mode               = "slots"
  policy                    = { images = ["europe-docker.pkg.dev/my-project/flows/*"], max_cpu = "4", max_memory = "8Gi", max_timeout = "1h30m" }
  cloud_run_quota           = { writes_per_minute = 600, jobs = 5000 }
  settings                  = { LOOK_AHEAD = "300s" }
  notification_channels     = ["projects/my-project/notificationChannels/1"]
  labels                    = { team = "data" }
}

run "applied" {
  command = apply

  assert {
    condition     = length(google_secret_manager_secret_version.this) == 2 && length(google_secret_manager_secret_version.webhook) == 1
    error_message = "the three secrets are written"
  }
}

run "planned_again" {
  command = plan
}
