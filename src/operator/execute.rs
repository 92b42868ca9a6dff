//! Where plans become deeds: the one place that acts on Vault, on pods and on requests.

use super::ledger::Ledger;
use super::observe::Pods;
use super::push::Pusher;
use super::reaper::Reaper;
use crate::api::{Phase, Reason, VaultTokenRequest, VaultTokenRequestStatus};
use crate::cluster;
use crate::domain::grant::{Limits, Why};
use crate::domain::plan::{Observed, Step, decide, wants_pod};
use crate::domain::pod::Observation;
use crate::domain::status::Draft;
use crate::domain::token::{Hand, Intent, Wrapped};
use crate::text::one_line;
use crate::vault::{self, TokenOrder, TokenStore};
use crate::wire::{Outcome, Push};
use jiff::Timestamp;
use kube::ResourceExt;
use std::collections::HashMap;
use std::net::IpAddr;
use tokio::sync::Semaphore;

/// How many pushes are under way at a time: fewer than looks, so that pods that do not answer never hold up the
/// revocation of other pods' tokens.
const PUSHES: usize = 32;

/// Takes requests forward.
pub struct Executor {
    cluster: String,
    limits: Limits,
    ledger: Ledger,
    pods: Pods,
    tokens: TokenStore,
    reaper: Reaper,
    pusher: Pusher,
    pushes: Semaphore,
}

/// What is to be done about a request once a look at it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until it or its pod changes.
    Rest,
    /// Look again after a wait; `moved` says that this look changed the request's phase.
    Retry {
        /// Whether the wait is the first of its kind.
        moved: bool,
    },
    /// Look again at this time.
    At(Timestamp),
}

/// A look at a request that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// What is to be done next.
    pub next: Next,
    /// The request's resourceVersion as it was last seen or written.
    pub version: Option<String>,
}

/// How one step went: the request as it is now, and whether to go on with it.
type Progress = (VaultTokenRequest, Go);

/// Whether to go on with a request after a step.
enum Go {
    /// On to the next step.
    On,
    /// No more steps, until something changes.
    Rest,
    /// No more steps before this time.
    Later(Timestamp),
    /// No more steps for now.
    Retry,
}

impl Executor {
    /// Puts the parts together.
    ///
    /// # Errors
    /// What keeps the HTTP client for pods from being made.
    pub fn new(
        cluster: String,
        limits: Limits,
        ledger: Ledger,
        pods: Pods,
        tokens: TokenStore,
    ) -> Result<Self, String> {
        let reaper = Reaper::new(tokens.clone());
        let pushes = Semaphore::new(PUSHES);
        Ok(Self { cluster, limits, ledger, pods, tokens, reaper, pusher: Pusher::new()?, pushes })
    }

    /// Sees to what is in memory for a request that is gone.
    pub fn drop_hand(&self, request_uid: &str, hand: &mut Hand) {
        if let Hand::Unconfirmed(wrapped) = std::mem::take(hand) {
            let accessor = wrapped.minted.token_accessor;
            self.reaper.take_back(request_uid.to_owned(), accessor, wrapped.period);
        }
    }

    /// Takes one request as far as it goes for now. `pod_lives` says that the watch shows its pod alive.
    ///
    /// # Errors
    /// Where the API server could not be asked, or refused a write because somebody was faster.
    pub async fn advance(
        &self,
        seen: &VaultTokenRequest,
        hand: &mut Hand,
        pod_lives: bool,
    ) -> Result<Look, cluster::Error> {
        let Some(mut request) = self.current(seen, hand).await? else {
            self.drop_hand(&seen.uid().unwrap_or_default(), hand);
            return Ok(Look { next: Next::Rest, version: None });
        };
        let mut moved = false;
        loop {
            let trusted = pod_lives && request.phase() == Phase::Delivered;
            let pod = if wants_pod(&request) && !trusted { Some(self.observe(&request).await?) } else { None };
            let away = self.tokens.away();
            let step = decide(&Observed {
                request: &request,
                pod: pod.as_ref(),
                hand,
                vault_away: away.as_deref(),
                limits: &self.limits,
                now: Timestamp::now(),
            });
            tracing::debug!(request = request.name_any(), phase = %request.phase(), ?step, "decided");
            let phase = request.phase();
            let (next, go) = self.execute(step, &request, hand).await?;
            request = next;
            moved |= request.phase() != phase;
            let next = match go {
                Go::On => continue,
                Go::Rest => Next::Rest,
                Go::Later(time) => Next::At(time),
                Go::Retry => Next::Retry { moved },
            };
            return Ok(Look { next, version: request.resource_version() });
        }
    }

    /// The request to decide on. In the midst of an attempt the watch may lag behind what was written here.
    async fn current(
        &self,
        seen: &VaultTokenRequest,
        hand: &Hand,
    ) -> Result<Option<VaultTokenRequest>, cluster::Error> {
        let midway = matches!(seen.phase(), Phase::Minting | Phase::Issued | Phase::Revoking);
        if !midway && matches!(hand, Hand::Empty) {
            return Ok(Some(seen.clone()));
        }
        let fresh = self.ledger.read(seen).await?;
        Ok(fresh.filter(|fresh| fresh.uid() == seen.uid()))
    }

    async fn observe(&self, request: &VaultTokenRequest) -> Result<Observation, cluster::Error> {
        let namespace = request.namespace().unwrap_or_default();
        self.pods.read(&namespace, &request.spec.pod_name, &request.spec.init_container).await
    }

    async fn execute(
        &self,
        step: Step,
        request: &VaultTokenRequest,
        hand: &mut Hand,
    ) -> Result<Progress, cluster::Error> {
        match step {
            Step::Settle => Ok((request.clone(), Go::Rest)),
            Step::Wait(why) => self.wait(request, &why).await,
            Step::Later(time) => Ok((request.clone(), Go::Later(time))),
            Step::Deny(why) => self.write(request, draft(request).denied(&why)).await,
            Step::Fail(why) => self.write(request, draft(request).failed(&why)).await,
            Step::Intend(intent) => {
                let next = self.write(request, draft(request).intended(&intent)).await?;
                *hand = Hand::Intent(intent);
                Ok(next)
            }
            Step::Mint(intent) => self.mint(request, hand, intent).await,
            Step::Push(addresses) => self.push(request, hand, &addresses).await,
            Step::RevokeUnrecorded => {
                self.drop_hand(&request.uid().unwrap_or_default(), hand);
                Ok((request.clone(), Go::On))
            }
            Step::Abandon(why) => self.abandon(request, hand, &why.message).await,
            Step::RevokeAbandoned(accessor) => match self.tokens.revoke(&accessor).await {
                Ok(()) => self.write(request, draft(request).cleared()).await,
                Err(error) => self.wait(request, &vault_why(&error)).await,
            },
            Step::RevokeFinally(accessor, why) => match self.tokens.revoke(&accessor).await {
                Ok(()) => {
                    *hand = Hand::Empty;
                    self.write(request, draft(request).revoked(&why)).await
                }
                Err(error) => self.wait(request, &vault_why(&error)).await,
            },
            Step::Release => self.ledger.release(request).await.map(|()| (request.clone(), Go::Rest)),
        }
    }

    /// Rules 2 and 3: mint once, then record, guarded by the write that announced the attempt.
    async fn mint(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        intent: Intent,
    ) -> Result<Progress, cluster::Error> {
        let minted = match self.tokens.mint(&self.order(request, &intent)).await {
            Ok(minted) => minted,
            Err(error) if error.is_refusal() => {
                *hand = Hand::Empty;
                let role = self.tokens.role();
                let message = format!(
                    "Vault refused: {error}; the token role {role} decides which policies it gives \
                     (allowed_policies_glob)"
                );
                return self.write(request, draft(request).denied(&Why::new(Reason::VaultRefused, message))).await;
            }
            Err(error) if error.had_no_effect() => return self.wait(request, &vault_why(&error)).await,
            Err(error) => {
                // Whether a token came of it is unknown: this attempt is over, the next one is another.
                *hand = Hand::Empty;
                let unclear = draft(request).unclear(&vault_why(&error));
                return Ok((self.ledger.write(request, unclear).await?, Go::Retry));
            }
        };
        let issued = draft(request).issued(&minted);
        let wrapped = Wrapped { attempt: intent.attempt, period: intent.grant.ttl, minted };
        match self.ledger.write(request, issued).await {
            Ok(recorded) => {
                *hand = Hand::Wrapped(wrapped);
                Ok((recorded, Go::On))
            }
            // Refused, or without an answer: it counts as recorded only if it stands there.
            Err(error) => {
                tracing::warn!(request = request.name_any(), %error, "the record of a token was not confirmed");
                *hand = Hand::Unconfirmed(wrapped);
                Ok((request.clone(), Go::Retry))
            }
        }
    }

    /// Rules 4 and 5: hand the wrapping token over, and note that only when the init container said so.
    async fn push(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        addresses: &[IpAddr],
    ) -> Result<Progress, cluster::Error> {
        let (Hand::Wrapped(wrapped) | Hand::Unconfirmed(wrapped), Ok(_place)) = (&*hand, self.pushes.try_acquire())
        else {
            return Ok((request.clone(), Go::Retry));
        };
        let minted = &wrapped.minted;
        let push = Push {
            request_uid: request.uid().unwrap_or_default(),
            attempt: wrapped.attempt,
            wrapping_token: minted.wrapping_token.clone(),
            creation_path: minted.creation_path.clone(),
        };
        let port = u16::try_from(request.spec.port).unwrap_or_default();
        let failed = |message: &str| {
            let message = format!("the init container does not have the token yet: {}", one_line(message));
            Why::new(Reason::PushFailed, message)
        };
        match self.pusher.push(addresses, port, &push).await {
            Ok(answer) => match answer.outcome {
                Outcome::Stored => self.delivered(request, hand).await,
                Outcome::Unused => self.wait(request, &failed(&answer.message)).await,
                Outcome::Lost => {
                    let message = format!("the wrapping token is used up: {}", one_line(&answer.message));
                    self.abandon(request, hand, &message).await
                }
            },
            Err(seen) => self.wait(request, &failed(&seen)).await,
        }
    }

    /// Rule 5. Only after the push, so that nothing but the push lies between it and the fresh read of the pod.
    async fn delivered(&self, request: &VaultTokenRequest, hand: &mut Hand) -> Result<Progress, cluster::Error> {
        let accessor = request.status.as_ref().and_then(|status| status.token_accessor.as_deref()).unwrap_or_default();
        match self.tokens.look_up(accessor).await {
            Ok(Some(token)) => {
                let next = self.write(request, draft(request).delivered(token.expire_time)).await?;
                *hand = Hand::Empty;
                Ok(next)
            }
            Ok(None) => self.abandon(request, hand, "Vault does not know the token any more").await,
            // The next push finds the init container holding the token already.
            Err(error) => self.wait(request, &vault_why(&error)).await,
        }
    }

    /// Rule 6: Revoking is written before anything is revoked.
    async fn abandon(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        message: &str,
    ) -> Result<Progress, cluster::Error> {
        let why = Why::new(Reason::AttemptAbandoned, message);
        let next = self.write(request, draft(request).abandoned(&why)).await?;
        *hand = Hand::Empty;
        Ok(next)
    }

    async fn wait(&self, request: &VaultTokenRequest, why: &Why) -> Result<Progress, cluster::Error> {
        Ok((self.ledger.write(request, draft(request).waiting(why)).await?, Go::Retry))
    }

    async fn write(
        &self,
        request: &VaultTokenRequest,
        status: VaultTokenRequestStatus,
    ) -> Result<Progress, cluster::Error> {
        Ok((self.ledger.write(request, status).await?, Go::On))
    }

    fn order(&self, request: &VaultTokenRequest, intent: &Intent) -> TokenOrder {
        let pod = &intent.pod;
        let address = pod.addresses.first().map(IpAddr::to_string);
        let meta = [
            ("cluster", Some(self.cluster.clone())),
            ("namespace", request.namespace()),
            ("pod_name", Some(request.spec.pod_name.clone())),
            ("pod_uid", Some(request.spec.pod_uid.clone())),
            ("pod_ip", address),
            ("host_ip", pod.host_ip.clone()),
            ("service_account", Some(pod.service_account.clone())),
            ("request_uid", request.uid()),
            ("attempt", Some(intent.attempt.to_string())),
        ];
        TokenOrder {
            display_name: request.spec.pod_name.clone(),
            policies: intent.grant.policies.clone(),
            period: intent.grant.ttl,
            meta: meta.into_iter().map(|(k, v)| (k.to_owned(), v.unwrap_or_default())).collect::<HashMap<_, _>>(),
        }
    }
}

fn draft(request: &VaultTokenRequest) -> Draft {
    Draft::new(request.status.as_ref(), request.metadata.generation, Timestamp::now())
}

fn vault_why(error: &vault::Error) -> Why {
    Why::new(error.reason(), one_line(&error.to_string()))
}
