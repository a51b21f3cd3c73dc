# One function: identity, the secrets that it may read, the function.

resource "google_service_account" "this" {
  project      = var.installation.project
  account_id   = "${var.installation.name}-${var.function}"
  display_name = "${var.installation.name}: ${var.function}"
  description  = var.description
}

resource "google_secret_manager_secret_iam_member" "this" {
  for_each = var.secrets # by variable: a name may be known only after apply

  project   = var.installation.project
  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.this.member
}

resource "google_cloudfunctions2_function" "this" {
  project      = var.installation.project
  location     = var.installation.region
  name         = "${var.installation.name}-${var.function}"
  description  = var.description
  labels       = var.installation.labels
  kms_key_name = var.installation.kms_key

  build_config {
    runtime           = var.installation.runtime
    entry_point       = var.function
    docker_repository = var.installation.repository
    service_account   = var.installation.builder

    source {
      storage_source {
        bucket = var.installation.bucket
        object = var.installation.object
      }
    }
  }

  service_config {
    service_account_email            = google_service_account.this.email
    ingress_settings                 = var.ingress
    all_traffic_on_latest_revision   = true
    available_cpu                    = var.size.cpu
    available_memory                 = var.size.memory
    max_instance_request_concurrency = var.size.concurrency
    max_instance_count               = var.size.max_instances
    timeout_seconds                  = var.size.timeout_seconds
    environment_variables            = merge(var.installation.settings, var.environment)

    dynamic "secret_environment_variables" {
      for_each = var.secrets
      content {
        project_id = var.installation.project
        key        = secret_environment_variables.key
        secret     = secret_environment_variables.value.secret
        version    = secret_environment_variables.value.version
      }
    }

    direct_vpc_egress = var.installation.vpc == null ? null : "VPC_EGRESS_PRIVATE_RANGES_ONLY"
    dynamic "direct_vpc_network_interface" {
      for_each = var.installation.vpc == null ? [] : [var.installation.vpc]
      content {
        network    = direct_vpc_network_interface.value.network
        subnetwork = direct_vpc_network_interface.value.subnetwork
        tags       = direct_vpc_network_interface.value.tags
      }
    }
  }

  # Without the grant the first revision does not start, and the apply fails.
  depends_on = [google_secret_manager_secret_iam_member.this]

  lifecycle {
    precondition {
      condition     = length(setintersection(keys(var.installation.settings), keys(var.environment))) == 0
      error_message = "settings: leave out ${join(", ", setintersection(keys(var.installation.settings), keys(var.environment)))}: the module sets it, by a variable of its own or by itself."
    }
  }
}
