//! TLS to Vault beside its authorities: the client's own certificate, and a name that is not the address's host.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::Path;
use url::{Host, Url};
use zeroize::Zeroizing;

/// Reads the certificate that the client presents, with its chain, and its key.
///
/// # Errors
/// A sentence that names the setting that is wrong.
pub fn identity(certificate: &Path, key: &Path) -> Result<reqwest::Identity, String> {
    let read = |what: &str, file: &Path| {
        let pem = std::fs::read(file).map_err(|error| format!("cannot read {what}: {error}"))?;
        Ok::<_, String>(Zeroizing::new(pem))
    };
    let certificate_named = format!("the client certificate {} (VAULT_CLIENT_CERT)", certificate.display());
    let key_named = format!("the client key {} (VAULT_CLIENT_KEY)", key.display());
    let (certificate, key) = (read(&certificate_named, certificate)?, read(&key_named, key)?);

    // reqwest says of none of these which one it is.
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
    let chain = chain.map_err(|_| format!("{certificate_named} is not PEM"))?;
    if chain.is_empty() {
        return Err(format!("{certificate_named} has no certificate in it"));
    }
    let private = PrivateKeyDer::from_pem_slice(&key).map_err(|_| format!("{key_named} has no private key in it"))?;
    let unfit = format!("{certificate_named} and {key_named} cannot be used together");
    CertifiedKey::from_der(chain, private, &default_provider()).map_err(|error| format!("{unfit}: {error}"))?;
    let both = Zeroizing::new([certificate.as_slice(), b"\n", key.as_slice()].concat());
    reqwest::Identity::from_pem(&both).map_err(|_| unfit)
}

/// The address with the name in place of its host, so that certificates are checked against the name, and what leads back from
/// the name to the host.
///
/// # Errors
/// A sentence that names the setting that is wrong.
pub fn under_name(address: &Url, name: &str) -> Result<(Url, LeadTo), String> {
    let unusable = || format!("VAULT_TLS_SERVER_NAME must be a DNS name, and {name:?} is none");
    // An IP address would be dialled as it is, past what leads to the host.
    let Ok(Host::Domain(name)) = Host::parse(name) else { return Err(unusable()) };
    let host = match address.host() {
        Some(Host::Domain(domain)) => domain.to_owned(),
        // Without the brackets that it has in an address.
        Some(Host::Ipv6(ip)) => ip.to_string(),
        Some(Host::Ipv4(ip)) => ip.to_string(),
        None => return Err(format!("the Vault address {address} must name a host")),
    };
    let mut named = address.clone();
    named.set_host(Some(&name)).map_err(|_| unusable())?;
    Ok((named, LeadTo(host)))
}

/// Resolves every name to the addresses of one host.
#[derive(Clone, Debug)]
pub struct LeadTo(String);

impl Resolve for LeadTo {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            // The port is the address's: reqwest puts it in place of 0.
            let found: Vec<_> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use std::path::PathBuf;
    use testbed::pki::{KeyPairFiles, Pki, Usage};

    #[test]
    fn a_wrong_client_certificate_or_key_is_told_with_its_setting() {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::new(folder.path()).expect("a CA");
        let issue = |name: &str| pki.issue(name, Usage::Client(None)).expect("a certificate");
        let KeyPairFiles { certificate, key } = issue("operator");
        let (missing, empty) = (folder.path().join("missing"), folder.path().join("empty"));
        std::fs::write(&empty, "").expect("written");
        assert!(identity(&certificate, &key).is_ok());
        let wrong: [(&PathBuf, &PathBuf, &[&str]); 6] = [
            (&missing, &key, &["cannot read", "VAULT_CLIENT_CERT"]),
            (&certificate, &missing, &["cannot read", "VAULT_CLIENT_KEY"]),
            (&empty, &key, &["VAULT_CLIENT_CERT", "no certificate"]),
            (&certificate, &empty, &["VAULT_CLIENT_KEY", "no private key"]),
            (&certificate, &certificate, &["VAULT_CLIENT_KEY", "no private key"]),
            (&certificate, &issue("other").key, &["VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY", "cannot be used together"]),
        ];
        for (certificate, key, words) in wrong {
            let error = identity(certificate, key).expect_err("wrong");
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_name_takes_the_hosts_place_and_leads_to_the_host() {
        for (address, named, host) in [
            ("https://127.0.0.1:8200", "https://vault.example:8200/", "127.0.0.1"),
            ("https://[::1]:8200/base", "https://vault.example:8200/base", "::1"),
            ("https://127.0.0.2", "https://vault.example/", "127.0.0.2"),
        ] {
            let (url, lead) = under_name(&address.parse().expect("an address"), "Vault.example").expect("a name");
            assert_eq!(url.as_str(), named);
            let found = lead.resolve("vault.example".parse().expect("a name")).await.expect("addresses");
            let host: IpAddr = host.parse().expect("an IP address");
            assert_eq!(found.map(|address| (address.ip(), address.port())).collect::<Vec<_>>(), [(host, 0)]);
        }
        let address = "https://vault:8200".parse().expect("an address");
        for name in ["", "10.0.0.1", "::1", "[::1]", "vault:8200", "vault/path", "user@vault"] {
            let error = under_name(&address, name).expect_err(name);
            assert!(error.contains("VAULT_TLS_SERVER_NAME"), "{error}");
        }
    }
}
