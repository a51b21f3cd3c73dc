# With a key: each service's agent may use it before the service stores something with it.
# The agents of Secret Manager and Firestore have to be made by hand, see the README.
resource "google_kms_crypto_key_iam_member" "agent" {
  for_each = var.kms_key == null ? {} : local.agent

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = each.value

  depends_on = [google_project_service.api]
}

locals {
  topic_kms_key = var.kms_key == null ? null : google_kms_crypto_key_iam_member.agent["gcp-sa-pubsub"].crypto_key_id
}
