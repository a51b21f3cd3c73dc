# The quickstart, planned with its three variables and nothing else.

mock_provider "google" {}
mock_provider "archive" {}
mock_provider "random" {}
mock_provider "prefect" {}

variables {
  project         = "my-project"
  region          = "europe-west1"
  prefect_api_url = "https://prefect.example.com/api"
}

run "three_variables" {
  command         = plan
  expect_failures = [check.somebody_is_told]
}

run "somebody_is_told" {
  command = plan

  variables {
    prefect_api_url         = "https://api.prefect.cloud/api/accounts/0a/workspaces/0b"
    prefect_api_key         = "sentinel-api-key"
    prefect_api_key_version = 1
    webhook                 = "none"
    alert_emails            = ["on-call@example.com"]
    existing_work_pools     = ["workers"]
  }

  assert {
    condition     = length(google_monitoring_notification_channel.email) == 1
    error_message = "alerts go to the address"
  }

  assert {
    condition     = toset(module.pushpool.work_pools) == toset(["cloud-run", "workers"]) && module.prefect.work_pools == tolist(["cloud-run"])
    error_message = "a work pool that exists is served, and not made"
  }
}
