//! A node that runs whatever pods there are that have an init container of the product's, for the demo: `kubectl apply`
//! and `kubectl delete` are all it takes. Other pods are left alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::{IMAGE, Init, Kubelet, NODE, PodHandle, init_container};
use crate::bed::Testbed;
use crate::control_plane::within;
use crate::error::Error;
use crate::report;

/// How often the pods are looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long an init container that failed waits to be started again, as a kubelet has it at first.
const RESTART: Duration = Duration::from_secs(10);

/// How long a pod is left alone after something about it has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// The pods of one node, by their UIDs; `None` is one that is left alone.
#[derive(Debug)]
pub struct Node<'a> {
    kubelet: &'a Kubelet,
    testbed: &'a Testbed,
    pods: HashMap<String, Option<Running>>,
    troubles: HashMap<String, Trouble>,
}

#[derive(Debug)]
struct Running {
    pod: PodHandle,
    init: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its time to be started comes.
    Due(Instant),
    Runs(Init),
    Done,
}

/// What failed last about a pod.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    told: String,
}

impl<'a> Node<'a> {
    /// A node without pods.
    pub fn new(kubelet: &'a Kubelet, testbed: &'a Testbed) -> Self {
        Self { kubelet, testbed, pods: HashMap::new(), troubles: HashMap::new() }
    }

    /// Runs pods for as long as it is polled; whatever fails ends it.
    pub async fn run(mut self) -> Result<(), Error> {
        loop {
            for pod in self.list().await? {
                self.sync(&pod).await?;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// As [`Node::run`], for pods that somebody else makes: what fails about one of them is said, and tried again.
    pub async fn run_any(mut self) -> Result<(), Error> {
        loop {
            for pod in self.list().await? {
                let uid = pod.uid().unwrap_or_default();
                if self.troubles.get(&uid).is_some_and(|trouble| trouble.since.elapsed() < PAUSE) {
                    continue;
                }
                match self.sync(&pod).await {
                    Ok(()) => drop(self.troubles.remove(&uid)),
                    Err(error) => self.tell(&pod, uid, &error).await?,
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Lists the pods, and forgets those that are gone.
    async fn list(&mut self) -> Result<Vec<Pod>, Error> {
        let api: Api<Pod> = Api::all(self.client()?);
        let listed = within("could not list pods", api.list(&ListParams::default())).await?.items;
        let is_there = |uid: &String| listed.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid));
        self.pods.retain(|uid, _| is_there(uid));
        self.troubles.retain(|uid, _| is_there(uid));
        Ok(listed)
    }

    fn client(&self) -> Result<Client, Error> {
        self.testbed.control_plane().admin_client()
    }

    /// Says what failed about a pod, once for each thing that does; not of a pod that has gone meanwhile.
    async fn tell(&mut self, pod: &Pod, uid: String, error: &Error) -> Result<(), Error> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let api: Api<Pod> = Api::namespaced(self.client()?, &namespace);
        let found = within("could not read a pod", api.get_opt(&name)).await?;
        if found.and_then(|pod| pod.uid()).as_ref() != Some(&uid) {
            return Ok(());
        }
        let told = format!("{namespace}/{name}: {}", error.in_one_line());
        if self.troubles.get(&uid).is_none_or(|trouble| trouble.told != told) {
            report::line(&told);
        }
        self.troubles.insert(uid, Trouble { since: Instant::now(), told });
        Ok(())
    }

    async fn sync(&mut self, pod: &Pod) -> Result<(), Error> {
        let uid = pod.uid().unwrap_or_default();
        let (plane, vault, kubelet) = (self.testbed.control_plane(), self.testbed.vault(), self.kubelet);
        let running = match self.pods.get_mut(&uid) {
            Some(Some(running)) => running,
            Some(None) => return Ok(()),
            None => {
                let taken = self.take(pod).await?;
                self.pods.insert(uid, taken);
                return Ok(());
            }
        };
        if pod.metadata.deletion_timestamp.is_some() {
            if let Stage::Runs(init) = &running.init {
                init.kill();
            }
            return kubelet.remove(plane, &running.pod).await;
        }
        match &running.init {
            Stage::Due(time) if Instant::now() >= *time => {
                let init = kubelet.start_init(plane, vault, &running.pod, &[]).await?;
                kubelet.report_initializing(plane, &running.pod).await?;
                running.init = Stage::Runs(init);
            }
            Stage::Runs(init) => match init.exit_status() {
                None => {}
                Some(status) if status.success() => {
                    kubelet.report_running(plane, &running.pod).await?;
                    running.init = Stage::Done;
                }
                // The API server takes no second start from such a pod.
                Some(_) if pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("Never") => {
                    kubelet.report_failed(plane, &running.pod, &init.termination_message()).await?;
                    running.init = Stage::Done;
                }
                Some(_) => {
                    kubelet.report_init_failed(plane, &running.pod, &init.termination_message()).await?;
                    running.init = Stage::Due(Instant::now() + RESTART);
                }
            },
            Stage::Due(_) | Stage::Done => {}
        }
        Ok(())
    }

    /// Takes a new pod to this node, if it is one for it.
    async fn take(&self, pod: &Pod) -> Result<Option<Running>, Error> {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let why = match (init_container(pod), node) {
            (None, _) => format!("it has no init container of the image {IMAGE}"),
            (_, Some(node)) if node != NODE => format!("it is on the node {node}"),
            (_, node) => {
                let pod = match node {
                    Some(_) => self.kubelet.admit(pod)?,
                    None => self.kubelet.bind(self.testbed.control_plane(), pod).await?,
                };
                return Ok(Some(Running { pod, init: Stage::Due(Instant::now()) }));
            }
        };
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        report::line(&format!("{namespace}/{name} is left alone: {why}"));
        Ok(None)
    }
}
