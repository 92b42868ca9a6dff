# What the operator can do in Vault, and nothing else. `main` is the name of the cluster (VTO_CLUSTER).

# Make tokens, through the token role alone: it decides which policies they can have. `sudo` is what Vault asks of
# whoever gives a token a period of its own choice.
path "auth/token/create/vault-token-operator-main" {
  capabilities = ["create", "update", "sudo"]
}

# See whether its token roles are there, to say so where one is not.
path "auth/token/roles/vault-token-operator-main" {
  capabilities = ["read"]
}

# Look at, renew and revoke tokens by their accessors.
path "auth/token/lookup-accessor" {
  capabilities = ["update"]
}
path "auth/token/renew-accessor" {
  capabilities = ["update"]
}
path "auth/token/revoke-accessor" {
  capabilities = ["update"]
}

# Keep its own login, and give it back in the end.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# Ask what it may do, to say where that is less than this, or more.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
