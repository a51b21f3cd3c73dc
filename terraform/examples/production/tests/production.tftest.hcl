mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789" }
  }
}
mock_provider "archive" {}
mock_provider "random" {}
mock_provider "prefect" {}

variables {
  project               = "my-project"
  region                = "europe-west1"
  second_region         = "europe-west4"
  prefect_api_url       = "http://prefect.internal:4200/api"
  prefect_auth_string   = "sentinel-user:sentinel-password"
  auth_string_secret    = "prefect-auth"
  webhook_secret        = "prefect-webhook"
  webhook_secret_value  = "sentinel-webhook-secret-value"
  network               = "default"
  subnetwork            = "default"
  flow_repository       = "flows"
  kms_key               = "projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/key"
  notification_channels = ["projects/my-project/notificationChannels/1"]
}

# With everything that is known only after apply: the identity of the flows, which goes into a
# map's values and a template, and must not decide what is made.
run "planned" {
  command = plan

  assert {
    condition     = module.pushpool.region == "europe-west1" && module.prefect.work_pools == tolist(["etl", "models"])
    error_message = "two work pools, and the first region first"
  }
}
