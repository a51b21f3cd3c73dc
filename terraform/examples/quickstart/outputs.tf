output "publish" {
  description = "Asks for a flow run."
  value       = "gcloud pubsub topics publish ${module.pushpool.flow_runs_topic} --message='{\"deployment\": \"FLOW/DEPLOYMENT\"}'"
}

output "logs" {
  description = "Shows what the functions did."
  value       = "gcloud logging read '${module.pushpool.log_query}' --project=${var.project} --freshness=10m --format='value(timestamp,severity,jsonPayload.message,jsonPayload.flow_run_id)'"
}

output "dashboard" {
  description = "The address of the dashboard."
  value       = module.pushpool.dashboard
}

output "operator_env" {
  description = "What the command pushpool has to know: terraform output -raw operator_env > .pushpool.env"
  value       = module.pushpool.operator_env
}

output "next_step" {
  description = "What to do now."
  value       = "Deploy a flow to work pool ${join(" or ", setunion(var.work_pools, var.existing_work_pools))}, with an image in a registry that ${module.pushpool.flow_service_account} can read, and Quick Run it in Prefect; examples/weather shows how."
}
