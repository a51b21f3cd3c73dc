output "flow_runs_topic" {
  description = "The topic that takes run requests."
  value       = google_pubsub_topic.flow_runs.id
}

output "lifecycle_topic" {
  description = "The topic that each step of a launch is told on."
  value       = google_pubsub_topic.lifecycle.id
}

output "webhook_url" {
  description = "Where Prefect's automation sends events. null: there is no webhook."
  value       = one([for w in module.webhook : w.uri])
}

output "work_pools" {
  description = "The work pools that are served."
  value       = var.work_pools
}

output "flow_service_account" {
  description = "The e-mail of the identity that flows run as: service_account_name of the base job template."
  value       = google_service_account.flows.email
}

output "flow_repository" {
  description = "Where flows' images are pushed to. null: no repository was asked for."
  value = one([
    for r in google_artifact_registry_repository.flows : "${r.location}-docker.pkg.dev/${r.project}/${r.repository_id}"
  ])
}

output "dead_letter_subscriptions" {
  description = "The subscriptions from which dead letters are pulled."
  value       = [module.dispatcher.dead_letter_subscription, module.finalizer.dead_letter_subscription]
}

output "region" {
  description = "The region that jobs run in first."
  value       = local.job_regions[0]
}

output "log_query" {
  description = "The query of Cloud Logging that shows what the functions do; add labels.\"pushpool-flow-run\"=\"ID\" for one flow run."
  value       = local.functions_log_filter
}

output "dashboard" {
  description = "The address of the dashboard."
  value       = "https://console.cloud.google.com/monitoring/dashboards/builder/${reverse(split("/", google_monitoring_dashboard.this.id))[0]}?project=${var.project}"
}

output "source_files" {
  description = "What is in the functions' source archive."
  value       = module.source.files
}

output "sink_filter" {
  description = "Which log entries the finalizer is told of."
  value       = google_logging_project_sink.executions.filter
}

output "operator_env" {
  description = "What the command pushpool has to know of the installation, as the lines of a file .pushpool.env; without secrets."
  value = join("", [for name, value in merge(var.settings, local.dispatcher_environment, {
    DEAD_LETTER_TOPIC         = module.dispatcher.dead_letter_topic
    TOPIC_EXECUTIONS          = google_pubsub_topic.executions.name
    DEAD_LETTER_SUBSCRIPTIONS = join(",", [module.dispatcher.dead_letter_subscription, module.finalizer.dead_letter_subscription])
    FLOW_SERVICE_ACCOUNT      = google_service_account.flows.email
    SOURCE_BUCKET             = google_storage_bucket.source.name
    }, var.vpc == null ? {} : {
    FLOW_NETWORK      = var.vpc.network
    FLOW_SUBNETWORK   = var.vpc.subnetwork
    FLOW_NETWORK_TAGS = join(",", var.vpc.tags)
  }, { for w in module.webhook : "WEBHOOK_URL" => w.uri }) : "${name}=${value}\n" if value != null && value != ""])
}
