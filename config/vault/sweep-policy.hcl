# For a login of its own, which lasts for one search: find tokens that a crash left without a request. Listing accessors
# reaches all tokens of this Vault (of its namespace, where it has any), so the operator's everyday login cannot do it.
path "auth/token/accessors" {
  capabilities = ["list", "sudo"]
}
path "auth/token/accessors/" {
  capabilities = ["list", "sudo"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# Ask what it may do, to say where that is more than this.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
