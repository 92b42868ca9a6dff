//! Pods that come and go, and what becomes of their tokens.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::kubelet::{Kubelet, PodHandle, PodSpec};
use crate::report;
use crate::system::System;
use crate::vault::Method;

/// Where the pods are.
pub const NAMESPACE: &str = "crash";
/// How many pods there are at a time.
const WORKERS: usize = 6;
/// How long a pod may wait for its token, through however many crashes.
const TOKEN_LIMIT: Duration = Duration::from_secs(120);
/// The longest that a pod lives with its token.
const LONGEST: u64 = 14_000;

/// The system under load, and what was seen.
#[derive(Debug)]
pub struct Load {
    pub system: System,
    pub kubelet: Kubelet,
    pub stop: AtomicBool,
    /// Pods that got their token.
    pub served: AtomicUsize,
    /// Pods that did not.
    pub lost: AtomicUsize,
    /// Tokens that died under a running pod.
    pub dead: AtomicUsize,
    waited: Mutex<Duration>,
}

impl Load {
    pub fn new(system: System, kubelet: Kubelet) -> Self {
        let (stop, zero) = (AtomicBool::new(false), AtomicUsize::new);
        Self { system, kubelet, stop, served: zero(0), lost: zero(0), dead: zero(0), waited: Mutex::default() }
    }

    /// Starts the workers. Each ends with its last pod still running.
    pub fn start(self: &Arc<Self>) -> Vec<JoinHandle<Result<Option<PodHandle>, Error>>> {
        (0..WORKERS).map(|number| tokio::spawn(self.clone().work(number))).collect()
    }

    /// The longest that a pod has waited for its token.
    pub fn waited(&self) -> Duration {
        *self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(self: Arc<Self>, number: usize) -> Result<Option<PodHandle>, Error> {
        let plane = self.system.testbed().control_plane();
        for round in 0.. {
            // Some tokens are renewed while their pods live; those of the others outlast the run if nobody revokes them.
            let ttl = if round % 2 == 0 { "20s" } else { "1h" };
            let spec = PodSpec::new(NAMESPACE, &format!("load-{number}-{round}"), "shop-read", ttl);
            let pod = self.kubelet.create(plane, &spec).await?;
            // Some init containers are killed once, and come back after their wrapping token's end.
            let clumsy = round % 3 == 2;
            if !self.initialize(&pod, clumsy).await? {
                self.lost.fetch_add(1, Ordering::AcqRel);
                self.kubelet.remove(plane, &pod).await?;
                continue;
            }
            self.served.fetch_add(1, Ordering::AcqRel);
            self.kubelet.report_running(plane, &pod).await?;
            let end = Instant::now() + Duration::from_millis(fastrand::u64(..LONGEST));
            while Instant::now() < end && !self.stop.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            if !self.accepts(&pod).await? {
                report::line(&format!("the token of {} is dead, and the pod is running", pod.name));
                self.dead.fetch_add(1, Ordering::AcqRel);
            }
            if self.stop.load(Ordering::Acquire) {
                return Ok(Some(pod));
            }
            self.kubelet.remove(plane, &pod).await?;
        }
        Ok(None)
    }

    /// Runs a pod's init container as the kubelet does, again after each failure; gives whether there is a token in the end.
    async fn initialize(&self, pod: &PodHandle, clumsy: bool) -> Result<bool, Error> {
        let (plane, vault) = (self.system.testbed().control_plane(), self.system.testbed().vault());
        let begun = Instant::now();
        let mut first = clumsy;
        loop {
            let init = self.kubelet.start_init(plane, vault, pod, &[("VTO_LOG", "info")]).await?;
            self.kubelet.report_initializing(plane, pod).await?;
            if std::mem::take(&mut first) {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..300))).await;
                if init.exit_status().is_none() {
                    init.kill();
                    tokio::time::sleep(Duration::from_millis(3500)).await;
                    continue;
                }
            }
            let Some(left) = TOKEN_LIMIT.checked_sub(begun.elapsed()) else { return Ok(false) };
            match init.wait(left).await {
                Ok(status) if status.success() => {
                    let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
                    *waited = waited.max(begun.elapsed());
                    return Ok(true);
                }
                Ok(_) => {
                    report::line(&format!("{}: {}", pod.name, init.termination_message()));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(_) => {
                    report::line(&format!("{} waited in vain", pod.name));
                    return Ok(false);
                }
            }
        }
    }

    /// Whether Vault accepts the token in the pod's volume.
    pub async fn accepts(&self, pod: &PodHandle) -> Result<bool, Error> {
        let path = pod.volume.join("token");
        let token = std::fs::read_to_string(&path).map_err(Error::path("could not read", &path))?.into();
        let vault = self.system.testbed().vault();
        let (status, _) = vault.request_as(Some(&token), Method::GET, "secret/data/shop/read", None).await?;
        Ok(status == StatusCode::OK)
    }
}
