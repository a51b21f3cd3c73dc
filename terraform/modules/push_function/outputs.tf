output "name" {
  description = "The function's name."
  value       = module.function.name
}

output "uri" {
  description = "The function's address."
  value       = module.function.uri
}

output "email" {
  description = "The e-mail of the identity that the function runs as."
  value       = module.function.email
}

output "member" {
  description = "The identity that the function runs as, as IAM spells it."
  value       = module.function.member
}

output "environment" {
  description = "The environment variables that are set."
  value       = module.function.environment
}

output "max_delivery_attempts" {
  description = "How often the subscription delivers, and how often the function is told that it does."
  value = {
    subscription = google_pubsub_subscription.push.dead_letter_policy[0].max_delivery_attempts
    function     = var.max_delivery_attempts
  }
}

output "ack_deadline_seconds" {
  description = "How long the subscription waits for an acknowledgement."
  value       = google_pubsub_subscription.push.ack_deadline_seconds
}

output "timeout_seconds" {
  description = "How long the function may take for one message."
  value       = module.function.timeout_seconds
}

output "subscription" {
  description = "The name of the push subscription."
  value       = google_pubsub_subscription.push.name
}

output "dead_letter_subscription" {
  description = "The name of the subscription from which dead letters are pulled."
  value       = google_pubsub_subscription.dead_letter.name
}

output "dead_letter_topic" {
  description = "The name of the dead-letter topic."
  value       = google_pubsub_topic.dead_letter.name
}
