mock_provider "google" {
  override_during = plan

  mock_resource "google_service_account" {
    defaults = { email = "made@my-project.iam.gserviceaccount.com", member = "serviceAccount:made@my-project.iam.gserviceaccount.com" }
  }
}

variables {
  installation = {
    project    = "my-project"
    region     = "europe-west1"
    name       = "pushpool"
    labels     = {}
    runtime    = "go126"
    bucket     = "source"
    object     = "source.zip"
    repository = "projects/my-project/locations/europe-west1/repositories/functions"
    builder    = "projects/my-project/serviceAccounts/build@my-project.iam.gserviceaccount.com"
  }
  function    = "webhook"
  description = "Takes Prefect's events to the topic flow-runs."
  size        = { cpu = "1", memory = "512Mi", concurrency = 80, max_instances = 3, timeout_seconds = 10 }
  environment = { INSTALL_NAME = "pushpool" }
  secrets     = { WEBHOOK_SECRETS = { secret = "pushpool-webhook-secrets", version = "3" } }
}

run "an_identity_of_its_own" {
  command = plan

  assert {
    condition     = google_cloudfunctions2_function.this.service_config[0].service_account_email == google_service_account.this.email && google_service_account.this.account_id == "pushpool-webhook"
    error_message = "the function runs as its own identity"
  }

  assert {
    condition     = google_cloudfunctions2_function.this.build_config[0].service_account == var.installation.builder
    error_message = "it is built by the build's identity and not by the default one"
  }

  assert {
    condition     = google_secret_manager_secret_iam_member.this["WEBHOOK_SECRETS"].secret_id == "pushpool-webhook-secrets" && google_secret_manager_secret_iam_member.this["WEBHOOK_SECRETS"].role == "roles/secretmanager.secretAccessor"
    error_message = "it may read its secrets, each by itself"
  }

  assert {
    condition     = google_cloudfunctions2_function.this.service_config[0].secret_environment_variables[0].version == "3"
    error_message = "a new version of a secret is a new revision of the function"
  }

  assert {
    condition     = google_cloudfunctions2_function.this.service_config[0].ingress_settings == "ALLOW_INTERNAL_ONLY"
    error_message = "nobody from outside reaches a function that is not told to let them"
  }

  assert {
    condition     = length(google_cloudfunctions2_function.this.service_config[0].direct_vpc_network_interface) == 0
    error_message = "without vpc it goes out to the internet"
  }
}

run "through_the_network" {
  command = plan

  variables {
    installation = {
      project    = "my-project"
      region     = "europe-west1"
      name       = "pushpool"
      labels     = {}
      runtime    = "go126"
      bucket     = "source"
      object     = "source.zip"
      repository = "projects/my-project/locations/europe-west1/repositories/functions"
      builder    = "projects/my-project/serviceAccounts/build@my-project.iam.gserviceaccount.com"
      vpc        = { network = "default", subnetwork = "jobs", tags = ["prefect"] }
      kms_key    = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
    }
  }

  assert {
    condition     = google_cloudfunctions2_function.this.service_config[0].direct_vpc_network_interface[0].subnetwork == "jobs" && google_cloudfunctions2_function.this.service_config[0].direct_vpc_egress == "VPC_EGRESS_PRIVATE_RANGES_ONLY"
    error_message = "private addresses are reached by the network, Google's and others as before"
  }

  assert {
    condition     = google_cloudfunctions2_function.this.kms_key_name == var.installation.kms_key
    error_message = "its source and images are encrypted with the key"
  }
}

run "refused" {
  command = plan

  variables {
    size    = { cpu = "0.5", memory = "512Mi", concurrency = 80, max_instances = 3, timeout_seconds = 10 }
    ingress = "ALLOW_INTERNAL_AND_GCLB"
  }

  expect_failures = [var.size, var.ingress]
}

# What is set twice would be set to one of both, silently.
run "settings_that_have_a_variable_of_their_own" {
  command = plan

  variables {
    installation = {
      project    = "my-project"
      region     = "europe-west1"
      name       = "pushpool"
      labels     = {}
      runtime    = "go126"
      bucket     = "source"
      object     = "source.zip"
      repository = "projects/my-project/locations/europe-west1/repositories/functions"
      builder    = "projects/my-project/serviceAccounts/build@my-project.iam.gserviceaccount.com"
      settings   = { INSTALL_NAME = "other", START_DEADLINE = "20m" }
    }
  }

  expect_failures = [google_cloudfunctions2_function.this]
}
