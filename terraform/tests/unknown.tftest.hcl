# What for_each and count go by must be known before anything is applied, whatever else is not.

mock_provider "google" {}
mock_provider "archive" {}
mock_provider "random" {}

run "values_that_are_known_after_apply" {
  command = plan

  module {
    source = "./tests/unknown"
  }
}
