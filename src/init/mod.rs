//! The init container: asks for its pod's token, receives it, writes it down, and ends.

mod identity;
mod intake;
mod receive;
mod requests;
mod settings;
mod store;

pub use intake::{Intake, Opened, Refusal};
pub use settings::{Arguments, Settings};

use crate::api::Delivery;
use crate::domain::backoff::Backoff;
use crate::domain::custody::Verdict;
use crate::http::{Limits, listen, serve};
use crate::seal::OneTimeKey;
use crate::wire::MAX_MESSAGE;
use bytes::Bytes;
use http_body_util::Full;
use identity::Identity;
use kube::ResourceExt;
use receive::Receiver;
use requests::{Asked, Requests};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::Store;
use tokio::net::TcpListener;

/// Waits between looks at one's own request.
const LOOK: Backoff = Backoff { first: Duration::from_millis(25), longest: Duration::from_secs(2) };

/// What a peer gets of the listener. Places enough that whoever means ill needs many addresses to keep the operator out;
/// the exchange includes three calls, to Vault and to the API server, each with ten seconds at most.
const LIMITS: Limits = Limits {
    connections: 256,
    per_peer: 8,
    receive: Duration::from_secs(2),
    exchange: Duration::from_secs(34),
    body: MAX_MESSAGE,
};

/// Gets the pod's token, or says why there is none.
///
/// # Errors
/// A sentence for the pod's owner, which also goes to the termination log.
pub async fn run(settings: Settings) -> Result<(), String> {
    let told = Mutex::new("nothing was heard".to_owned());
    let obtained = async {
        while let Outcome::Forgotten = obtain(&settings, &told).await? {
            tracing::info!("asking for another token");
        }
        Ok(())
    };
    let outcome = match tokio::time::timeout(settings.timeout, obtained).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let last = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Err(format!("no token within {} s (--timeout); the last word: {last}", settings.timeout.as_secs()))
        }
    };
    if let Err(message) = &outcome {
        // Kubernetes shows it in the pod's status; elsewhere there is no such file, and standard error has it too.
        if let Err(error) = tokio::fs::write(&settings.termination_log, message).await {
            tracing::debug!(%error, file = %settings.termination_log.display(), "no termination log");
        }
    }
    outcome
}

/// What became of a request.
enum Outcome {
    /// The token is there.
    Obtained,
    /// The operator does not know.
    Forgotten,
}

/// `told` holds what is being waited for.
async fn obtain(settings: &Settings, told: &Mutex<String>) -> Result<Outcome, String> {
    let identity = Identity::read(&settings.service_account_token_file).await?;
    let store = Store::new(settings.directory.clone(), settings.file_mode)?;
    // Before the request is there, so that the first push finds an open port.
    let listener = match settings.delivery {
        Delivery::Push => Some(open_port(settings.listen).await?),
        Delivery::Status => None,
    };
    let requests = Requests::new(crate::cluster::connect().await?, &identity);

    if let Some(accessor) = store.accessor().await {
        if requests.delivered(&accessor).await? {
            tracing::info!(accessor, "this pod's token is there already, and its request is Delivered");
            return Ok(Outcome::Obtained);
        }
        tracing::info!(accessor, "a token is there that no request of this pod records: it is removed");
    }
    store.clear().await?;

    let key = OneTimeKey::generate()?;
    let port = listener.as_ref().map(|(_, port)| *port);
    let asked = Asked { init_container: &settings.container_name, public_key: key.public(), port };
    let (request, older) = requests.create(&asked).await?;
    tracing::info!(request = request.metadata.name, port, "asked for a token");
    let intake = Intake::new(key, &request, older);
    let receiver = Arc::new(Receiver::new(settings.vault.clone(), requests, store, intake, request.name_any()));
    let serving = listener.map(|(listener, _)| {
        let receiver = receiver.clone();
        tokio::spawn(serve(listener, LIMITS, move |request| answered(receiver.clone(), request)))
    });
    let outcome = watch(&receiver, told).await;
    if let Some(serving) = serving {
        serving.abort();
        // The port is free when it has ended.
        let _ = serving.await;
    }
    outcome
}

async fn open_port(address: SocketAddr) -> Result<(TcpListener, u16), String> {
    let listener = listen(address).await.map_err(|error| format!("cannot listen on {address} (--listen): {error}"))?;
    let port = listener.local_addr().map_err(|error| format!("the listener has no address: {error}"))?.port();
    Ok((listener, port))
}

/// Answers in a task of its own: a peer that hangs up in the midst of it must not leave a wrapping token used up and its
/// token nowhere.
async fn answered(receiver: Arc<Receiver>, request: http::Request<Bytes>) -> http::Response<Full<Bytes>> {
    let answer = tokio::spawn(async move { receiver.answer(request).await });
    answer.await.unwrap_or_else(|_| {
        let mut failure = http::Response::new(Full::new(Bytes::from_static(b"the answer broke off")));
        *failure.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        failure
    })
}

/// Looks at one's own request until it is over.
async fn watch(receiver: &Receiver, told: &Mutex<String>) -> Result<Outcome, String> {
    let mut looks = 0;
    loop {
        match receiver.look().await {
            Verdict::Done => return Ok(Outcome::Obtained),
            Verdict::Over(why) => return Err(why),
            Verdict::Anew(why) => {
                tracing::warn!("{why}");
                return Ok(Outcome::Forgotten);
            }
            Verdict::Waiting(state) => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if *told != state {
                    tracing::info!("{state}");
                    *told = state;
                    looks = 0;
                }
            }
        }
        // News come in quick succession; long waits are for Vault or people.
        looks += 1;
        tokio::select! {
            () = tokio::time::sleep(LOOK.after(looks, rand::random())) => {}
            () = receiver.stored() => looks = 0,
        }
    }
}
