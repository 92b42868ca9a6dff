//! Where plans become deeds: the one place that acts on Vault, on pods and on requests.

use super::ledger::Ledger;
use super::observe::Pods;
use super::push::Pusher;
use crate::api::{Phase, Reason, VaultTokenRequest, VaultTokenRequestStatus};
use crate::cluster;
use crate::domain::grant::{Limits, Why};
use crate::domain::plan::{Observed, Step, decide, wants_pod};
use crate::domain::pod::Observation;
use crate::domain::status::Draft;
use crate::domain::token::{Hand, Intent, Minted, Wrapped};
use crate::text::one_line;
use crate::vault::{self, TokenOrder, TokenStore};
use crate::wire::{Outcome, Push};
use jiff::Timestamp;
use kube::ResourceExt;
use std::collections::HashMap;
use std::net::IpAddr;

/// How often the revocation of a token that could not be recorded is tried before it is left to its period.
const REVOKE_OWN_TRIES: u32 = 5;

/// Takes requests forward.
pub struct Executor {
    cluster: String,
    limits: Limits,
    ledger: Ledger,
    pods: Pods,
    tokens: TokenStore,
    pusher: Pusher,
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
}

/// How one step went.
enum Progress {
    /// The request is now this; on to the next step.
    Wrote(Box<VaultTokenRequest>),
    /// No more steps, until something changes.
    Rest,
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
        Ok(Self { cluster, limits, ledger, pods, tokens, pusher: Pusher::new()? })
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
    ) -> Result<Next, cluster::Error> {
        let Some(mut request) = self.current(seen).await? else { return Ok(Next::Rest) };
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
            match self.execute(step, &request, hand).await? {
                Progress::Wrote(next) => {
                    moved |= next.phase() != request.phase();
                    request = *next;
                }
                Progress::Rest => return Ok(Next::Rest),
                Progress::Retry => return Ok(Next::Retry { moved }),
            }
        }
    }

    /// The request to decide on. In the midst of an attempt the watch may lag behind what was written here.
    async fn current(&self, seen: &VaultTokenRequest) -> Result<Option<VaultTokenRequest>, cluster::Error> {
        match seen.phase() {
            Phase::Minting | Phase::Issued | Phase::Revoking => {
                let fresh = self.ledger.read(seen).await?;
                Ok(fresh.filter(|fresh| fresh.uid() == seen.uid()))
            }
            _ => Ok(Some(seen.clone())),
        }
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
            Step::Settle => Ok(Progress::Rest),
            Step::Wait(why) => self.wait(request, &why).await,
            Step::Deny(why) => self.write(request, draft(request).denied(&why)).await,
            Step::Fail(why) => self.write(request, draft(request).failed(&why)).await,
            Step::Intend(intent) => {
                let next = self.write(request, draft(request).intended(&intent)).await?;
                *hand = Hand::Intent(intent);
                Ok(next)
            }
            Step::Mint(intent) => self.mint(request, hand, intent).await,
            Step::Push(addresses) => self.push(request, hand, &addresses).await,
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
            Step::Release => self.ledger.release(request).await.map(|()| Progress::Rest),
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
                let message = format!("Vault refused: {error}; the token role decides which policies it gives");
                return self.write(request, draft(request).denied(&Why::new(Reason::VaultRefused, message))).await;
            }
            Err(error) => {
                if !error.had_no_effect() {
                    // Whether a token came of it is unknown: this attempt is over, the next one is another.
                    *hand = Hand::Empty;
                }
                return self.wait(request, &vault_why(&error)).await;
            }
        };
        *hand = Hand::Empty;
        let recorded = match self.ledger.write(request, draft(request).issued(&minted)).await {
            Ok(recorded) => Some(recorded),
            // Refused, or without an answer: it counts as recorded only if it stands there.
            Err(error) => {
                tracing::warn!(request = request.name_any(), %error, "the record of a token was not confirmed");
                self.find_record(request, &minted).await
            }
        };
        match recorded {
            Some(recorded) => {
                *hand = Hand::Wrapped(Wrapped { attempt: intent.attempt, minted });
                Ok(Progress::Wrote(Box::new(recorded)))
            }
            None => {
                self.revoke_own(request, &minted).await;
                Ok(Progress::Retry)
            }
        }
    }

    /// Looks whether the record stands, for as long as the API server may be asked and the wrapping token lives: to
    /// take a token for unrecorded that is recorded would leave a dead one in the record.
    async fn find_record(&self, request: &VaultTokenRequest, minted: &Minted) -> Option<VaultTokenRequest> {
        for failures in 1.. {
            match self.ledger.read(request).await {
                Ok(found) => {
                    return found.filter(|found| {
                        let status = found.status.as_ref();
                        found.phase() == Phase::Issued
                            && status.and_then(|status| status.token_accessor.as_ref()) == Some(&minted.token_accessor)
                    });
                }
                Err(error) if Timestamp::now() >= minted.wrapping_expires_at => {
                    tracing::warn!(request = request.name_any(), %error, "whether a token is recorded stays unknown");
                    break;
                }
                Err(_) => tokio::time::sleep(super::controller::RETRY.after(failures, rand::random())).await,
            }
        }
        None
    }

    /// Takes back a token that no record names.
    async fn revoke_own(&self, request: &VaultTokenRequest, minted: &Minted) {
        let accessor = &minted.token_accessor;
        for attempt in 1..=REVOKE_OWN_TRIES {
            match self.tokens.revoke(accessor).await {
                Ok(()) => {
                    tracing::info!(target: "audit", step = "RevokedUnrecorded", request = request.name_any(),
                        request_uid = request.uid().unwrap_or_default(), token_accessor = accessor,
                        "a token that could not be recorded was revoked");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, attempt, token_accessor = accessor, "cannot revoke an unrecorded token yet");
                    tokio::time::sleep(super::controller::RETRY.after(attempt, rand::random())).await;
                }
            }
        }
        tracing::error!(target: "audit", step = "Orphaned", request = request.name_any(),
            request_uid = request.uid().unwrap_or_default(), token_accessor = accessor,
            "a token could be neither recorded nor revoked; it lives until its period ends");
    }

    /// Rules 4 and 5: hand the wrapping token over, and note that only when the init container said so.
    async fn push(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        addresses: &[IpAddr],
    ) -> Result<Progress, cluster::Error> {
        let Hand::Wrapped(wrapped) = &*hand else { return Ok(Progress::Retry) };
        let minted = &wrapped.minted;
        let expires_at = match self.tokens.look_up(&minted.token_accessor).await {
            Ok(Some(token)) => token.expire_time,
            Ok(None) => return self.abandon(request, hand, "Vault does not know the token any more").await,
            Err(error) => return self.wait(request, &vault_why(&error)).await,
        };
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
                Outcome::Stored => {
                    let next = self.write(request, draft(request).delivered(expires_at)).await?;
                    *hand = Hand::Empty;
                    Ok(next)
                }
                Outcome::Unused => self.wait(request, &failed(&answer.message)).await,
                Outcome::Lost => {
                    let message = format!("the wrapping token is used up: {}", one_line(&answer.message));
                    self.abandon(request, hand, &message).await
                }
            },
            Err(seen) => self.wait(request, &failed(&seen)).await,
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
        self.ledger.write(request, draft(request).waiting(why)).await?;
        Ok(Progress::Retry)
    }

    async fn write(
        &self,
        request: &VaultTokenRequest,
        status: VaultTokenRequestStatus,
    ) -> Result<Progress, cluster::Error> {
        Ok(Progress::Wrote(Box::new(self.ledger.write(request, status).await?)))
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
