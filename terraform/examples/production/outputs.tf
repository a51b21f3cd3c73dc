output "dashboard" {
  description = "The address of the dashboard."
  value       = module.pushpool.dashboard
}

output "operator_env" {
  description = "What the command pushpool has to know."
  value       = module.pushpool.operator_env
}
