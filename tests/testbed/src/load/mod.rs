//! Pods that come and go, and what becomes of their tokens.

mod outcome;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::sync::{RwLock, RwLockWriteGuard};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::kubelet::{Init, Kubelet, PodHandle, PodSpec};
use crate::proxy::{Proxy, storm};
use crate::report;
use crate::system::{System, must_succeed};
use crate::vault::Method;
pub use outcome::{Left, Outcome};

/// How long a pod may wait for its token, through whatever happens.
const TOKEN_LIMIT: Duration = Duration::from_secs(120);
/// How long a clumsy init container runs before it is killed, and how long it takes to come back, at most.
const CLUMSY: Duration = Duration::from_millis(200);
const COME_BACK: Duration = Duration::from_secs(4);

/// What the pods are like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where they are.
    pub namespace: &'static str,
    /// How many there are at a time.
    pub workers: usize,
    /// How many there are in all, unless the load is stopped before.
    pub pods: usize,
    /// The ttl of every second one, whose token is renewed while it lives; those of the others outlast the run if nobody revokes
    /// them.
    pub ttl: &'static str,
    /// The longest that one lives with its token. Most live far shorter.
    pub longest: Duration,
    /// Of so many init containers one is killed once.
    pub clumsy: usize,
    /// Of so many pods one takes its token from the status of its request.
    pub status: usize,
    /// Whether pushes to them meet faults.
    pub stormy: bool,
}

/// The system under load, and what was seen.
#[derive(Debug)]
pub struct Load {
    /// The system.
    pub system: System,
    plan: Plan,
    kubelet: Kubelet,
    stop: AtomicBool,
    next: AtomicUsize,
    seen: Mutex<Seen>,
    /// Held to read by whoever plays the kubelet's part, to write while servers are away: the kubelet would try again.
    servers: RwLock<()>,
}

#[derive(Debug, Default)]
struct Seen {
    /// From when until when the pods that got their token waited for it.
    served: Vec<(Instant, Instant)>,
    /// When it was clear of the others that they do not get it.
    lost: Vec<Instant>,
    dead: usize,
}

impl Load {
    /// Makes the namespace of the pods. There are none yet.
    pub async fn new(system: System, kubelet: Kubelet, plan: Plan) -> Result<Arc<Self>, Error> {
        system.create_workload_namespace(plan.namespace).await?;
        system.allow_status_delivery(plan.namespace).await?;
        let (stop, next, servers) = (AtomicBool::new(false), AtomicUsize::new(0), RwLock::default());
        Ok(Arc::new(Self { system, plan, kubelet, stop, next, seen: Mutex::default(), servers }))
    }

    /// Starts the workers. Each ends with its last pod still running.
    pub fn start(self: &Arc<Self>) -> JoinSet<Result<Option<PodHandle>, Error>> {
        (0..self.plan.workers).map(|_| self.clone().work()).collect()
    }

    /// Lets the workers come to their end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Keeps the kubelet's part still, until the guard is dropped.
    pub async fn without_servers(&self) -> RwLockWriteGuard<'_, ()> {
        self.servers.write().await
    }

    /// How many pods got their token.
    pub fn served(&self) -> usize {
        self.seen().served.len()
    }

    /// Waits until so many got theirs, or no more are to come.
    pub async fn until_served(&self, pods: usize) {
        while self.served() < pods && !self.is_over() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// When it was clear of each pod that did not.
    pub fn lost(&self) -> Vec<Instant> {
        self.seen().lost.clone()
    }

    /// How many tokens died under a running pod.
    pub fn dead(&self) -> usize {
        self.seen().dead
    }

    /// The longest that a pod has waited for its token.
    pub fn waited(&self) -> Duration {
        self.seen().served.iter().map(|(from, to)| to.duration_since(*from)).max().unwrap_or_default()
    }

    /// How long it took until every pod had its token that waited for it at this time.
    pub fn recovery(&self, time: Instant) -> Duration {
        let seen = self.seen();
        let waiting = seen.served.iter().filter(|(from, to)| *from < time && time < *to);
        waiting.map(|(_, to)| to.duration_since(time)).max().unwrap_or_default()
    }

    /// Ends everything in order.
    pub async fn end(self: Arc<Self>) -> Result<(), Error> {
        let this = Arc::into_inner(self).ok_or(Error::Incomplete { what: "the load goes on".into(), field: "end" })?;
        this.system.stop().await
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.next.load(Ordering::Acquire) >= self.plan.pods
    }

    async fn work(self: Arc<Self>) -> Result<Option<PodHandle>, Error> {
        loop {
            let number = self.next.fetch_add(1, Ordering::AcqRel);
            if number >= self.plan.pods {
                return Ok(None);
            }
            let ttl = if number.is_multiple_of(2) { self.plan.ttl } else { "1h" };
            let spec = PodSpec::new(self.plan.namespace, &format!("load-{number}"), "shop-read", ttl);
            let pod = self.create(&spec).await?;
            let clumsy = fastrand::usize(..self.plan.clumsy) == 0;
            let begun = Instant::now();
            if !self.initialize(&pod, clumsy).await? {
                self.seen().lost.push(Instant::now());
                self.remove(&pod).await?;
                continue;
            }
            self.seen().served.push((begun, Instant::now()));
            self.report_running(&pod).await?;
            let end = Instant::now() + self.plan.longest.mul_f64(fastrand::f64().powi(3));
            while Instant::now() < end && !self.is_over() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if !self.accepts(&pod).await? {
                let status = self.status(&pod).await?;
                report::line(&format!("the token of {} is dead, and the pod is running: {status}", pod.name));
                self.seen().dead += 1;
            }
            if self.is_over() {
                return Ok(Some(pod));
            }
            self.remove(&pod).await?;
        }
    }

    /// What the pod's requests say, for people.
    async fn status(&self, pod: &PodHandle) -> Result<String, Error> {
        let of_pod = format!("jsonpath={{.items[?(@.spec.podUID==\"{}\")].status}}", pod.uid);
        let get = ["get", "vtr", "-n", &pod.namespace, "-o", &of_pod];
        must_succeed(self.system.testbed().control_plane().kubectl(&get).await?, "kubectl get")
    }

    /// Runs a pod's init container as the kubelet does, again after each failure; gives whether there is a token in the end.
    async fn initialize(&self, pod: &PodHandle, mut clumsy: bool) -> Result<bool, Error> {
        let begun = Instant::now();
        let proxy = match self.plan.stormy {
            true => Some(Proxy::before_init(pod.address).await?),
            false => None,
        };
        let mut settings = vec![("VTO_LOG", "info")];
        if let Some((proxy, listen)) = &proxy {
            proxy.follow(storm(fastrand::u64(..)));
            settings.push(("VTO_LISTEN", listen));
        }
        if fastrand::usize(..self.plan.status) == 0 {
            settings.push(("VTO_DELIVERY", "status"));
        }
        loop {
            let init = self.start_init(pod, &settings).await?;
            if std::mem::take(&mut clumsy) {
                tokio::time::sleep(CLUMSY.mul_f64(fastrand::f64())).await;
                if init.exit_status().is_none() {
                    init.kill();
                    tokio::time::sleep(COME_BACK.mul_f64(fastrand::f64())).await;
                    continue;
                }
            }
            let Some(left) = TOKEN_LIMIT.checked_sub(begun.elapsed()) else { return Ok(false) };
            match init.wait(left).await {
                Ok(status) if status.success() => return Ok(true),
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

    async fn create(&self, spec: &PodSpec) -> Result<PodHandle, Error> {
        let _there = self.servers.read().await;
        self.kubelet.create(self.system.testbed().control_plane(), spec).await
    }

    async fn start_init(&self, pod: &PodHandle, settings: &[(&str, &str)]) -> Result<Init, Error> {
        let _there = self.servers.read().await;
        let (plane, vault) = (self.system.testbed().control_plane(), self.system.testbed().vault());
        let init = self.kubelet.start_init(plane, vault, pod, settings).await?;
        self.kubelet.report_initializing(plane, pod).await?;
        Ok(init)
    }

    async fn report_running(&self, pod: &PodHandle) -> Result<(), Error> {
        let _there = self.servers.read().await;
        self.kubelet.report_running(self.system.testbed().control_plane(), pod).await
    }

    async fn remove(&self, pod: &PodHandle) -> Result<(), Error> {
        let _there = self.servers.read().await;
        self.kubelet.remove(self.system.testbed().control_plane(), pod).await
    }

    /// Whether Vault accepts the token in the pod's volume.
    async fn accepts(&self, pod: &PodHandle) -> Result<bool, Error> {
        let _there = self.servers.read().await;
        let path = pod.volume.join("token");
        let token = std::fs::read_to_string(&path).map_err(Error::path("could not read", &path))?.into();
        let vault = self.system.testbed().vault();
        let (status, _) = vault.request_as(Some(&token), Method::GET, "secret/data/shop/read", None).await?;
        Ok(status == StatusCode::OK)
    }
}
