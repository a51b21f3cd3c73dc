locals {
  services             = concat([for key in local.webhook_keys : "${var.name}-${key}"], ["${var.name}-dispatcher", "${var.name}-finalizer", "${var.name}-reconciler"])
  functions_log_filter = "resource.type=\"cloud_run_revision\" AND resource.labels.location=\"${var.region}\" AND resource.labels.service_name=(${join(" OR ", [for s in local.services : "\"${s}\""])})"
}
