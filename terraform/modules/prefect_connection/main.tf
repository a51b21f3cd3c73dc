# Prefect's side of an installation: the work pools, and how Prefect tells of their flow runs.
# `pushpool connect` does the same over REST, for those who do not have this provider.

locals {
  # What `prefect work-pool get-default-base-job-template --type cloud-run-v2` prints (prefect-gcp 0.6.22).
  # A copy, and not what the server has at the time: that changes with the server, and so would each plan.
  template = jsondecode(file("${path.module}/base-job-template.json"))

  # Prefect's template knows connectors only; Direct VPC egress goes where its connector is.
  job_body = local.template.job_configuration.job_body
  task     = local.job_body.template.template
  vpc_access = jsondecode(var.vpc == null ? jsonencode(local.task.vpcAccess) : jsonencode({
    egress            = "PRIVATE_RANGES_ONLY"
    networkInterfaces = [var.vpc]
  }))
  job_configuration = merge(local.template.job_configuration, {
    job_body = merge(local.job_body, {
      template = merge(local.job_body.template, { template = merge(local.task, { vpcAccess = local.vpc_access }) })
    })
  })

  # Without a service account here, jobs would run as the default compute identity, and the
  # dispatcher may not act as that.
  defaults = {
    for pool, p in var.work_pools : pool => merge(
      { region = var.region, service_account_name = var.flow_service_account },
      jsondecode(p.job_variables),
    )
  }

  templates = {
    for pool, defaults in local.defaults : pool => merge(local.template, {
      job_configuration = local.job_configuration
      variables = merge(local.template.variables, {
        properties = merge(local.template.variables.properties, {
          for name, value in defaults : name => merge(
            # Variables that the template does not have are options of pushpool.
            { title = name, description = "An option of pushpool." },
            lookup(local.template.variables.properties, name, {}),
            { default = value },
          )
        })
      })
    })
  }

  webhook_keys = toset(var.webhook ? ["webhook"] : [])
  webhook = {
    method             = "POST"
    url                = var.webhook_url
    allow_private_urls = true
    verify             = true
    headers = {
      "Content-Type" = "application/json" # Prefect sends none by itself
      Authorization  = "Bearer ${var.webhook_secret == null ? "" : var.webhook_secret}"
    }
  }
}

resource "prefect_work_pool" "this" {
  for_each = var.work_pools

  name              = each.key
  type              = "cloud-run-v2"
  description       = each.value.description
  concurrency_limit = each.value.concurrency_limit
  paused            = each.value.paused
  base_job_template = jsonencode(local.templates[each.key])
}

# data_wo is in neither plan nor state.
resource "prefect_block" "webhook" {
  for_each = local.webhook_keys

  name      = var.name
  type_slug = "webhook"

  data_wo = jsonencode(local.webhook)
  # Another address is written as well, without a version raised by hand.
  data_wo_version = var.webhook_secret_version * 16777216 + parseint(substr(sha256(var.webhook_url), 0, 6), 16)
}

resource "prefect_automation" "this" {
  for_each = local.webhook_keys

  name        = var.name
  description = "Tells ${var.name} about flow runs."
  enabled     = true

  trigger = {
    event = {
      posture = "Reactive"
      # By type of state, since a state may have any name: those that ask for a launch, for its
      # end, and those after which a limit may have a free slot.
      match = jsonencode({
        "prefect.resource.id" = "prefect.flow-run.*"
        "prefect.state-type"  = ["SCHEDULED", "CANCELLING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
      })
      match_related = jsonencode({
        "prefect.resource.role" = "work-pool"
        "prefect.resource.name" = sort(setunion(keys(var.work_pools), var.existing_work_pools))
      })
      expect    = ["prefect.flow-run.*"]
      for_each  = ["prefect.resource.id"]
      threshold = 1
      within    = 0
    }
  }

  actions = [{
    type              = "call-webhook"
    block_document_id = prefect_block.webhook[each.key].id
    # Servers of every version can render it; names of states may contain quotes, hence the filters.
    payload = join("", [
      "{\"id\":\"{{ event.id }}\",\"event\":{{ event.event | tojson }},\"occurred\":\"{{ event.occurred.isoformat() }}\",",
      "\"flow_run\":\"{{ event.resource.id }}\",\"state_type\":\"{{ event.resource['prefect.state-type'] }}\",",
      "\"state_name\":{{ event.resource['prefect.state-name'] | tojson }} }",
    ])
  }]

  # An event before the work pool is there would be of nobody's.
  depends_on = [prefect_work_pool.this]
}
