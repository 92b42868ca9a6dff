//! A node that runs whatever pods there are, for the demo: `kubectl apply` and `kubectl delete` are all it takes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::{Init, Kubelet, PodHandle};
use crate::bed::Testbed;
use crate::control_plane::within;
use crate::error::Error;

/// How often the pods are looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long an init container that failed waits to be started again, as a kubelet has it at first.
const RESTART: Duration = Duration::from_secs(10);

/// The pods of one node.
#[derive(Debug)]
pub struct Node<'a> {
    kubelet: &'a Kubelet,
    testbed: &'a Testbed,
    pods: HashMap<String, Running>,
}

#[derive(Debug)]
struct Running {
    pod: PodHandle,
    init: Stage,
}

#[derive(Debug)]
enum Stage {
    Runs(Init),
    Failed(Instant),
    Done,
}

impl<'a> Node<'a> {
    /// A node without pods.
    pub fn new(kubelet: &'a Kubelet, testbed: &'a Testbed) -> Self {
        Self { kubelet, testbed, pods: HashMap::new() }
    }

    /// Runs pods for as long as it is polled.
    pub async fn run(mut self) -> Result<(), Error> {
        let api: Api<Pod> = Api::all(self.client()?);
        loop {
            let listed = within("could not list pods", api.list(&ListParams::default())).await?;
            for pod in &listed.items {
                self.sync(pod).await?;
            }
            self.pods.retain(|uid, _| listed.items.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid)));
            tokio::time::sleep(POLL).await;
        }
    }

    fn client(&self) -> Result<Client, Error> {
        self.testbed.control_plane().admin_client()
    }

    async fn sync(&mut self, pod: &Pod) -> Result<(), Error> {
        let uid = pod.uid().unwrap_or_default();
        let (plane, kubelet) = (self.testbed.control_plane(), self.kubelet);
        if !self.pods.contains_key(&uid) {
            let bound = kubelet.bind(plane, pod).await?;
            let init = self.start(&bound).await?;
            self.pods.insert(uid, Running { pod: bound, init });
            return Ok(());
        }
        let Some(running) = self.pods.get_mut(&uid) else { return Ok(()) };
        if pod.metadata.deletion_timestamp.is_some() {
            if let Stage::Runs(init) = &running.init {
                init.kill();
            }
            return kubelet.remove(plane, &running.pod).await;
        }
        match &running.init {
            Stage::Runs(init) => match init.exit_status() {
                None => {}
                Some(status) if status.success() => {
                    kubelet.report_running(plane, &running.pod).await?;
                    running.init = Stage::Done;
                }
                Some(_) => {
                    kubelet.report_init_failed(plane, &running.pod, &init.termination_message()).await?;
                    running.init = Stage::Failed(Instant::now());
                }
            },
            Stage::Failed(since) if since.elapsed() >= RESTART => {
                let bound = running.pod.clone();
                let init = self.start(&bound).await?;
                if let Some(running) = self.pods.get_mut(&uid) {
                    running.init = init;
                }
            }
            Stage::Failed(_) | Stage::Done => {}
        }
        Ok(())
    }

    async fn start(&self, pod: &PodHandle) -> Result<Stage, Error> {
        let (plane, vault) = (self.testbed.control_plane(), self.testbed.vault());
        let init = self.kubelet.start_init(plane, vault, pod, &[]).await?;
        self.kubelet.report_initializing(plane, pod).await?;
        Ok(Stage::Runs(init))
    }
}
