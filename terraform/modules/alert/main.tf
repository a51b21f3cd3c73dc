# One alert: a query in PromQL that returns something when a person has to look, and the playbook for that person.
#
# PromQL, and not a filter: Cloud Monitoring refuses filters on log-based metrics until the first
# of their lines was written.

resource "google_monitoring_alert_policy" "this" {
  project      = var.installation.project
  display_name = "${var.installation.name}: ${var.title}"
  combiner     = "OR"
  severity     = var.severity
  user_labels  = var.installation.labels

  conditions {
    display_name = var.title

    condition_prometheus_query_language {
      query                     = var.query
      duration                  = "${var.minutes * 60}s"
      evaluation_interval       = "60s"
      disable_metric_validation = true
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = var.playbook
  }

  notification_channels = var.notification_channels
}
