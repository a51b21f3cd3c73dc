# Secrets of the module, or names of secrets that exist. Values are write-only: neither plan nor state holds one.

locals {
  wanted = {
    api-key         = var.prefect_api_key
    auth-string     = var.prefect_auth_string
    webhook-secrets = var.webhook == "none" ? null : var.webhook_secrets
  }
  made = { for key, s in local.wanted : key => s.version if s == null ? false : s.version != null }
  # By way of the version, so that a function which reads one waits for its value.
  secret = {
    for key, s in local.wanted : key => (
      s == null ? null : s.version == null ? s.secret : reverse(split("/", google_secret_manager_secret_version.this[key].secret))[0]
    )
  }

  api_key     = local.secret["api-key"]
  auth_string = local.secret["auth-string"]

  # What a function is given of a secret. By its number, so that a new value has the function start
  # anew; of a secret that somebody else fills, the newest at the time of the start.
  reference = {
    for key, s in local.wanted : key => (
      s == null ? null : { secret = local.secret[key], version = s.version == null ? "latest" : google_secret_manager_secret_version.this[key].version }
    )
  }
}

resource "google_secret_manager_secret" "this" {
  for_each = local.made

  project   = var.project
  secret_id = "${var.name}-${each.key}"
  labels    = local.labels

  replication {
    # A key of one region can only encrypt a secret that is kept in that region.
    dynamic "auto" {
      for_each = var.kms_key == null ? [true] : []
      content {}
    }
    dynamic "user_managed" {
      for_each = var.kms_key == null ? [] : [google_kms_crypto_key_iam_member.agent["gcp-sa-secretmanager"].crypto_key_id]
      content {
        replicas {
          location = var.region
          customer_managed_encryption {
            kms_key_name = user_managed.value
          }
        }
      }
    }
  }

  depends_on = [google_project_service.api]
}

resource "google_secret_manager_secret_version" "this" {
  for_each = local.made

  secret = google_secret_manager_secret.this[each.key].id
  # In another region the webhook has another address, and Prefect's block is written with it. A
  # secret that is random (examples/quickstart) has to be written in the same apply.
  secret_data_wo_version = "${each.value} ${var.region}"
  secret_data_wo = {
    api-key         = var.prefect_api_key_value
    auth-string     = var.prefect_auth_string_value
    webhook-secrets = var.webhook_secrets_value
  }[each.key]

  lifecycle {
    # The old version stays until the functions read the new one.
    create_before_destroy = true
  }
}
