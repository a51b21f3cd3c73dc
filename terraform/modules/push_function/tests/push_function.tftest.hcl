# One function and its subscription, planned by themselves: what both push functions rest on.

mock_provider "google" {
  override_during = plan

  mock_resource "google_service_account" {
    defaults = { email = "made@my-project.iam.gserviceaccount.com", member = "serviceAccount:made@my-project.iam.gserviceaccount.com" }
  }
  mock_resource "google_cloudfunctions2_function" {
    defaults = {
      service_config = { uri = "https://function-abc.a.run.app", service = "projects/my-project/locations/europe-west1/services/function" }
    }
  }
}

variables {
  installation = {
    project    = "my-project"
    region     = "europe-west1"
    name       = "pushpool"
    labels     = { installation = "pushpool" }
    runtime    = "go126"
    bucket     = "source"
    object     = "source.zip"
    repository = "projects/my-project/locations/europe-west1/repositories/functions"
    builder    = "projects/my-project/serviceAccounts/build@my-project.iam.gserviceaccount.com"
  }
  function     = "dispatcher"
  description  = "Starts one execution for each flow run that is due."
  size         = { cpu = "1", memory = "512Mi", concurrency = 80, max_instances = 2, timeout_seconds = 75 }
  environment  = { INSTALL_NAME = "pushpool" }
  topic        = { name = "flow-runs", id = "projects/my-project/topics/flow-runs" }
  pubsub_agent = "serviceAccount:service-123456789@gcp-sa-pubsub.iam.gserviceaccount.com"
}

run "nothing_is_lost" {
  command = plan

  assert {
    condition     = google_pubsub_subscription.push.expiration_policy[0].ttl == "" && google_pubsub_subscription.dead_letter.expiration_policy[0].ttl == ""
    error_message = "a subscription with any finite time vanishes after a month without messages"
  }

  assert {
    condition     = google_pubsub_subscription.push.message_retention_duration == "604800s" && google_pubsub_subscription.dead_letter.message_retention_duration == "2678400s"
    error_message = "messages are kept for a week, dead letters for 31 days"
  }

  assert {
    condition     = google_pubsub_subscription.push.ack_deadline_seconds == 90
    error_message = "a deadline below the function's time-out would have a message delivered twice at the same time"
  }

  assert {
    condition     = google_pubsub_topic_iam_member.dead_letter_agent.member == var.pubsub_agent && google_pubsub_subscription_iam_member.dead_letter_agent.role == "roles/pubsub.subscriber"
    error_message = "Pub/Sub moves a dead letter only where it may publish it and acknowledge it"
  }

  assert {
    condition     = module.function.name == "pushpool-dispatcher" && google_pubsub_topic.dead_letter.name == "flow-runs-dead-letter"
    error_message = "names are NAME-FUNCTION and TOPIC-dead-letter"
  }
}

run "only_pub_sub_calls_the_function" {
  command = plan

  assert {
    condition     = google_cloud_run_v2_service_iam_member.push.role == "roles/run.invoker" && google_cloud_run_v2_service_iam_member.push.member == google_service_account.push.member
    error_message = "the identity that pushes is who may call the function"
  }

  assert {
    condition     = google_pubsub_subscription.push.push_config[0].oidc_token[0].audience == module.function.uri && google_pubsub_subscription.push.push_config[0].push_endpoint == module.function.uri
    error_message = "Cloud Run refuses a token for another audience"
  }

  assert {
    condition     = google_service_account_iam_member.push_token.role == "roles/iam.serviceAccountOpenIdTokenCreator"
    error_message = "in old projects Pub/Sub makes tokens only where it is granted that"
  }
}

run "as_told" {
  command = plan

  variables {
    max_delivery_attempts = 5
    filter                = "attributes.kind = \"x\""
    topic_kms_key         = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
    size                  = { cpu = "2", memory = "1Gi", concurrency = 8, max_instances = 1, timeout_seconds = 600 }
  }

  assert {
    condition     = google_pubsub_subscription.push.dead_letter_policy[0].max_delivery_attempts == 5 && google_pubsub_subscription.push.filter == var.filter
    error_message = "attempts and filter are the subscription's"
  }

  assert {
    condition     = google_pubsub_topic.dead_letter.kms_key_name == var.topic_kms_key
    error_message = "dead letters are encrypted as their topic is"
  }

  assert {
    condition     = google_pubsub_subscription.push.ack_deadline_seconds == 600
    error_message = "Pub/Sub waits 600 s at most"
  }
}

run "refused" {
  command = plan

  variables {
    max_delivery_attempts = 101
    size                  = { cpu = "1", memory = "512Mi", concurrency = 80, max_instances = 2, timeout_seconds = 601 }
  }

  expect_failures = [var.max_delivery_attempts, var.size]
}
