//! Pods, as the decisions see them.

use crate::cluster::{Error, bounded};
use crate::domain::pod::{Observation, PodFacts};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::sync::Semaphore;

/// How many are read at a time. Each is as large as its maker wants ([`crate::cluster::watch`]), and what is read is in memory.
const AT_A_TIME: usize = 6;

/// Pods, read fresh from the API server: no decision rests on a cache (rules 1, 4 and 7).
pub struct Pods {
    client: Client,
    places: Semaphore,
}

impl Pods {
    /// Reads with this client.
    pub fn new(client: Client) -> Self {
        Self { client, places: Semaphore::new(AT_A_TIME) }
    }

    /// Reads a pod; `init_container` is the container that asks.
    ///
    /// # Errors
    /// Whatever leaves it open whether the pod is there.
    pub async fn read(&self, namespace: &str, name: &str, init_container: &str) -> Result<Observation, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        // It is never closed.
        let _place = self.places.acquire().await;
        Ok(match bounded(pods.get_opt(name)).await? {
            Some(pod) => Observation::Present(PodFacts::read(&pod, init_container)),
            None => Observation::Absent,
        })
    }
}
