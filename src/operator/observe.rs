//! Pods, as the decisions see them.

use crate::cluster::{Error, bounded};
use crate::domain::pod::{Observation, PodFacts};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

/// Pods, read fresh from the API server: no decision rests on a cache (rules 1, 4 and 7).
#[derive(Clone)]
pub struct Pods(Client);

impl Pods {
    /// Reads with this client.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// Reads a pod; `init_container` is the container that asks.
    ///
    /// # Errors
    /// Whatever leaves it open whether the pod is there.
    pub async fn read(&self, namespace: &str, name: &str, init_container: &str) -> Result<Observation, Error> {
        let pods: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        Ok(match bounded(pods.get_opt(name)).await? {
            Some(pod) => Observation::Present(PodFacts::read(&pod, init_container)),
            None => Observation::Absent,
        })
    }
}
