# Metrics of what the functions log. Labels are work pool and outcome: deployments would be without bound.

locals {
  services             = concat([for key in local.webhook_keys : "${var.name}-${key}"], ["${var.name}-dispatcher", "${var.name}-finalizer", "${var.name}-reconciler"])
  functions_log_filter = "resource.type=\"cloud_run_revision\" AND resource.labels.location=\"${var.region}\" AND resource.labels.service_name=(${join(" OR ", [for s in local.services : "\"${s}\""])})"

  finished = "jsonPayload.message=\"flow run finished\""
  seconds  = [0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600, 7200]

  # value: the field whose values are counted; without one the lines are.
  metrics = {
    flow_runs    = { filter = local.finished, title = "Flow runs that finished", labels = ["work_pool", "outcome"] }
    queue_delay  = { filter = local.finished, title = "Due → Cloud Run has the job", value = "queue_delay_s", unit = "s", bounds = local.seconds, labels = ["work_pool", "outcome"] }
    start_delay  = { filter = local.finished, title = "Cloud Run has the job → the flow runs", value = "start_delay_s", unit = "s", bounds = local.seconds, labels = ["work_pool", "outcome"] }
    end_to_final = { filter = local.finished, title = "Container ended → Prefect knows", value = "end_to_final_s", unit = "s", bounds = local.seconds, labels = ["work_pool", "outcome"] }
    cost         = { filter = local.finished, title = "Estimated cost of a flow run's container", value = "cost_usd_estimate", unit = "USD", bounds = [for i in range(24) : 0.00001 * pow(2, i)], labels = ["work_pool", "outcome"] }
    launched     = { filter = "jsonPayload.did=\"launched\"", title = "Launches", labels = [] }
    swept        = { filter = "jsonPayload.message=\"swept\"", title = "Sweeps that were complete", labels = [] }
    overdue      = { filter = "jsonPayload.message=\"swept\"", title = "Flow runs that should have been launched by now", value = "sweep.overdue", unit = "1", bounds = [for i in range(14) : pow(2, i) - 0.5], labels = [] }
    repaired     = { filter = "jsonPayload.message=(\"repaired\" OR \"left alone\")", title = "Differences that the sweep found", labels = [] }
    errors       = { filter = "severity>=ERROR", title = "Lines that ask for a person", labels = [] }
  }

  # As PromQL spells them. By way of the resource, so that an alert waits for its metric.
  promql = { for key, m in google_logging_metric.this : key => "logging_googleapis_com:user_${replace(m.name, "/[^a-zA-Z0-9]/", "_")}" }
  one    = "{monitored_resource=\"cloud_run_revision\"}"
}

resource "google_logging_metric" "this" {
  for_each = local.metrics

  project     = var.project
  name        = "${var.name}/${each.key}"
  description = "${each.value.title}."
  filter      = "${local.functions_log_filter} AND ${each.value.filter}"

  value_extractor  = try("EXTRACT(jsonPayload.${each.value.value})", null)
  label_extractors = length(each.value.labels) == 0 ? null : { for l in each.value.labels : l => "EXTRACT(jsonPayload.${l})" }

  metric_descriptor {
    display_name = each.value.title
    metric_kind  = "DELTA"
    value_type   = can(each.value.value) ? "DISTRIBUTION" : "INT64"
    unit         = try(each.value.unit, "1")

    dynamic "labels" {
      for_each = toset(each.value.labels)
      content {
        key        = labels.value
        value_type = "STRING"
      }
    }
  }

  dynamic "bucket_options" {
    for_each = can(each.value.bounds) ? [each.value.bounds] : []
    content {
      explicit_buckets {
        bounds = bucket_options.value
      }
    }
  }

  depends_on = [google_project_service.api]
}
