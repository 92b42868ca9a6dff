//! Calls to the API server, told one by one to whoever counts them: at the one place that all of them pass.

use crate::traffic::Outcome;
use futures::future::BoxFuture;
use http::{Method, Request, Response, Uri};
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{Layer, Service};

/// A call that has ended. Of a list or a watch, its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// What was done, as RBAC names it.
    pub verb: &'static str,
    /// To what, as RBAC names it.
    pub resource: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// Who is told of calls.
pub type Listener = Arc<dyn Fn(Call) + Send + Sync>;

/// What the operator deals with. A path that names anything else is counted as `other`: what a peer writes makes no new metric.
const RESOURCES: [&str; 10] = [
    "events",
    "leases",
    "namespaces",
    "pods",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "vaultpolicybindings",
    "vaultpolicybindings/status",
    "vaulttokenrequests",
    "vaulttokenrequests/status",
];

impl Call {
    /// A call that is not answered yet.
    fn of(method: &Method, uri: &Uri) -> Self {
        let mut parts = uri.path().trim_matches('/').split('/');
        // /api/<version>, or /apis/<group>/<version>.
        let root = if parts.next() == Some("apis") { 2 } else { 1 };
        let mut parts = parts.skip(root).collect::<Vec<_>>();
        // A namespace is in front of what lies in it.
        if parts.len() > 2 && parts[0] == "namespaces" {
            parts.drain(..2);
        }
        let named = parts.len() > 1;
        let path = match parts[..] {
            [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
            [resource, ..] => resource.to_owned(),
            [] => String::new(),
        };
        let resource = RESOURCES.into_iter().find(|known| *known == path).unwrap_or("other");
        let watches = uri.query().unwrap_or_default().split('&').any(|pair| pair == "watch=true");
        let verb = match *method {
            Method::GET if watches => "watch",
            Method::GET if named => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "other",
        };
        Self { verb, resource, outcome: Outcome::Unavailable }
    }
}

/// Tells of a call when it ends; one that is given up before has had no answer.
struct Pending {
    call: Call,
    listener: Listener,
}

impl Pending {
    // A method, so that the future has all of it: dropped with the future, it tells of the call.
    fn answered(&mut self, status: u16) {
        self.call.outcome = Outcome::of_status(status);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        (self.listener)(self.call);
    }
}

/// Puts [`Counted`] around what makes calls.
pub struct Counting(pub Listener);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, service: S) -> Counted<S> {
        Counted { service, listener: self.0.clone() }
    }
}

/// Makes calls, and tells of them.
pub struct Counted<S> {
    service: S,
    listener: Listener,
}

impl<S, B, A> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = Call::of(request.method(), request.uri());
        let mut pending = Pending { call, listener: self.listener.clone() };
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            if let Ok(answer) = &answer {
                pending.answered(answer.status().as_u16());
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_named_as_rbac_names_it() {
        let requests = "/apis/vaultproject.io/v1alpha1/namespaces/shop/vaulttokenrequests";
        let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
        for (method, path, verb, resource) in [
            (Method::GET, "/api/v1/namespaces/shop/pods/web".to_owned(), "get", "pods"),
            (Method::GET, "/api/v1/pods?limit=500".to_owned(), "list", "pods"),
            (Method::GET, "/api/v1/pods?allowWatchBookmarks=true&watch=true".to_owned(), "watch", "pods"),
            (Method::GET, "/api/v1/namespaces?limit=500".to_owned(), "list", "namespaces"),
            (Method::GET, "/api/v1/namespaces/shop".to_owned(), "get", "namespaces"),
            (Method::PUT, format!("{requests}/web-1-0/status?"), "update", "vaulttokenrequests/status"),
            (Method::PATCH, format!("{requests}/web-1-0"), "patch", "vaulttokenrequests"),
            (Method::DELETE, format!("{requests}/web-1-0"), "delete", "vaulttokenrequests"),
            (Method::POST, requests.to_owned(), "create", "vaulttokenrequests"),
            (Method::GET, format!("{policies}/vault-token-requests"), "get", "validatingadmissionpolicies"),
            (Method::GET, "/version".to_owned(), "list", "other"),
            (Method::GET, "/api/v1/namespaces/shop/secrets/web".to_owned(), "get", "other"),
        ] {
            let uri = path.parse().expect("a path");
            let named = Call { verb, resource, outcome: Outcome::Unavailable };
            assert_eq!(Call::of(&method, &uri), named, "{method} {path}");
        }
    }
}
