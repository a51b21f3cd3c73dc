# Secrets of the module, or names of secrets that exist. Values are write-only: neither plan nor state holds one.

locals {
  wanted = {
    api-key         = var.prefect_api_key
    auth-string     = var.prefect_auth_string
    webhook-secrets = var.webhook == "none" ? null : var.webhook_secrets
  }
  made = { for key, s in local.wanted : key => s.version if s == null ? false : s.version != null }

  # What a function is given of a secret. By way of the version, so that it waits for the value; by its
  # number, so that it starts anew with a new one. Of a secret that somebody else fills, the newest
  # at the time of the start.
  reference = {
    for key in ["api-key", "auth-string"] : key => (
      contains(keys(local.made), key)
      ? { secret = reverse(split("/", google_secret_manager_secret_version.this[key].secret))[0], version = google_secret_manager_secret_version.this[key].version }
      : local.wanted[key] == null ? null : { secret = local.wanted[key].secret, version = "latest" }
    )
  }
  webhook_reference = var.webhook_secrets.version == null ? { secret = var.webhook_secrets.secret, version = "latest" } : one([
    for v in google_secret_manager_secret_version.webhook : { secret = reverse(split("/", v.secret))[0], version = v.version }
  ])

  api_key     = try(local.reference["api-key"].secret, null)
  auth_string = try(local.reference["auth-string"].secret, null)
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
  for_each = { for key, version in local.made : key => version if key != "webhook-secrets" }

  secret                 = google_secret_manager_secret.this[each.key].id
  secret_data_wo_version = each.value
  secret_data_wo         = each.key == "api-key" ? var.prefect_api_key_value : var.prefect_auth_string_value

  # The old version stays: instances read it until the functions are there that read the new one.
  deletion_policy = "ABANDON"
}

resource "google_secret_manager_secret_version" "webhook" {
  for_each = { for key, version in local.made : key => version if key == "webhook-secrets" }

  secret                 = google_secret_manager_secret.this[each.key].id
  secret_data_wo_version = each.value
  secret_data_wo         = var.webhook_secrets_value
  deletion_policy        = "ABANDON"

  # What stops a first apply is mostly a grant that the first builds do not see yet. The next apply
  # would tell Prefect another random secret than the one that is written here: so this comes late.
  depends_on = [module.dispatcher, module.finalizer, module.reconciler]
}
