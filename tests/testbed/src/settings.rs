//! Which versions and kinds of components a run uses, chosen by environment variables.

use crate::error::Error;

/// The variable that chooses the Kubernetes minor version.
pub const KUBERNETES_VARIABLE: &str = "TESTBED_KUBERNETES";
/// The variable that chooses the kind of Vault.
pub const VAULT_VARIABLE: &str = "TESTBED_VAULT";

/// A Kubernetes minor version that the testbed can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubernetesVersion {
    /// The oldest supported.
    V1_33,
    /// The newest, and the default.
    V1_37,
}

impl KubernetesVersion {
    /// The number after the dot.
    pub const fn minor(self) -> u64 {
        match self {
            Self::V1_33 => 33,
            Self::V1_37 => 37,
        }
    }
}

/// The server that plays Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaultKind {
    /// OpenBao, the default.
    OpenBao,
    /// HashiCorp Vault.
    Vault,
}

impl VaultKind {
    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenBao => "OpenBao",
            Self::Vault => "Vault",
        }
    }
}

/// What a run uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The control plane's version.
    pub kubernetes: KubernetesVersion,
    /// The kind of Vault.
    pub vault: VaultKind,
}

impl Settings {
    /// Reads [`KUBERNETES_VARIABLE`] and [`VAULT_VARIABLE`]; unset or empty means the default.
    pub fn from_env() -> Result<Self, Error> {
        let value = |variable| std::env::var_os(variable).map(|value| value.to_string_lossy().into_owned());
        Self::parse(value(KUBERNETES_VARIABLE).as_deref(), value(VAULT_VARIABLE).as_deref())
    }

    fn parse(kubernetes: Option<&str>, vault: Option<&str>) -> Result<Self, Error> {
        let unknown = |variable, value: &str, known: &str| Error::Variable {
            variable,
            value: value.to_owned(),
            reason: format!("there is only {known}"),
        };
        Ok(Self {
            kubernetes: match kubernetes.unwrap_or_default() {
                "" | "1.37" => KubernetesVersion::V1_37,
                "1.33" => KubernetesVersion::V1_33,
                other => return Err(unknown(KUBERNETES_VARIABLE, other, "1.33 and 1.37")),
            },
            vault: match vault.unwrap_or_default() {
                "" | "openbao" => VaultKind::OpenBao,
                "vault" => VaultKind::Vault,
                other => return Err(unknown(VAULT_VARIABLE, other, "openbao and vault")),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_and_empty_mean_the_newest_kubernetes_and_openbao() {
        let default = Settings { kubernetes: KubernetesVersion::V1_37, vault: VaultKind::OpenBao };
        assert_eq!(Settings::parse(None, None).unwrap(), default);
        assert_eq!(Settings::parse(Some(""), Some("")).unwrap(), default);
    }

    #[test]
    fn an_unknown_value_is_quoted_beside_what_there_is() {
        let error = Settings::parse(Some("1.12"), None).unwrap_err().to_string();
        assert_eq!(error, "TESTBED_KUBERNETES=1.12: there is only 1.33 and 1.37");
        let error = Settings::parse(None, Some("consul")).unwrap_err().to_string();
        assert_eq!(error, "TESTBED_VAULT=consul: there is only openbao and vault");
    }
}
