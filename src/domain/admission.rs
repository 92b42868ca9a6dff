//! Whether the API server checks who creates requests: without that, no request says anything of who made it.

use super::grant::{Verdict, Why};
use crate::api::{Reason, VaultTokenRequest};
use jiff::Timestamp;

/// What brings the admission policies back, in the folder of the version that runs, whoever has changed them.
pub const REMEDY: &str = "kubectl apply --server-side --force-conflicts -f config/admission.yaml";

/// What is known of the admission policy of `config/admission.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It is installed as the operator was built with it, and refuses what it must.
    InForce {
        /// Whatever is older was not checked by it.
        since: Timestamp,
    },
    /// It is not, and this is what is wrong.
    Lacking(String),
    /// The operator was told to do without.
    Waived,
}

impl Admission {
    /// Whether the policy was in force for all of the request's life: it has checked who made it, and whatever was written to it since.
    pub fn vouches_for(&self, request: &VaultTokenRequest) -> bool {
        let created = request.metadata.creation_timestamp.as_ref().map(|created| created.0);
        matches!(self, Self::InForce { since } if created.is_some_and(|created| created >= *since))
    }

    /// What keeps a request from being served for want of it.
    pub fn objection(&self, request: &VaultTokenRequest) -> Option<Verdict> {
        let wait = |message: String| Some(Verdict::NotYet(Why::new(Reason::AdmissionLacking, message)));
        match self {
            Self::Waived => None,
            Self::Unknown => wait("waiting to see whether the admission policy is in force".to_owned()),
            Self::Lacking(why) => {
                wait(format!("no tokens are made, since {why}: {REMEDY}"))
            }
            Self::InForce { since } => (!self.vouches_for(request)).then(|| {
                let message = format!(
                    "the request is older than the admission policy, which is in force since {since:.0}: nothing checked who made \
                     it. The init container makes another one when it starts again"
                );
                Verdict::Denied(Why::new(Reason::RequestUnverified, message))
            }),
        }
    }

    /// In words, for the health endpoint.
    pub fn describe(&self) -> String {
        match self {
            Self::Unknown => "not looked at yet".to_owned(),
            Self::InForce { since } => format!("in force since {since:.0}"),
            Self::Lacking(why) => format!("no tokens are made, since {why}"),
            Self::Waived => "waived: nothing checks who creates requests (--trust-unverified-requests)".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::grant::tests::request;
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn only_what_the_policy_has_seen_is_served() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let mut request = request();
        request.metadata.creation_timestamp = Some(Time(at(100)));
        assert_eq!(Admission::InForce { since: at(100) }.objection(&request), None);
        assert_eq!(Admission::Waived.objection(&request), None);
        let older = Admission::InForce { since: at(101) }.objection(&request);
        assert!(matches!(older, Some(Verdict::Denied(Why { reason: Reason::RequestUnverified, .. }))), "{older:?}");
        for lacking in [Admission::Unknown, Admission::Lacking("it is missing".to_owned())] {
            assert!(matches!(lacking.objection(&request), Some(Verdict::NotYet(_))), "{lacking:?}");
        }
    }
}
