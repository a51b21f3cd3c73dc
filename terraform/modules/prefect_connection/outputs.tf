output "work_pools" {
  description = "The names of the work pools."
  value       = sort([for p in prefect_work_pool.this : p.name])
}
