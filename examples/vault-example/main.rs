//! The app of the example workload: takes its pod's Vault token from the file, reads one secret with it, and ends.
//! It knows nothing of Kubernetes, nor of how the token came there.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = setting("VAULT_ADDR", "https://vault.vault.svc:8200");
    let path = setting("SECRET_PATH", "secret/data/shop/read");
    let token = std::fs::read_to_string(setting("TOKEN_FILE", "/var/run/secrets/vaultproject.io/token"))?;

    let mut client = reqwest::Client::builder().timeout(Duration::from_secs(10));
    if let Ok(file) = std::env::var("VAULT_CACERT") {
        client = client.tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(file)?)?]);
    }
    let request = client.build()?.get(format!("{address}/v1/{path}")).header("X-Vault-Token", token);
    let answer = request.send().await?;
    let status = answer.status();
    let body: serde_json::Value = answer.json().await?;
    if !status.is_success() {
        return Err(format!("Vault refuses the token: {status} {}", body["errors"]).into());
    }
    writeln!(std::io::stdout(), "{path}: {}", body["data"]["data"])?;
    Ok(())
}
