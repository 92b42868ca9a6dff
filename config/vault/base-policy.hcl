# What every pod's token has beside the policies that the pod asks for. The operator renews the tokens of living pods; a token
# that renewed itself would outlive its pod if the operator lost sight of it.
path "auth/token/renew-self" {
  capabilities = ["deny"]
}
path "auth/token/renew" {
  capabilities = ["deny"]
}
# It knows its own accessor.
path "auth/token/renew-accessor" {
  capabilities = ["deny"]
}
# A token that it makes need not have this policy, and so could renew it; and an orphan would outlive it. A policy that names one of
# these paths in full, and not by a wildcard, goes before the one with the wildcard here: its maker has meant it.
path "auth/token/create*" {
  capabilities = ["deny"]
}
path "auth/token/create/*" {
  capabilities = ["deny"]
}
path "auth/token/create-orphan" {
  capabilities = ["deny"]
}

# Harmless, and what applications and Vault's own clients expect to be able to do.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
