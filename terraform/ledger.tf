# The ledger. Its loss costs time and no flow run, so it goes with the installation.
resource "google_firestore_database" "ledger" {
  project                 = var.project
  name                    = "${var.name}-ledger"
  location_id             = var.region
  type                    = "FIRESTORE_NATIVE"
  delete_protection_state = "DELETE_PROTECTION_DISABLED"
  # Else destroy would leave it, and the next installation would meet its name taken.
  deletion_policy = "DELETE"

  dynamic "cmek_config" {
    for_each = var.kms_key == null ? [] : [google_kms_crypto_key_iam_member.agent["gcp-sa-firestore"].crypto_key_id]
    content {
      kms_key_name = cmek_config.value
    }
  }

  depends_on = [google_project_service.api]
}

# Reported launches are deleted a while after their end, so that the ledger does not grow.
resource "google_firestore_field" "expire_at" {
  project    = var.project
  database   = google_firestore_database.ledger.name
  collection = "flowRuns"
  field      = "expireAt"

  ttl_config {}

  # Nobody asks for it, and an index of times that only grow is written at one place.
  index_config {}
}

# Every indexed field is written again with each change, and every element of a list is an entry
# of its own. These are large, or change often, and no query names them.
resource "google_firestore_field" "unindexed" {
  for_each = merge([
    for collection, fields in {
      flowRuns  = ["previous", "reason", "report", "resources", "retried", "retries", "leaseHolder", "leaseUntil"]
      workPools = ["leaseHolder", "leaseUntil"]
      regions   = ["slots", "spans", "last"]
    } : { for field in fields : "${collection}/${field}" => { collection = collection, field = field } }
  ]...)

  project    = var.project
  database   = google_firestore_database.ledger.name
  collection = each.value.collection
  field      = each.value.field

  index_config {}
}

# Read and write documents of this database, and of no other.
resource "google_project_iam_member" "ledger" {
  for_each = local.settlers

  project = var.project
  role    = "roles/datastore.user"
  member  = each.value

  condition {
    title       = "${var.name}'s ledger"
    description = "Firestore grants by project; the condition narrows it to one database"
    expression  = "resource.name == \"projects/${var.project}/databases/${google_firestore_database.ledger.name}\""
  }
}
