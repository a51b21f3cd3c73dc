variable "installation" {
  description = "What all parts of an installation share; see the module function."
  type = object({
    project = string
    name    = string
    labels  = map(string)
  })
}

variable "title" {
  description = "What is wrong, in a few words."
  type        = string
}

variable "query" {
  description = "PromQL that returns a series while it is wrong."
  type        = string
}

variable "minutes" {
  description = "How long it has to be wrong, in minutes; 0 would be a change in every plan."
  type        = number

  validation {
    condition     = floor(var.minutes) == var.minutes && var.minutes >= 1
    error_message = "minutes: write a whole number of 1 or more."
  }
}

variable "severity" {
  description = "CRITICAL (flow runs do not start, or their end is not told), ERROR (some), or WARNING."
  type        = string

  validation {
    condition     = contains(["CRITICAL", "ERROR", "WARNING"], var.severity)
    error_message = "severity: write CRITICAL, ERROR or WARNING."
  }
}

variable "playbook" {
  description = "What it means, what happens by itself, what to do; in Markdown."
  type        = string

  validation {
    condition     = length(var.playbook) >= 200 && length(var.playbook) <= 8192
    error_message = "playbook: write 200 to 8,192 characters, which is what Cloud Monitoring takes."
  }
}

variable "notification_channels" {
  description = "Where it goes."
  type        = list(string)
}
