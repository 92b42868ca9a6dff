# What every pod's token has beside the policies that the pod asks for. The operator renews the tokens of living pods; a token
# that renewed itself would outlive its pod if the operator lost sight of it.
path "auth/token/renew-self" {
  capabilities = ["deny"]
}
path "auth/token/renew" {
  capabilities = ["deny"]
}

# Harmless, and what applications and Vault's own clients expect to be able to do.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
