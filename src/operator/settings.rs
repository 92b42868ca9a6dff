//! The operator's settings: from arguments and environment to values that were checked.

use super::budget::Rates;
use crate::domain::address::PodNetworks;
use crate::domain::duration;
use crate::domain::grant::{Limits, check_ttl};
use crate::vault::{Connection, Login, Server};
use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// The longest that a wrapping token may live: it is a secret on its way.
const MAX_WRAPPING_TTL: Duration = Duration::from_secs(600);

/// The shortest time between two searches: each lists all tokens in Vault.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Arguments of `vault-token-operator run`.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Name of this cluster, the same for all of its operator's life and different from every other cluster's that
    /// uses the same Vault. It is written into each token's metadata
    #[arg(long, env = "VTO_CLUSTER", value_name = "NAME")]
    cluster: String,

    /// Vault token role that tokens are made through [default: vault-token-operator- and the cluster's name]
    #[arg(long, env = "VTO_TOKEN_ROLE", value_name = "NAME")]
    token_role: Option<String>,

    /// Life of a token that is not renewed, for pods without the annotation vaultproject.io/ttl
    #[arg(long, env = "VTO_DEFAULT_TTL", value_name = "DURATION", default_value = "72h", value_parser = duration::parse)]
    default_ttl: Duration,

    /// The longest ttl that a pod can ask for
    #[arg(long, env = "VTO_MAX_TTL", value_name = "DURATION", default_value = "768h", value_parser = duration::parse)]
    max_ttl: Duration,

    /// How long a wrapping token lives: the time that an init container has to take its token
    #[arg(long, env = "VTO_WRAPPING_TTL", value_name = "DURATION", default_value = "90s", value_parser = duration::parse)]
    wrapping_ttl: Duration,

    /// How long a request is kept for audit once its token is dead. Denied, failed and superseded ones go after 15m at most
    #[arg(long, env = "VTO_RETENTION", value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
    retention: Duration,

    /// How long a token lives on whose policies no VaultPolicyBinding grants any more
    #[arg(long, env = "VTO_GRANT_GRACE", value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    grant_grace: Duration,

    /// How many tokens that have lost their grants are revoked without a person's word. If there are more, most likely a binding
    /// or a label was removed by mistake; raise it for one start to have them revoked all the same
    #[arg(long, env = "VTO_UNGRANTED_LIMIT", value_name = "NUMBER", default_value = "20")]
    ungranted_limit: usize,

    /// How many tokens can be made in a minute for one pod, each start of its init container being one at least
    #[arg(long, env = "VTO_POD_MINTS_PER_MINUTE", value_name = "NUMBER", default_value = "10")]
    pod_mints_per_minute: NonZeroU32,

    /// How many tokens can be made in a minute for the pods of one namespace
    #[arg(long, env = "VTO_NAMESPACE_MINTS_PER_MINUTE", value_name = "NUMBER", default_value = "6000")]
    namespace_mints_per_minute: NonZeroU32,

    /// How often Vault is searched for tokens that no request records, beside after each crash
    #[arg(long, env = "VTO_SWEEP_INTERVAL", value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    sweep_interval: Duration,

    /// How many tokens without a request are revoked in one search. More are left alone, since they show that the requests
    /// were lost or restored from a backup; raise it for one start to have them revoked all the same
    #[arg(long, env = "VTO_SWEEP_LIMIT", value_name = "NUMBER", default_value = "128")]
    sweep_limit: usize,

    /// Serve requests although nothing checks who creates them: any pod that may create requests can then take the token of any
    /// other pod of its namespace that initializes. Without this, no tokens are made while the admission policies of config/ are
    /// missing, changed or not in force
    #[arg(long, env = "VTO_TRUST_UNVERIFIED_REQUESTS")]
    trust_unverified_requests: bool,

    /// Networks that pods live in, as in 10.244.0.0/16. Wrapping tokens are sent to no other address [default: all
    /// but loopback, link-local and multicast addresses]
    #[arg(long, env = "VTO_POD_NETWORKS", value_name = "CIDR", value_delimiter = ',')]
    pod_network: Vec<ipnet::IpNet>,

    /// Name of this replica among all, such as its pod's name. A replica that starts again under its name need not wait for
    /// its own lease to end
    #[arg(long, env = "VTO_IDENTITY", value_name = "NAME")]
    identity: String,

    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "VTO_HEALTH_ADDRESS", value_name = "ADDRESS", default_value = "[::]:8080")]
    health_address: SocketAddr,

    #[command(flatten)]
    server: Server,

    #[command(flatten)]
    login: LoginArguments,
}

/// How the operator logs in to Vault.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Vault login")]
struct LoginArguments {
    /// How the operator logs in to Vault
    #[arg(long, env = "VTO_VAULT_AUTH", value_enum, default_value_t = Method::Kubernetes)]
    vault_auth: Method,

    /// Where the auth method is mounted in Vault [default: the method's name]
    #[arg(long, env = "VTO_VAULT_AUTH_MOUNT", value_name = "PATH")]
    vault_auth_mount: Option<String>,

    /// For kubernetes, jwt and cert: the role to log in with
    #[arg(long, env = "VTO_VAULT_AUTH_ROLE", value_name = "NAME", default_value = "vault-token-operator")]
    vault_auth_role: String,

    /// For kubernetes, jwt and cert: the role to log in with for listing tokens, a right of its own
    #[arg(long, env = "VTO_VAULT_SWEEP_ROLE", value_name = "NAME", default_value = "vault-token-operator-sweep")]
    vault_sweep_role: String,

    /// For kubernetes and jwt: file with the ServiceAccount token, or another JWT
    #[arg(
        long,
        env = "VTO_SERVICE_ACCOUNT_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    service_account_token_file: PathBuf,

    /// For approle: the role ID
    #[arg(long, env = "VTO_VAULT_ROLE_ID", value_name = "ID", required_if_eq("vault_auth", "approle"))]
    vault_role_id: Option<String>,

    /// For approle: file with the secret ID
    #[arg(long, env = "VTO_VAULT_SECRET_ID_FILE", value_name = "FILE", required_if_eq("vault_auth", "approle"))]
    vault_secret_id_file: Option<PathBuf>,

    /// For token-file: file with a Vault token that something else keeps alive
    #[arg(long, env = "VTO_VAULT_TOKEN_FILE", value_name = "FILE", required_if_eq("vault_auth", "token-file"))]
    vault_token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    Kubernetes,
    #[value(name = "approle")]
    AppRole,
    Jwt,
    Cert,
    TokenFile,
}

/// Settings that were checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) cluster: String,
    pub(super) token_role: String,
    pub(super) limits: Limits,
    pub(super) rates: Rates,
    pub(super) wrapping_ttl: Duration,
    pub(super) identity: String,
    pub(super) health_address: SocketAddr,
    pub(super) vault: Connection,
    pub(super) login: Login,
    pub(super) sweep_login: Login,
    pub(super) sweep_interval: Duration,
    pub(super) sweep_limit: usize,
    pub(super) ungranted_limit: usize,
    pub(super) trust_unverified_requests: bool,
}

impl Arguments {
    /// Checks the arguments against each other and reads the files that they name.
    ///
    /// # Errors
    /// A sentence that names the argument that is wrong.
    pub fn check(self) -> Result<Settings, String> {
        name("--cluster (VTO_CLUSTER)", &self.cluster)?;
        name("--identity (VTO_IDENTITY)", &self.identity)?;
        let token_role = self.token_role.unwrap_or_else(|| format!("vault-token-operator-{}", self.cluster));
        name("--token-role (VTO_TOKEN_ROLE)", &token_role)?;
        check_ttl(self.max_ttl, Duration::MAX).map_err(|why| format!("--max-ttl (VTO_MAX_TTL) {why}"))?;
        check_ttl(self.default_ttl, self.max_ttl).map_err(|why| format!("--default-ttl (VTO_DEFAULT_TTL) {why}"))?;
        if self.wrapping_ttl < Duration::from_secs(1) || self.wrapping_ttl > MAX_WRAPPING_TTL {
            let longest = duration::format(MAX_WRAPPING_TTL);
            return Err(format!("--wrapping-ttl (VTO_WRAPPING_TTL) must be from 1s to {longest}"));
        }
        if self.sweep_interval < MIN_SWEEP_INTERVAL {
            let shortest = duration::format(MIN_SWEEP_INTERVAL);
            return Err(format!("--sweep-interval (VTO_SWEEP_INTERVAL) must be {shortest} at least"));
        }
        if self.login.vault_auth == Method::Cert && !self.server.has_client_certificate() {
            let needs = "--vault-client-cert (VAULT_CLIENT_CERT) and --vault-client-key (VAULT_CLIENT_KEY)";
            return Err(format!("--vault-auth cert needs {needs}"));
        }
        Ok(Settings {
            token_role,
            limits: Limits {
                default_ttl: self.default_ttl,
                max_ttl: self.max_ttl,
                networks: PodNetworks::new(self.pod_network),
                retention: self.retention,
                grace: self.grant_grace,
            },
            rates: Rates { pod: self.pod_mints_per_minute, namespace: self.namespace_mints_per_minute },
            wrapping_ttl: self.wrapping_ttl,
            identity: self.identity,
            health_address: self.health_address,
            vault: Connection::new(&self.server)?,
            sweep_login: self.login.clone().for_sweep().check()?,
            login: self.login.check()?,
            sweep_interval: self.sweep_interval,
            sweep_limit: self.sweep_limit,
            ungranted_limit: self.ungranted_limit,
            trust_unverified_requests: self.trust_unverified_requests,
            cluster: self.cluster,
        })
    }
}

impl LoginArguments {
    /// The login for listing tokens. Methods with roles have one apart; the others need the right in their one login.
    fn for_sweep(self) -> Self {
        Self { vault_auth_role: self.vault_sweep_role.clone(), ..self }
    }

    fn check(self) -> Result<Login, String> {
        let mount = |default: &str| self.vault_auth_mount.clone().unwrap_or_else(|| default.to_owned());
        match (self.vault_auth, self.vault_role_id, self.vault_secret_id_file, self.vault_token_file) {
            (Method::Kubernetes, ..) => Ok(Login::Kubernetes {
                mount: mount("kubernetes"),
                role: self.vault_auth_role,
                token_file: self.service_account_token_file,
            }),
            (Method::Jwt, ..) => Ok(Login::Jwt {
                mount: mount("jwt"),
                role: self.vault_auth_role,
                token_file: self.service_account_token_file,
            }),
            (Method::Cert, ..) => Ok(Login::Cert { mount: mount("cert"), role: self.vault_auth_role }),
            (Method::AppRole, Some(role_id), Some(secret_id_file), _) => {
                Ok(Login::AppRole { mount: mount("approle"), role_id, secret_id_file })
            }
            (Method::TokenFile, _, _, Some(path)) => Ok(Login::TokenFile { path }),
            (method, ..) => Err(format!("--vault-auth {method:?} lacks its arguments; see --help")),
        }
    }
}

/// Names that become part of a Vault path and of metadata.
fn name(argument: &str, value: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if value.is_empty() || value.len() > 100 || !value.chars().all(fits) || value.contains("..") {
        return Err(format!("{argument} must have 1 to 100 letters, digits, '-', '_' or '.'"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: Arguments,
    }

    #[test]
    fn a_login_by_certificate_needs_one() {
        let arguments =
            ["run", "--cluster=main", "--identity=me", "--vault-addr=http://vault:8200", "--vault-auth=cert"];
        let error = Cli::parse_from(arguments).run.check().expect_err("no certificate");
        assert!(error.contains("--vault-client-cert") && error.contains("--vault-client-key"), "{error}");
    }
}
