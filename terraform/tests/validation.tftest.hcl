# What is refused before anything is made, with a message that says what to write. Each run has
# one bad value for each variable, and all of them have to be complained of.

mock_provider "google" {}
mock_provider "archive" {}
mock_provider "random" {}

variables {
  project               = "my-project"
  region                = "europe-west1"
  prefect_api_url       = "https://prefect.example.com/api"
  webhook_secrets_value = "sentinel-webhook-secret-value"
}

run "refused" {
  command = plan

  variables {
    project                     = "123456789"                                    # a number
    region                      = "europe-west1-b"                               # a zone
    name                        = "a-name-of-fifteen"                            # too long for account ids
    work_pools                  = ["team-*"]                                     # a pattern
    job_regions                 = []                                             # none
    prefect_api_url             = "https://admin:secret@prefect.example.com/api" # a password in the address
    prefect_api_key             = { secret = "my-key", version = 1 }             # both ways
    prefect_auth_string         = { version = 1 }
    prefect_auth_string_value   = "sentinel-password" # no colon
    webhook_secrets_value       = "too-short"
    kms_key                     = "my-key"
    prefect_requests_per_minute = 1
    log_level                   = "ALL"
    alert_thresholds            = { crash_rate = 10 } # per cent
    start_slo                   = { goal = 99 }       # likewise
    retries                     = { crashes = 1 }
    launch_mode                 = "jobs"
    policy                      = { max_timeout = "3600" } # no unit
    cloud_run_quota             = { writes_per_minute = 1 }
    log_location                = "europe"
    settings                    = { PREFECT_API_KEY = "sentinel-key" } # a secret in clear
  }

  expect_failures = [
    var.project, var.region, var.name, var.work_pools, var.job_regions, var.prefect_api_url, var.prefect_api_key,
    var.prefect_auth_string_value, var.webhook_secrets_value, var.kms_key, var.prefect_requests_per_minute,
    var.log_level, var.alert_thresholds, var.start_slo, var.retries, var.launch_mode, var.policy, var.cloud_run_quota, var.log_location, var.settings,
  ]
}

run "refused_as_well" {
  command = plan

  variables {
    work_pools            = []
    prefect_api_key       = { version = 1 } # and no value
    webhook_secrets_value = null
  }

  expect_failures = [var.work_pools, var.prefect_api_key_value, var.webhook_secrets_value]
}

# Its own: what depends on a variable that is refused is not looked at.
run "unknown_kind_of_webhook" {
  command = plan

  variables {
    webhook = "private"
  }

  expect_failures = [var.webhook]
}
