# Rules of the ruleset that tflint brings along: no plugin has to be fetched.
plugin "terraform" {
  enabled = true
  preset  = "all"
}

# Files are by function, in the order in which a flow run meets them; outputs.tf and variables.tf are where they are looked for.
rule "terraform_standard_module_structure" {
  enabled = false
}
