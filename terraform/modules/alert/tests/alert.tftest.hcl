mock_provider "google" {}

variables {
  installation          = { project = "my-project", name = "pushpool", labels = {} }
  title                 = "no complete sweep for five minutes"
  query                 = "absent_over_time(x[5m])"
  minutes               = 5
  severity              = "CRITICAL"
  playbook              = join("", [for i in range(20) : "what to do "])
  notification_channels = ["projects/my-project/notificationChannels/1"]
}

run "a_person_is_told_what_to_do" {
  command = plan

  assert {
    condition     = google_monitoring_alert_policy.this.documentation[0].content == var.playbook && google_monitoring_alert_policy.this.display_name == "pushpool: no complete sweep for five minutes"
    error_message = "an alert carries its playbook, and says whose it is"
  }

  assert {
    condition     = google_monitoring_alert_policy.this.conditions[0].condition_prometheus_query_language[0].duration == "300s" && google_monitoring_alert_policy.this.notification_channels == tolist(var.notification_channels)
    error_message = "it waits as long as it is told, and goes to the channels"
  }
}

# An alert without duration shows in every plan; one without playbook, or with a playbook that Cloud
# Monitoring cuts off, helps nobody at three in the morning.
run "refused" {
  command = plan

  variables {
    minutes  = 0
    severity = "INFO"
    playbook = "look at the logs"
  }

  expect_failures = [var.minutes, var.severity, var.playbook]
}

run "too_long" {
  command = plan

  variables {
    playbook = join("", [for i in range(900) : "what to do"])
  }

  expect_failures = [var.playbook]
}
