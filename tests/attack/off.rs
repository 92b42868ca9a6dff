/// Whether the stop of this name is turned off. It stands in no product: `tests/attack` puts it into a copy of the source.
pub fn off(name: &str) -> bool {
    let listed = std::env::var_os("VTO_STOPS_OFF").and_then(|file| std::fs::read_to_string(file).ok());
    listed.is_some_and(|names| names.lines().any(|line| line == name))
}

/// Where fresh reads of pods are turned off: the pod as it was seen first, for as long as that initialized.
pub fn stale(
    pod: Option<k8s_openapi::api::core::v1::Pod>,
    place: String,
) -> Option<k8s_openapi::api::core::v1::Pod> {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    static SEEN: LazyLock<Mutex<HashMap<String, k8s_openapi::api::core::v1::Pod>>> = LazyLock::new(Mutex::default);
    if !off("pod-read-fresh") {
        return pod;
    }
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let initializing = pod.as_ref().is_some_and(|pod| {
        pod.status.as_ref().is_some_and(|status| status.init_container_statuses.is_some() && status.pod_ip.is_some())
    });
    match (seen.get(&place), pod) {
        (Some(first), _) => Some(first.clone()),
        (None, Some(pod)) if initializing => seen.entry(place).insert_entry(pod).get().clone().into(),
        (None, pod) => pod,
    }
}
