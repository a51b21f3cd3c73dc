# What flows run as, and what their images come from.

# Name it in the work pool's base job template: without a name there, jobs would run as the
# default compute identity, and nobody here may act as that.
resource "google_service_account" "flows" {
  project      = var.project
  account_id   = "${var.name}-flows"
  display_name = "${var.name}: flows"
  description  = "Grant it what your flows need."

  depends_on = [google_project_service.api]
}

locals {
  # Keys are known before anything is applied; e-mails need not be.
  flow_identities = merge(
    { own = google_service_account.flows.email },
    { for key, email in var.flow_service_accounts : "given-${key}" => email },
  )

  flow_secrets = merge(
    var.prefect_api_key == null ? {} : { api-key = local.api_key },
    var.prefect_auth_string == null ? {} : { auth-string = local.auth_string },
  )
  flow_secret_readers = {
    for pair in setproduct(keys(local.flow_identities), keys(local.flow_secrets)) :
    "${pair[0]}/${pair[1]}" => { email = local.flow_identities[pair[0]], secret = local.flow_secrets[pair[1]] }
  }

  repositories = merge(
    { for key, r in var.flow_repositories : "given-${key}" => { project = coalesce(r.project, var.project), location = r.location, repository = r.repository } },
    var.create_flow_repository ? { own = { project = var.project, location = var.region, repository = google_artifact_registry_repository.flows[0].name } } : {},
  )
}

# Flows call Prefect, too: their containers get the secret by reference.
resource "google_secret_manager_secret_iam_member" "flows" {
  for_each = local.flow_secret_readers

  project   = var.project
  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${each.value.email}"
}

resource "google_artifact_registry_repository" "flows" {
  count = var.create_flow_repository ? 1 : 0

  project       = var.project
  location      = var.region
  repository_id = "${var.name}-flows"
  description   = "Images of flows."
  format        = "DOCKER"
  labels        = local.labels
  kms_key_name  = var.kms_key == null ? null : google_kms_crypto_key_iam_member.agent["gcp-sa-artifactregistry"].crypto_key_id

  depends_on = [google_project_service.api]
}

# Cloud Run checks that whoever creates a job can read its image.
resource "google_artifact_registry_repository_iam_member" "flows" {
  for_each = local.repositories

  project    = each.value.project
  location   = each.value.location
  repository = each.value.repository
  role       = "roles/artifactregistry.reader"
  member     = module.dispatcher.member
}

# Who creates a job has to be allowed to act as the identity that it runs as: these, and no other.
resource "google_service_account_iam_member" "flows" {
  for_each = local.flow_identities

  service_account_id = each.key == "own" ? google_service_account.flows.name : "projects/-/serviceAccounts/${each.value}"
  role               = "roles/iam.serviceAccountUser"
  member             = module.dispatcher.member
}
