# When a person has to look. Each comes with its playbook; those about dead letters and messages
# that wait are in modules/push_function.

locals {
  alerts = {
    progress = {
      title    = "flow runs are due and none is launched"
      severity = "CRITICAL"
      minutes  = 5
      # What waits for a limit, a pause or capacity is not overdue.
      query = "sum(increase(${local.promql.overdue}_sum${local.one}[10m])) > 0 unless sum(increase(${local.promql.launched}${local.one}[10m])) > 0"
    }
    tick = {
      title    = "no complete sweep for five minutes"
      severity = "CRITICAL"
      minutes  = 1
      query    = "absent_over_time(${local.promql.swept}${local.one}[5m])"
    }
    drift = {
      title    = "the sweep repairs more than events lose"
      severity = "WARNING"
      minutes  = 10
      query    = "sum(increase(${local.promql.repaired}${local.one}[30m])) > ${var.alert_thresholds.repairs_in_30_minutes}"
    }
    crashes = {
      title    = "flow runs crash for one reason"
      severity = "ERROR"
      minutes  = 5
      # A flow that fails by its own exception exits with 0: that is an outcome of its own, and no crash.
      query = join(" ", [
        "sum by (outcome) (increase(${local.promql.flow_runs}{monitored_resource=\"cloud_run_revision\",outcome!~\"succeeded|cancelled\"}[1h]))",
        "/ on () group_left () sum(increase(${local.promql.flow_runs}${local.one}[1h])) > ${var.alert_thresholds.crash_rate}",
        "and on () sum(increase(${local.promql.flow_runs}${local.one}[1h])) >= 5",
      ])
    }
    quota = {
      title    = "a quota of Cloud Run is used to 80 %"
      severity = "WARNING"
      minutes  = 3
      query = join(" ", [
        "sum by (location, quota_metric) (increase(serviceruntime_googleapis_com:quota_rate_net_usage{monitored_resource=\"consumer_quota\",service=\"run.googleapis.com\"}[1m]))",
        "/ on (location, quota_metric) max by (location, quota_metric) (last_over_time(serviceruntime_googleapis_com:quota_limit{monitored_resource=\"consumer_quota\",service=\"run.googleapis.com\"}[1d])) > 0.8",
      ])
    }
    errors = {
      title    = "functions log errors"
      severity = "ERROR"
      minutes  = 1
      query    = "sum(increase(${local.promql.errors}${local.one}[10m])) > ${var.alert_thresholds.errors_in_10_minutes}"
    }
  }

  playbook = {
    project = var.project
    region  = var.region
    name    = var.name
    pools   = join(", ", var.work_pools)
    logs    = local.functions_log_filter
  }
}

module "alert" {
  source   = "./modules/alert"
  for_each = local.alerts

  installation          = local.installation
  title                 = each.value.title
  severity              = each.value.severity
  query                 = each.value.query
  minutes               = each.value.minutes
  playbook              = templatefile("${path.module}/playbooks/${each.key}.md", local.playbook)
  notification_channels = var.notification_channels
}

resource "google_monitoring_custom_service" "this" {
  project      = var.project
  service_id   = var.name
  display_name = var.name
  user_labels  = local.labels

  depends_on = [google_project_service.api]
}

# From Cloud Run's acceptance of the job to the flow's first line, which is what people wait for.
resource "google_monitoring_slo" "start" {
  project             = var.project
  service             = google_monitoring_custom_service.this.service_id
  slo_id              = "start"
  display_name        = "${var.start_slo.goal * 100} % of flow runs start within ${var.start_slo.seconds} s"
  goal                = var.start_slo.goal
  rolling_period_days = 28
  user_labels         = local.labels

  request_based_sli {
    distribution_cut {
      distribution_filter = "metric.type=\"logging.googleapis.com/user/${google_logging_metric.this["start_delay"].name}\" AND resource.type=\"cloud_run_revision\""
      range {
        max = var.start_slo.seconds
      }
    }
  }
}

# Fast: 2 % of the month's budget within an hour, 14.4 times the rate that would just use it up; over
# five minutes, too, so that it ends when the trouble does (https://sre.google/workbook/alerting-on-slos/).
resource "google_monitoring_alert_policy" "burn_rate" {
  project      = var.project
  display_name = "${var.name}: flow runs start too late"
  combiner     = "AND"
  severity     = "ERROR"
  user_labels  = local.labels

  dynamic "conditions" {
    for_each = ["3600s", "300s"]
    content {
      display_name = "burn rate over ${conditions.value}"
      condition_threshold {
        filter          = "select_slo_burn_rate(\"${google_monitoring_slo.start.name}\", \"${conditions.value}\")"
        comparison      = "COMPARISON_GT"
        threshold_value = 14.4
        duration        = "0s"
        trigger {
          count = 1
        }
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = templatefile("${path.module}/playbooks/start.md", local.playbook)
  }

  notification_channels = var.notification_channels
}
