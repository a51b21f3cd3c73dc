# The functions' source: packed here, built by Cloud Build with the Go buildpack.

module "source" {
  source = "./modules/source"
}

data "archive_file" "source" {
  type        = "zip"
  output_path = "${path.root}/.terraform/${var.project}-${var.name}-source.zip"

  # File by file: what lies beside them on somebody's disk never gets into a function.
  dynamic "source" {
    for_each = module.source.files
    content {
      filename = source.value
      content  = file("${module.source.root}/${source.value}")
    }
  }
}

resource "google_storage_bucket" "source" {
  project                     = var.project
  name                        = "${var.project}-${var.name}-source-${random_id.suffix.hex}"
  location                    = var.region
  labels                      = local.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # it holds nothing but what is in the repository

  # Deleted archives would be kept, and paid for, another week.
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  dynamic "encryption" {
    for_each = var.kms_key == null ? [] : [google_kms_crypto_key_iam_member.agent["gs-project-accounts"].crypto_key_id]
    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_project_service.api]
}

resource "google_storage_bucket_object" "source" {
  bucket = google_storage_bucket.source.name
  # A new name for new content: this is what has the functions built again.
  name   = "source-${data.archive_file.source.output_sha256}.zip"
  source = data.archive_file.source.output_path

  # The functions name this object, and so wait for what their builds and their key need.
  depends_on = [
    google_kms_crypto_key_iam_member.agent,
    google_project_iam_member.build_logs,
    google_project_iam_member.build_copied_source,
    google_artifact_registry_repository_iam_member.build_images,
    google_storage_bucket_iam_member.build_source,
  ]
}

# Images of the functions, in a repository of ours that goes when we go.
resource "google_artifact_registry_repository" "functions" {
  project       = var.project
  location      = var.region
  repository_id = "${var.name}-functions"
  description   = "Images of the functions, built by Cloud Build."
  format        = "DOCKER"
  labels        = local.labels
  kms_key_name  = var.kms_key == null ? null : google_kms_crypto_key_iam_member.agent["gcp-sa-artifactregistry"].crypto_key_id

  cleanup_policies {
    id     = "keep-recent"
    action = "KEEP"
    most_recent_versions {
      keep_count = 3
    }
  }
  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"
    condition {
      older_than = "604800s"
    }
  }

  depends_on = [google_project_service.api]
}

resource "google_service_account" "build" {
  project      = var.project
  account_id   = "${var.name}-build"
  display_name = "${var.name}: builds the functions"

  depends_on = [google_project_service.api]
}

# Its own log lines. Cloud Logging has nothing narrower than the project.
resource "google_project_iam_member" "build_logs" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.build.member
}

resource "google_artifact_registry_repository_iam_member" "build_images" {
  project    = var.project
  location   = google_artifact_registry_repository.functions.location
  repository = google_artifact_registry_repository.functions.name
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.build.member
}

resource "google_storage_bucket_iam_member" "build_source" {
  bucket = google_storage_bucket.source.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.build.member
}

# Cloud Functions copies the archive to a bucket of its own, which the first deployment
# makes, and has it built from there.
resource "google_project_iam_member" "build_copied_source" {
  project = var.project
  role    = "roles/storage.objectViewer"
  member  = google_service_account.build.member

  condition {
    title       = "Cloud Functions' copy of the source"
    description = "Only the bucket to which Cloud Functions copies sources in this region"
    expression  = "resource.name.startsWith(\"projects/_/buckets/gcf-v2-sources-${data.google_project.this.number}-${var.region}\")"
  }
}
