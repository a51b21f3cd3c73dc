# Applied to mocks, and planned once more; terraform/tests/connection_test.go holds what comes of
# it against what `pushpool connect` makes.

mock_provider "prefect" {}

variables {
  work_pools = {
    cloud-run = {}
    gpu       = { concurrency_limit = 2, job_variables = "{\"memory\":\"16Gi\",\"pushpool_fast_start\":true}" }
  }
  region               = "europe-west1"
  flow_service_account = "pushpool-flows@my-project.iam.gserviceaccount.com"
  vpc                  = { network = "default", subnetwork = "jobs", tags = ["flows"] }
  webhook_url          = "https://pushpool-webhook-abc.a.run.app"
  webhook_secret       = "sentinel-webhook-secret-value"
}

run "applied" {
  command = apply

  assert {
    condition     = jsondecode(prefect_work_pool.this["gpu"].base_job_template).variables.properties.memory.default == "16Gi"
    error_message = "a job variable's default is the pool's"
  }

  assert {
    condition     = jsondecode(prefect_work_pool.this["gpu"].base_job_template).variables.properties.pushpool_fast_start.default == true && !can(jsondecode(prefect_work_pool.this["cloud-run"].base_job_template).variables.properties.pushpool_fast_start)
    error_message = "an option is that of the pool that names it"
  }

  assert {
    condition     = alltrue([for p in prefect_work_pool.this : jsondecode(p.base_job_template).variables.properties.service_account_name.default == var.flow_service_account])
    error_message = "without a service account, jobs would run as the default compute identity, which the dispatcher may not act as"
  }

  # connection_test.go holds what `pushpool connect` writes against the same file.
  assert {
    condition     = local.webhook == jsondecode(file("${path.module}/tests/webhook-block.json"))
    error_message = "the webhook block is that of tests/webhook-block.json"
  }
}

run "planned_again" {
  command = plan
}

run "flows_by_the_internet" {
  command = plan

  variables {
    vpc = null
  }

  assert {
    condition = alltrue([
      for p in prefect_work_pool.this : jsondecode(p.base_job_template).job_configuration.job_body.template.template.vpcAccess == {
        connector = "{{ vpc_connector_name }}"
      }
    ])
    error_message = "without a network of the installation, a pool may name a connector"
  }
}

run "existing_work_pools" {
  command = plan

  variables {
    existing_work_pools = ["workers"]
  }

  assert {
    condition     = sort(keys(prefect_work_pool.this)) == tolist(["cloud-run", "gpu"]) && jsondecode(prefect_automation.this["webhook"].trigger.event.match_related)["prefect.resource.name"] == ["cloud-run", "gpu", "workers"]
    error_message = "a work pool that exists is watched, and not made"
  }
}

run "existing_work_pool_that_is_made" {
  command = plan

  variables {
    existing_work_pools = ["gpu"]
  }

  expect_failures = [var.existing_work_pools]
}

run "without_webhook" {
  command = plan

  variables {
    webhook     = false
    webhook_url = null
  }

  assert {
    condition     = length(prefect_block.webhook) == 0 && length(prefect_automation.this) == 0
    error_message = "without a webhook there is nobody to call"
  }
}

run "refused" {
  command = plan

  variables {
    work_pools = { "team-*" = { job_variables = "memory=1Gi" } }
  }

  expect_failures = [var.work_pools]
}
