mock_provider "google" {}
mock_provider "archive" {}
mock_provider "random" {}
mock_provider "prefect" {}

variables {
  project         = "my-project"
  region          = "europe-west1"
  prefect_api_url = "https://prefect.example.com/api"
}

run "planned" {
  command = plan

  assert {
    condition     = module.prefect.work_pools == tolist(["weather"])
    error_message = "the work pool is the one that prefect.yaml names"
  }
}
