# One page: is it alive, how long do people wait, how do flow runs end, what does it cost.
# Zeros and empty values are left out: Cloud Monitoring does not give them back, and every plan would show them.

locals {
  charts = [
    { title = "Flow runs that finished, by outcome", unit = "1", queries = { "{{outcome}}" = "sum by (outcome) (increase(${local.promql.flow_runs}${local.one}[5m]))" } },
    { title = "Launches, and what is overdue", unit = "1", queries = {
      launched = "sum(increase(${local.promql.launched}${local.one}[5m]))"
      overdue  = "sum(increase(${local.promql.overdue}_sum${local.one}[5m]))"
    } },
    { title = "Due → Cloud Run has the job", unit = "s", queries = { for p in ["0.5", "0.95"] : "{{work_pool}} ${p}" => "histogram_quantile(${p}, sum by (le, work_pool) (increase(${local.promql.queue_delay}_bucket${local.one}[10m])))" } },
    { title = "Cloud Run has the job → the flow runs", unit = "s", queries = { for p in ["0.5", "0.95"] : "{{work_pool}} ${p}" => "histogram_quantile(${p}, sum by (le, work_pool) (increase(${local.promql.start_delay}_bucket${local.one}[10m])))" } },
    { title = "Container ended → Prefect knows", unit = "s", queries = { for p in ["0.5", "0.95"] : "{{work_pool}} ${p}" => "histogram_quantile(${p}, sum by (le, work_pool) (increase(${local.promql.end_to_final}_bucket${local.one}[10m])))" } },
    { title = "Estimated cost of containers, USD an hour", unit = "1", queries = { "{{work_pool}}" = "sum by (work_pool) (increase(${local.promql.cost}_sum${local.one}[1h]))" } },
    { title = "Sweeps and repairs", unit = "1", queries = {
      sweeps  = "sum(increase(${local.promql.swept}${local.one}[5m]))"
      repairs = "sum(increase(${local.promql.repaired}${local.one}[5m]))"
    } },
    { title = "Oldest message that waits", unit = "s", queries = {
      "{{subscription_id}}" = "max by (subscription_id) (pubsub_googleapis_com:subscription_oldest_unacked_message_age{monitored_resource=\"pubsub_subscription\",subscription_id=~\"${module.dispatcher.subscription}|${module.finalizer.subscription}\"})"
    } },
    { title = "Dead letters", unit = "1", queries = {
      "{{subscription_id}}" = "max by (subscription_id) (pubsub_googleapis_com:subscription_num_undelivered_messages{monitored_resource=\"pubsub_subscription\",subscription_id=~\"${module.dispatcher.dead_letter_subscription}|${module.finalizer.dead_letter_subscription}\"})"
    } },
  ]
}

resource "google_monitoring_dashboard" "this" {
  project = var.project

  dashboard_json = jsonencode({
    displayName = var.name
    gridLayout = {
      columns = "2"
      widgets = concat([for c in local.charts : {
        title = c.title
        xyChart = {
          dataSets = [for legend, query in c.queries : {
            legendTemplate  = legend
            plotType        = "LINE"
            targetAxis      = "Y1"
            timeSeriesQuery = { prometheusQuery = query, unitOverride = c.unit }
          }]
        }
        }], [{
        title     = "Lines that ask for a person"
        logsPanel = { filter = "${local.functions_log_filter} AND severity>=WARNING" }
      }])
    }
  })

  depends_on = [google_project_service.api]
}
