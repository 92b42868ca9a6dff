//! Points at which the operator dies by SIGKILL, for the testbed's `crash` command: before and after the answer of each call that
//! changes the world, the reaper's revocations (`take-back`) among them. Compiled in only with the feature `crash-points`.
//!
//! `VTO_CRASH_POINT` names the point, as in `mint sent` or `mint done`; `VTO_CRASH_AFTER` says the how-manieth time it counts.

use super::world::{Alarm, Grants, World};
use crate::api::{Phase, VaultTokenRequest, VaultTokenRequestStatus};
use crate::cluster;
use crate::domain::admission::Admission;
use crate::domain::grant::Why;
use crate::domain::pod::Observation;
use crate::domain::token::Minted;
use crate::seal::Subject;
use crate::vault::{self, TokenInfo, TokenOrder};
use crate::wire::{Answer, Parcel, Push};
use jiff::Timestamp;
use rustix::process::{Signal, getpid, kill_process};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A call that dies on its way dies within this time: about as long as it takes, so that it dies before, while and after the
/// server acts.
const ON_ITS_WAY: Duration = Duration::from_millis(8);

/// A world in which the operator dies.
pub struct CrashPoints<W> {
    world: Arc<W>,
    point: String,
    left: AtomicU32,
}

impl<W> CrashPoints<W> {
    /// Dies where the environment says.
    pub fn new(world: W) -> Self {
        let point = std::env::var("VTO_CRASH_POINT").unwrap_or_default();
        let after = std::env::var("VTO_CRASH_AFTER").ok().and_then(|after| after.parse().ok());
        Self { world: Arc::new(world), point, left: AtomicU32::new(after.unwrap_or(1)) }
    }

    /// Whether this is the time to die at a point of a call.
    fn due(&self, call: &str, when: &str) -> bool {
        self.point.strip_prefix(call) == Some(when) && self.left.fetch_sub(1, Ordering::Relaxed) == 1
    }

    async fn call<T>(&self, name: &str, call: impl Future<Output = T>) -> T {
        if self.due(name, " sent") {
            tokio::select! {
                _ = call => {}
                () = tokio::time::sleep(ON_ITS_WAY.mul_f64(rand::random())) => {}
            }
            die().await
        }
        let answer = call.await;
        if self.due(name, " done") {
            die().await
        }
        answer
    }
}

/// The end.
async fn die() -> ! {
    tracing::warn!("a crash point is reached");
    // There is no other signal that a process cannot outlive.
    let _ = kill_process(getpid(), Signal::KILL);
    std::future::pending().await
}

/// What a change of a request's status is called.
fn change(request: &VaultTokenRequest, status: &VaultTokenRequestStatus) -> &'static str {
    match (request.phase(), status.phase.unwrap_or_default()) {
        (Phase::Delivered, Phase::Delivered) => "renewal",
        (_, Phase::Minting) => "attempt",
        (Phase::Issued, Phase::Issued) if status.sealed_token.is_some() => "offer",
        (Phase::Minting, Phase::Issued) => "record",
        (_, Phase::Delivered) => "delivery",
        (_, Phase::Revoking) => "abandonment",
        (Phase::Revoking, Phase::Pending) => "clearing",
        (_, Phase::Revoked) => "end",
        // What is told of a request that goes no further: it waits, it is denied, its attempt has come to nothing.
        _ => "word",
    }
}

impl<W: World + 'static> World for CrashPoints<W> {
    fn now(&self) -> Timestamp {
        self.world.now()
    }

    fn vault_away(&self) -> Option<Why> {
        self.world.vault_away()
    }

    fn admission(&self) -> Admission {
        self.world.admission()
    }

    fn grants(&self, request: &VaultTokenRequest) -> Grants {
        self.world.grants(request)
    }

    fn admit(&self, namespace: &str, pod_uid: &str) -> Result<(), Timestamp> {
        self.world.admit(namespace, pod_uid)
    }

    async fn read(&self, namespace: &str, name: &str) -> Result<Option<VaultTokenRequest>, cluster::Error> {
        self.world.read(namespace, name).await
    }

    async fn write(
        &self,
        request: &VaultTokenRequest,
        status: VaultTokenRequestStatus,
    ) -> Result<VaultTokenRequest, cluster::Error> {
        self.call(change(request, &status), self.world.write(request, status.clone())).await
    }

    async fn release(&self, request: &VaultTokenRequest) -> Result<(), cluster::Error> {
        self.call("release", self.world.release(request)).await
    }

    async fn delete(&self, request: &VaultTokenRequest) -> Result<(), cluster::Error> {
        self.call("deletion", self.world.delete(request)).await
    }

    async fn pod(&self, namespace: &str, name: &str, init_container: &str) -> Result<Observation, cluster::Error> {
        self.world.pod(namespace, name, init_container).await
    }

    async fn mint(&self, order: &TokenOrder) -> Result<Minted, vault::Error> {
        self.call("mint", self.world.mint(order)).await
    }

    async fn look_up(&self, accessor: &str) -> Result<Option<TokenInfo>, vault::Error> {
        self.world.look_up(accessor).await
    }

    async fn pace(&self) {
        self.world.pace().await;
    }

    async fn list(&self) -> Result<Vec<String>, vault::Error> {
        self.world.list().await
    }

    async fn renew(&self, accessor: &str) -> Result<Option<Timestamp>, vault::Error> {
        self.call("renew", self.world.renew(accessor)).await
    }

    async fn revoke(&self, accessor: &str) -> Result<(), vault::Error> {
        self.call("revoke", self.world.revoke(accessor)).await
    }

    fn take_back(&self, request_uid: &str, accessor: String, period: Duration) {
        let (sent, done) = (self.due("take-back", " sent"), self.due("take-back", " done"));
        self.world.take_back(request_uid, accessor.clone(), period);
        let world = self.world.clone();
        if sent || done {
            // It goes on beside everything else, and tells nobody of its end.
            tokio::spawn(async move {
                tokio::time::sleep(ON_ITS_WAY.mul_f64(rand::random())).await;
                while done && !matches!(world.look_up(&accessor).await, Ok(None)) {
                    tokio::time::sleep(ON_ITS_WAY).await;
                }
                die().await
            });
        }
    }

    fn sweep_soon(&self) {
        self.world.sweep_soon();
    }

    fn seal(&self, public_key: &str, subject: Subject<'_>, parcel: &Parcel) -> Result<String, String> {
        self.world.seal(public_key, subject, parcel)
    }

    async fn push(&self, addresses: &[IpAddr], port: u16, push: &Push) -> Result<Answer, String> {
        self.call("push", self.world.push(addresses, port, push)).await
    }

    fn alarm(&self, request: &VaultTokenRequest, alarm: Alarm) {
        self.world.alarm(request, alarm);
    }
}
