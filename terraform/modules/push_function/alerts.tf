module "dead_letter" {
  source = "../alert"

  installation          = var.installation
  title                 = "${var.topic.name}: a message could not be processed"
  severity              = "ERROR"
  query                 = "max(pubsub_googleapis_com:subscription_num_undelivered_messages{monitored_resource=\"pubsub_subscription\",subscription_id=\"${google_pubsub_subscription.dead_letter.name}\"}) > 0"
  minutes               = 1
  playbook              = templatefile("${path.module}/playbooks/dead_letter.md", local.playbook)
  notification_channels = var.notification_channels
}

module "backlog" {
  source = "../alert"

  installation          = var.installation
  title                 = "${var.topic.name}: messages wait for ${var.function}"
  severity              = "CRITICAL"
  query                 = "max(pubsub_googleapis_com:subscription_oldest_unacked_message_age{monitored_resource=\"pubsub_subscription\",subscription_id=\"${google_pubsub_subscription.push.name}\"}) > 600"
  minutes               = 5
  playbook              = templatefile("${path.module}/playbooks/backlog.md", local.playbook)
  notification_channels = var.notification_channels
}

locals {
  playbook = {
    project      = var.installation.project
    region       = var.installation.region
    function     = var.function
    service      = "${var.installation.name}-${var.function}"
    topic        = var.topic.name
    subscription = google_pubsub_subscription.push.name
    dead_letter  = google_pubsub_subscription.dead_letter.name
    attempts     = var.max_delivery_attempts
  }
}
