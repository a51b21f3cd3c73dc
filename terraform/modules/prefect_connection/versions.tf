terraform {
  required_version = ">= 1.11"

  required_providers {
    prefect = {
      source  = "prefecthq/prefect"
      version = ">= 3.4, < 4"
    }
  }
}
