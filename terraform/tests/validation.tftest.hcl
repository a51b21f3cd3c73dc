# What is refused before anything is made, with a message that says what to write.

mock_provider "google" {}
mock_provider "archive" {}
mock_provider "random" {}

variables {
  project               = "my-project"
  region                = "europe-west1"
  prefect_api_url       = "https://prefect.example.com/api"
  webhook_secrets_value = "sentinel-webhook-secret-value"
}

run "project_number" {
  command = plan
  variables {
    project = "123456789"
  }
  expect_failures = [var.project]
}

run "zone_instead_of_region" {
  command = plan
  variables {
    region = "europe-west1-b"
  }
  expect_failures = [var.region]
}

run "name_too_long_for_account_ids" {
  command = plan
  variables {
    name = "a-name-of-fifteen"
  }
  expect_failures = [var.name]
}

run "work_pool_that_is_a_pattern" {
  command = plan
  variables {
    work_pools = ["team-*"]
  }
  expect_failures = [var.work_pools]
}

run "no_work_pool" {
  command = plan
  variables {
    work_pools = []
  }
  expect_failures = [var.work_pools]
}

run "no_job_region" {
  command = plan
  variables {
    job_regions = []
  }
  expect_failures = [var.job_regions]
}

run "password_in_the_address" {
  command = plan
  variables {
    prefect_api_url = "https://admin:secret@prefect.example.com/api"
  }
  expect_failures = [var.prefect_api_url]
}

run "api_key_both_ways" {
  command = plan
  variables {
    prefect_api_key       = { secret = "my-key", version = 1 }
    prefect_api_key_value = "sentinel-api-key-value"
  }
  expect_failures = [var.prefect_api_key]
}

run "api_key_without_value" {
  command = plan
  variables {
    prefect_api_key = { version = 1 }
  }
  expect_failures = [var.prefect_api_key_value]
}

run "auth_string_without_colon" {
  command = plan
  variables {
    prefect_auth_string       = { version = 1 }
    prefect_auth_string_value = "sentinel-password"
  }
  expect_failures = [var.prefect_auth_string_value]
}

run "webhook_without_secret" {
  command = plan
  variables {
    webhook_secrets_value = null
  }
  expect_failures = [var.webhook_secrets_value]
}

run "short_webhook_secret" {
  command = plan
  variables {
    webhook_secrets_value = "too-short"
  }
  expect_failures = [var.webhook_secrets_value]
}

run "unknown_kind_of_webhook" {
  command = plan
  variables {
    webhook = "private"
  }
  expect_failures = [var.webhook]
}

run "key_of_another_form" {
  command = plan
  variables {
    kms_key = "my-key"
  }
  expect_failures = [var.kms_key]
}

run "too_few_requests" {
  command = plan
  variables {
    prefect_requests_per_minute = 1
  }
  expect_failures = [var.prefect_requests_per_minute]
}
