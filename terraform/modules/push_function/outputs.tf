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
