terraform {
  # Write-only arguments, by which no secret gets into plan or state, came with 1.11.
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.45, < 8"
    }
    archive = {
      source  = "hashicorp/archive"
      version = ">= 2.8, < 3"
    }
    random = {
      source  = "hashicorp/random"
      version = ">= 3.9, < 4"
    }
  }
}
