# One function that a topic's messages are pushed to, from top to bottom: the function with its
# identity, the identity that pushes, the dead letters, the subscription. alerts.tf watches them.

module "function" {
  source = "../function"

  installation = var.installation
  function     = var.function
  description  = var.description
  size         = var.size
  secrets      = var.secrets

  # Pub/Sub reaches the function from inside the project.
  ingress = "ALLOW_INTERNAL_ONLY"

  environment = merge(var.environment, {
    DEAD_LETTER_TOPIC     = google_pubsub_topic.dead_letter.name
    MAX_DELIVERY_ATTEMPTS = tostring(var.max_delivery_attempts)
  })
}

# An identity for this one subscription: it may call this one function, and nothing else.
resource "google_service_account" "push" {
  project      = var.installation.project
  account_id   = "${var.installation.name}-${var.function}-push"
  display_name = "${var.installation.name}: pushes to ${var.function}"
}

resource "google_cloud_run_v2_service_iam_member" "push" {
  project  = var.installation.project
  location = var.installation.region
  name     = module.function.name
  role     = "roles/run.invoker"
  member   = google_service_account.push.member
}

# In projects of before April 2021 Pub/Sub may not make tokens by itself
# (https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions).
resource "google_service_account_iam_member" "push_token" {
  service_account_id = google_service_account.push.name
  role               = "roles/iam.serviceAccountOpenIdTokenCreator"
  member             = var.pubsub_agent
}

resource "google_pubsub_topic" "dead_letter" {
  project      = var.installation.project
  name         = "${var.topic.name}-dead-letter"
  labels       = var.installation.labels
  kms_key_name = var.topic_kms_key
}

# A topic keeps nothing by itself: without this subscription dead letters would be gone.
resource "google_pubsub_subscription" "dead_letter" {
  project                    = var.installation.project
  name                       = "${var.topic.name}-dead-letter"
  topic                      = google_pubsub_topic.dead_letter.id
  labels                     = var.installation.labels
  ack_deadline_seconds       = 60
  message_retention_duration = "2678400s" # 31 days, the longest there is

  # With any finite time it would vanish after a month without dead letters, and nobody would notice.
  expiration_policy {
    ttl = ""
  }
}

# The function itself moves what can never be processed, with the reason as an attribute.
resource "google_pubsub_topic_iam_member" "dead_letter_function" {
  project = var.installation.project
  topic   = google_pubsub_topic.dead_letter.name
  role    = "roles/pubsub.publisher"
  member  = module.function.member
}

# Pub/Sub moves what failed too often.
resource "google_pubsub_topic_iam_member" "dead_letter_agent" {
  project = var.installation.project
  topic   = google_pubsub_topic.dead_letter.name
  role    = "roles/pubsub.publisher"
  member  = var.pubsub_agent
}

resource "google_pubsub_subscription" "push" {
  project = var.installation.project
  name    = "${var.topic.name}-${var.function}"
  topic   = var.topic.id
  labels  = var.installation.labels
  filter  = var.filter

  # A delivery that is still worked on must not be made again at the same time.
  ack_deadline_seconds = min(600, var.size.timeout_seconds + 15)

  message_retention_duration = "604800s" # a week's outage loses nothing

  expiration_policy {
    ttl = ""
  }

  push_config {
    push_endpoint = module.function.uri

    oidc_token {
      service_account_email = google_service_account.push.email
      audience              = module.function.uri
    }
  }

  retry_policy {
    minimum_backoff = "10s"
    maximum_backoff = "600s"
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead_letter.id
    max_delivery_attempts = var.max_delivery_attempts
  }

  # Messages pushed before the grants are there would use up delivery attempts.
  depends_on = [
    google_cloud_run_v2_service_iam_member.push,
    google_service_account_iam_member.push_token,
    google_pubsub_topic_iam_member.dead_letter_agent,
  ]
}

# To move a message, Pub/Sub acknowledges it on the subscription it came from.
resource "google_pubsub_subscription_iam_member" "dead_letter_agent" {
  project      = var.installation.project
  subscription = google_pubsub_subscription.push.name
  role         = "roles/pubsub.subscriber"
  member       = var.pubsub_agent
}
