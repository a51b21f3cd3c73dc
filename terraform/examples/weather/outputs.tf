output "image" {
  description = "The image of the flow, without its tag: export IMAGE=$(terraform output -raw image)"
  value       = "${module.pushpool.flow_repository}/weather"
}

output "operator_env" {
  description = "What the command pushpool has to know: terraform output -raw operator_env > .pushpool.env"
  value       = module.pushpool.operator_env
}

output "publish" {
  description = "Asks for a flow run."
  value       = "gcloud pubsub topics publish ${module.pushpool.flow_runs_topic} --message='{\"deployment\": \"weather/guide\", \"parameters\": {\"city\": \"Madrid\"}}'"
}
