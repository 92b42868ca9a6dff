//! Vault's HTTP API, as far as the testbed and its tests need it.

use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::error::Error;
use crate::pki::CaCertificate;

/// A client that trusts the run's authority only. It keeps no connection open, and so belongs to no async runtime.
#[derive(Debug)]
pub(super) struct Api {
    address: String,
    client: Client,
}

impl Api {
    pub(super) fn new(address: &str, ca: &CaCertificate) -> Result<Self, Error> {
        let client = Certificate::from_der(&ca.der).and_then(|certificate| {
            Client::builder()
                .tls_certs_only([certificate])
                .https_only(true)
                .redirect(Policy::none())
                .no_proxy()
                .pool_max_idle_per_host(0)
                .connect_timeout(Duration::from_secs(5))
                .timeout(Duration::from_secs(30))
                .build()
        });
        let client =
            client.map_err(|source| Error::Http { what: "could not make a client of Vault".into(), source })?;
        Ok(Self { address: address.to_owned(), client })
    }

    pub(super) async fn request(
        &self,
        token: Option<&SecretString>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), Error> {
        let failed = |source| Error::Http { what: format!("could not ask Vault: {method} {path}"), source };
        let mut request = self.client.request(method.clone(), format!("{}/v1/{path}", self.address));
        if let Some(token) = token {
            request = request.header("X-Vault-Token", token.expose_secret());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let text = response.bytes().await.map_err(failed)?;
        // An answer that is not JSON is of no use to anybody but the one who reads the status.
        Ok((status, serde_json::from_slice(&text).unwrap_or_default()))
    }

    /// A request that has to succeed.
    pub(super) async fn must(
        &self,
        token: Option<&SecretString>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let what = format!("{method} {path}");
        let (status, answer) = self.request(token, method, path, body).await?;
        if status.is_success() {
            return Ok(answer);
        }
        let errors = answer.get("errors").map(Value::to_string).unwrap_or_default();
        Err(Error::Vault { what, status: status.as_u16(), errors })
    }
}
