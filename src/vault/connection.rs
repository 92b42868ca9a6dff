//! One HTTP connection pool to one Vault server: TLS, time limits, size limits, error mapping.

use super::error::Error;
use super::operation::{Operation, Recorder};
use super::reply::{Answer, Proof};
use super::tls;
use crate::text::one_line;
use crate::traffic::Outcome;
use reqwest::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use rustify::Endpoint;
use secrecy::{ExposeSecret, SecretString};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;

/// No call takes longer, from the first byte sent to the last one read.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// No list takes longer: Vault gathers a hundred thousand accessors in about a second.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

/// No connection takes longer to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// No answer is longer, in bytes, but a list; those that are wanted here have a few hundred.
const MAX_ANSWER: usize = 1024 * 1024;

/// No list is longer, in bytes: a million accessors have 40 MB.
const MAX_LIST: usize = 64 * 1024 * 1024;

/// Where Vault is, how to know that it is Vault, and how to show Vault who asks.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Vault")]
pub struct Server {
    /// Address of Vault: https:// (or http://), host and port
    #[arg(long = "vault-addr", env = "VAULT_ADDR", value_name = "URL")]
    pub address: Url,

    /// File with the certificate authorities (PEM) that Vault's certificate is checked against, instead of the
    /// system's. The project's image has no system's: there it is needed with https
    #[arg(long = "vault-cacert", env = "VAULT_CACERT", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Name that Vault's certificate must have, if it is not the host of Vault's address
    #[arg(long = "vault-tls-server-name", env = "VAULT_TLS_SERVER_NAME", value_name = "NAME")]
    pub tls_server_name: Option<String>,

    /// File with a client certificate (PEM) to present to Vault, and its chain if it has one. Read once, at the start
    #[arg(long = "vault-client-cert", env = "VAULT_CLIENT_CERT", value_name = "FILE")]
    pub client_certificate: Option<PathBuf>,

    /// File with the private key (PEM) of the client certificate
    #[arg(long = "vault-client-key", env = "VAULT_CLIENT_KEY", value_name = "FILE")]
    pub client_key: Option<PathBuf>,

    /// Vault namespace, for servers that have namespaces
    #[arg(long = "vault-namespace", env = "VAULT_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
}

impl Server {
    /// Whether a client certificate is named.
    pub fn has_client_certificate(&self) -> bool {
        given(&self.client_certificate).is_some()
    }

    fn client(&self) -> Result<Option<reqwest::Identity>, String> {
        match (given(&self.client_certificate), given(&self.client_key)) {
            (Some(certificate), Some(key)) => tls::identity(certificate, key).map(Some),
            (None, None) => Ok(None),
            _ => Err("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY must be given together".to_owned()),
        }
    }
}

/// A setting that was given. Set but empty is as good as unset, as for Vault's own command.
fn given<T: AsRef<OsStr>>(setting: &Option<T>) -> Option<&T> {
    setting.as_ref().filter(|value| !value.as_ref().is_empty())
}

/// A pool of connections to one Vault server.
#[derive(Clone, Debug)]
pub struct Connection {
    http: reqwest::Client,
    address: Url,
    /// The address under the name that is verified, and the address's own host and port for the header.
    named: Option<(Url, HeaderValue)>,
    namespace: Option<HeaderValue>,
    recorder: Option<Arc<dyn Recorder>>,
}

impl Connection {
    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// A sentence that names the setting that is wrong.
    pub fn new(server: &Server) -> Result<Self, String> {
        let address = &server.address;
        // First, since the other messages show the address.
        if !address.username().is_empty() || address.password().is_some() {
            return Err("the Vault address must have no user name and no password in it".to_owned());
        }
        if !matches!(address.scheme(), "https" | "http") || address.host().is_none() {
            return Err(format!("the Vault address {address} must begin with https:// (or http://) and name a host"));
        }
        if address.query().is_some() || address.fragment().is_some() {
            return Err("the Vault address must have no query and no fragment".to_owned());
        }
        let namespace = match server.namespace.as_deref().map(str::trim).filter(|name| !name.is_empty()) {
            Some(name) => Some(HeaderValue::from_str(name).map_err(|_| {
                "the Vault namespace has characters that \
                cannot be sent"
                    .to_owned()
            })?),
            None => None,
        };
        let mut builder = reqwest::Client::builder()
            // A redirect would carry the token to another host, and a proxy would see who asks for what.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
        let (name, client) = (given(&server.tls_server_name), server.client()?);
        if address.scheme() == "http" && (name.is_some() || client.is_some()) {
            let tls = "VAULT_TLS_SERVER_NAME, VAULT_CLIENT_CERT and VAULT_CLIENT_KEY";
            return Err(format!("{tls} are of no use with the Vault address {address}: it must begin with https://"));
        }
        let mut named = None;
        if let Some(name) = name {
            let (url, lead) = tls::under_name(address, name)?;
            let host = HeaderValue::from_str(address.authority())
                .map_err(|_| "the Vault address has characters that cannot be sent".to_owned())?;
            named = Some((url, host));
            builder = builder.dns_resolver(Arc::new(lead));
        }
        if let Some(identity) = client {
            builder = builder.identity(identity);
        }
        if let Some(file) = given(&server.ca_file) {
            let pem = std::fs::read(file)
                .map_err(|error| format!("cannot read the CA file {} (VAULT_CACERT): {error}", file.display()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|_| format!("the CA file {} (VAULT_CACERT) is not PEM", file.display()))?;
            if certificates.is_empty() {
                return Err(format!("the CA file {} (VAULT_CACERT) has no certificate in it", file.display()));
            }
            builder = builder.tls_certs_only(certificates);
        } else if address.scheme() == "http" {
            // Whoever goes without TLS needs no authorities; the image has none.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| {
            format!("cannot set up TLS to Vault: {}; name the CA of its certificate in VAULT_CACERT", causes(&error))
        })?;
        Ok(Self { http, address: address.clone(), named, namespace, recorder: None })
    }

    /// The same, and every call is told to `recorder`.
    pub fn counted(self, recorder: Arc<dyn Recorder>) -> Self {
        Self { recorder: Some(recorder), ..self }
    }

    /// Makes one call, and gives the body of Vault's answer.
    ///
    /// # Errors
    /// Whatever did not end in an answer of success.
    pub async fn call<E: Endpoint>(
        &self,
        endpoint: &E,
        token: Option<&SecretString>,
        wrap_ttl: Option<Duration>,
    ) -> Result<Answer, Error> {
        self.exchange(self.request(endpoint, token, wrap_ttl)?, endpoint.path(), token, MAX_ANSWER).await
    }

    /// Makes one call whose answer is a list.
    ///
    /// # Errors
    /// Whatever did not end in an answer of success.
    pub async fn list<E: Endpoint>(&self, endpoint: &E, token: &SecretString) -> Result<Answer, Error> {
        let mut request = self.request(endpoint, Some(token), None)?;
        *request.timeout_mut() = Some(LIST_TIMEOUT);
        self.exchange(request, endpoint.path(), Some(token), MAX_LIST).await
    }

    /// Sends a call, and counts how it went.
    async fn exchange(
        &self,
        request: reqwest::Request,
        path: String,
        token: Option<&SecretString>,
        longest: usize,
    ) -> Result<Answer, Error> {
        let (operation, sent) = (Operation::of(&path), Instant::now());
        let answer = self.send(request, path, token, longest).await;
        if let Some(recorder) = &self.recorder {
            let outcome = answer.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
            recorder.record(operation, outcome, sent.elapsed());
        }
        answer
    }

    async fn send(
        &self,
        request: reqwest::Request,
        path: String,
        token: Option<&SecretString>,
        longest: usize,
    ) -> Result<Answer, Error> {
        let proof = Proof::of(token, request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default());
        let mut response = self.http.execute(request).await.map_err(|error| self.failure(&error))?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| Error::Unanswered(causes(&error)))? {
            if body.len() + chunk.len() > longest {
                return Err(Error::Malformed("it is too long"));
            }
            body.extend_from_slice(&chunk);
        }
        Answer::read(status, &path, &proof, body)
    }

    fn request<E: Endpoint>(
        &self,
        endpoint: &E,
        token: Option<&SecretString>,
        wrap_ttl: Option<Duration>,
    ) -> Result<reqwest::Request, Error> {
        // Only path, method and body are taken from the endpoint; a base path in Vault's address is kept.
        let unusable = Error::Malformed("the call could not be written");
        let built = endpoint.request("http://vault").map_err(|_| unusable.clone())?;
        let mut url = self.named.as_ref().map_or(&self.address, |(url, _)| url).clone();
        let (base, path) = (self.address.path().trim_end_matches('/'), built.uri().path().trim_start_matches('/'));
        url.set_path(&format!("{base}/v1/{path}"));
        url.set_query(built.uri().query());
        let mut request = reqwest::Request::new(built.method().clone(), url);
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static("x-vault-request"), HeaderValue::from_static("true"));
        if let Some((_, host)) = &self.named {
            headers.insert(HOST, host.clone());
        }
        if let Some(namespace) = &self.namespace {
            headers.insert(HeaderName::from_static("x-vault-namespace"), namespace.clone());
        }
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token.expose_secret())
                .map_err(|_| Error::not_logged_in("the token has characters that no Vault token has"))?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static("x-vault-token"), value);
        }
        if let Some(ttl) = wrap_ttl {
            let value = HeaderValue::from_str(&format!("{}s", ttl.as_secs())).map_err(|_| unusable)?;
            headers.insert(HeaderName::from_static("x-vault-wrap-ttl"), value);
        }
        *request.headers_mut() = headers;
        *request.body_mut() = Some(built.into_body().into());
        Ok(request)
    }

    fn failure(&self, error: &reqwest::Error) -> Error {
        if error.is_connect() {
            Error::Unreachable { address: self.address.to_string(), cause: causes(error) }
        } else if error.is_timeout() {
            Error::Unanswered(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))
        } else {
            Error::Unanswered(causes(error))
        }
    }
}

/// An error with its causes: the outermost alone says nothing of use ("error sending request").
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    // How a server that wants a client certificate refuses one, or a client without one, once the connection stands.
    if text.contains("received fatal alert") {
        text.push_str(" (VAULT_CLIENT_CERT, VAULT_CLIENT_KEY)");
    }
    if text.is_empty() { "the connection broke".to_owned() } else { one_line(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vaultrs::api::token::requests::LookupTokenSelfRequest;

    fn server(address: &str) -> Server {
        let address = address.parse().expect("an address");
        let (ca_file, tls_server_name, client_certificate, client_key, namespace) = (None, None, None, None, None);
        Server { address, ca_file, tls_server_name, client_certificate, client_key, namespace }
    }

    #[test]
    fn a_call_under_another_name_goes_to_its_port_with_the_address_in_the_header() {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = testbed::pki::Pki::new(folder.path()).expect("a CA");
        let tls_server_name = Some("vault.example".to_owned());
        let ca_file = Some(pki.ca().path.clone());
        let server = Server { tls_server_name, ca_file, ..server("https://127.0.0.1:8200/base") };
        let connection = Connection::new(&server).expect("a connection");
        let request = connection.request(&LookupTokenSelfRequest {}, None, None).expect("a request");
        assert_eq!(request.url().as_str(), "https://vault.example:8200/base/v1/auth/token/lookup-self");
        assert_eq!(request.headers()[HOST], "127.0.0.1:8200");
    }

    #[test]
    fn settings_of_tls_that_do_not_fit_together_are_told() {
        let (file, name) = (Some(PathBuf::from("file")), Some("vault.example".to_owned()));
        let (secure, plain) = (server("https://vault:8200"), server("http://vault:8200"));
        for (server, words) in [
            (Server { client_certificate: file.clone(), ..secure.clone() }, "must be given together"),
            (Server { client_key: file.clone(), ..secure.clone() }, "must be given together"),
            (Server { client_certificate: file, client_key: Some(PathBuf::new()), ..secure }, "must be given together"),
            (Server { tls_server_name: name, ..plain }, "must begin with https://"),
        ] {
            let error = Connection::new(&server).expect_err(words);
            assert!(error.contains(words) && error.contains("VAULT_CLIENT_KEY"), "{error}");
        }
    }
}
