output "name" {
  description = "The function's name, which is that of its Cloud Run service, too."
  value       = google_cloudfunctions2_function.this.name
}

output "uri" {
  description = "The address of the function's Cloud Run service, which is the audience that it expects."
  value       = google_cloudfunctions2_function.this.service_config[0].uri
}

output "email" {
  description = "The e-mail of the identity that the function runs as."
  value       = google_service_account.this.email
}

output "member" {
  description = "The identity that the function runs as, as IAM spells it."
  value       = google_service_account.this.member
}
