//! Where plans become deeds: the one place that acts on Vault, on pods and on requests.

use super::slots::Slots;
use super::world::{Grants, World};
use crate::api::{AttemptOutcome, Phase, Reason, VaultTokenRequest, VaultTokenRequestStatus};
use crate::cluster;
use crate::domain::grant::{Limits, Why};
use crate::domain::plan::{Observed, Siblings, Step, confirmed, decide, surely_expired, surely_outlived, wants_pod};
use crate::domain::status::{Draft, is_forgotten};
use crate::domain::token::{BASE_POLICY, Hand, Intent, Qualities, Wrapped};
use crate::seal::Receipt;
use crate::text::one_line;
use crate::vault::{self, TokenOrder};
use jiff::Timestamp;
use kube::ResourceExt;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Takes requests forward.
pub struct Executor<W> {
    cluster: String,
    limits: Limits,
    pub(super) world: Arc<W>,
    pub(super) slots: Slots,
}

/// What the watches show of a request and its surroundings. It may be old: nothing ends because of it but an older request
/// of a pod that has a newer token (rule 7).
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The request.
    pub request: &'a VaultTokenRequest,
    /// Whether its pod is alive.
    pub pod_lives: bool,
    /// What its pod's other requests mean for it.
    pub siblings: Siblings,
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
pub(super) type Progress = (VaultTokenRequest, Go);

/// Whether to go on with a request after a step.
pub(super) enum Go {
    /// On to the next step.
    On,
    /// No more steps, until something changes.
    Rest,
    /// No more steps before this time.
    Later(Timestamp),
    /// No more steps for now.
    Retry,
}

/// Whose a token is that a status names.
enum Owner {
    /// The request's own, or nobody's any more.
    Itself,
    /// Another request's, or nobody's that is known; with its accessor.
    Another(String),
    /// Vault does not tell.
    Unknown,
}

impl<W: World> Executor<W> {
    /// Puts the parts together.
    pub fn new(cluster: String, limits: Limits, world: Arc<W>) -> Self {
        Self { cluster, limits, world, slots: Slots::default() }
    }

    /// Sees to what is in memory for a request that is gone, or that records another token.
    pub fn drop_hand(&self, request_uid: &str, hand: &mut Hand) {
        if let Hand::Unconfirmed(wrapped) = std::mem::take(hand) {
            self.world.take_back(request_uid, wrapped.minted.token_accessor, wrapped.period);
        }
    }

    /// Takes one request as far as it goes for now.
    ///
    /// # Errors
    /// Where the API server could not be asked, or refused a write because somebody was faster.
    pub async fn advance(&self, seen: &Seen<'_>, hand: &mut Hand) -> Result<Look, cluster::Error> {
        let Some(mut request) = self.current(seen.request, hand).await? else {
            self.drop_hand(&seen.request.uid().unwrap_or_default(), hand);
            return Ok(Look { next: Next::Rest, version: None });
        };
        *hand = confirmed(std::mem::take(hand), &request);
        let mut moved = false;
        loop {
            let (now, away) = (self.world.now(), self.world.vault_away());
            let (admission, Grants { rules, held }) = (self.world.admission(), self.world.grants(&request));
            let wanted = wants_pod(&request, seen.pod_lives, away.is_some(), now);
            let spec = &request.spec;
            let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
            let pod = match wanted {
                true => Some(self.world.pod(namespace, &spec.pod_name, &spec.init_container).await?),
                false => None,
            };
            let trusted = admission.vouches_for(&request);
            let step = decide(&Observed {
                request: &request,
                pod: pod.as_ref(),
                siblings: &seen.siblings,
                hand,
                vault_away: away.as_ref(),
                admission: &admission,
                rules: &rules,
                held,
                limits: &self.limits,
                now,
            });
            tracing::debug!(request = request.name_any(), phase = %request.phase(), ?step, "decided");
            let phase = request.phase();
            let doubted = step.accessor().filter(|_| !trusted);
            let owner = match doubted {
                Some(accessor) => self.owner(&request, accessor).await,
                None => Owner::Itself,
            };
            let (next, go) = match owner {
                Owner::Itself => self.execute(step, &request, hand).await?,
                Owner::Another(accessor) => self.disown(&request, &accessor).await?,
                Owner::Unknown => (request.clone(), Go::Retry),
            };
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

    /// Whose a token is, as its own metadata says. Asked where somebody else than the operator may have written the status that names
    /// it, before anything is done to it.
    async fn owner(&self, request: &VaultTokenRequest, accessor: &str) -> Owner {
        match self.world.look_up(accessor).await {
            Ok(Some(token)) => {
                let named = token.meta.and_then(|meta| meta.get("request_uid").cloned());
                if named == request.uid() { Owner::Itself } else { Owner::Another(accessor.to_owned()) }
            }
            // A token that is gone is harmed by nothing, nor is any while Vault cannot be asked (rule 8).
            Ok(None) => Owner::Itself,
            Err(_) if surely_outlived(request, self.world.now()) => Owner::Itself,
            Err(error) => {
                tracing::warn!(request = request.name_any(), %error, "it is not known yet whose token the status names");
                Owner::Unknown
            }
        }
    }

    async fn disown(&self, request: &VaultTokenRequest, accessor: &str) -> Result<Progress, cluster::Error> {
        let message =
            format!("the status names the token with the accessor {}, which is not this request's", one_line(accessor));
        tracing::error!(request = request.name_any(), "{message}");
        let failed = self.draft(request).failed(&Why::new(Reason::StatusForged, message));
        self.write(request, failed, Go::On).await
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
        let namespace = seen.namespace().unwrap_or_default();
        let fresh = self.world.read(&namespace, &seen.name_any()).await?;
        Ok(fresh.filter(|fresh| fresh.uid() == seen.uid()))
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
            Step::Deny(why) => self.write(request, self.draft(request).denied(&why), Go::On).await,
            Step::Fail(why) => self.write(request, self.draft(request).failed(&why), Go::On).await,
            Step::Intend(intent) => {
                let namespace = request.namespace().unwrap_or_default();
                if let Err(until) = self.world.admit(&namespace, &request.spec.pod_uid) {
                    return self.over_budget(request, until).await;
                }
                let next = self.write(request, self.draft(request).intended(&intent), Go::On).await?;
                *hand = Hand::Intent(intent);
                Ok(next)
            }
            Step::Mint(intent) => self.mint(request, hand, intent).await,
            Step::Push(addresses) => self.push(request, hand, &addresses).await,
            Step::Offer => self.offer(request, hand).await,
            Step::Hear(answer) => self.hear(request, hand, &answer).await,
            Step::Disbelieve => self.disbelieve(request).await,
            Step::RevokeUnrecorded => {
                self.drop_hand(&request.uid().unwrap_or_default(), hand);
                Ok((request.clone(), Go::On))
            }
            Step::Abandon(why) => self.abandon(request, hand, &why.message).await,
            Step::RevokeAbandoned(accessor) => match self.world.revoke(&accessor).await {
                Ok(()) => self.write(request, self.draft(request).cleared(), Go::On).await,
                Err(error) => self.not_revoked(request, &error).await,
            },
            Step::RevokeFinally(accessor, why) => {
                let ended = match self.world.revoke(&accessor).await {
                    Ok(()) => self.draft(request).revoked(&why),
                    Err(_) if surely_outlived(request, self.world.now()) => self.draft(request).outlived(&why),
                    Err(error) => return self.not_revoked(request, &error).await,
                };
                *hand = Hand::Empty;
                self.write(request, ended, Go::On).await
            }
            Step::Renew(accessor) => self.renew(request, &accessor).await,
            Step::Check(accessor) => self.check(request, hand, &accessor).await,
            Step::LoseGrant(why) => self.write(request, self.draft(request).grant_lost(&why), Go::On).await,
            Step::RegainGrant => self.write(request, self.draft(request).grant_regained(), Go::On).await,
            Step::Release => self.world.release(request).await.map(|()| (request.clone(), Go::Rest)),
            Step::Delete => self.world.delete(request).await.map(|()| (request.clone(), Go::Rest)),
        }
    }

    /// Rules 2 and 3: mint once, then record, guarded by the write that announced the attempt.
    async fn mint(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        intent: Intent,
    ) -> Result<Progress, cluster::Error> {
        let receipt = match Receipt::generate() {
            Ok(receipt) => receipt,
            Err(error) => {
                tracing::error!(request = request.name_any(), error, "cannot make a receipt");
                return Ok((request.clone(), Go::Retry));
            }
        };
        let order = self.order(request, &intent);
        let ordered = Qualities::ordered(&order.policies, order.period);
        let minted = match self.world.mint(&order).await {
            Ok(minted) => minted,
            Err(error) if error.refuses_order() => {
                *hand = Hand::Empty;
                let role = &intent.grant.token_role;
                let message = format!(
                    "Vault refused: {error}; the token role {role} decides which policies it gives \
                     (allowed_policies_glob)"
                );
                return self
                    .write(request, self.draft(request).denied(&Why::new(Reason::VaultRefused, message)), Go::On)
                    .await;
            }
            Err(error) if error.had_no_effect() => return self.wait(request, &error.why()).await,
            Err(error) => {
                // Whether a token came of it is unknown: this attempt is over, the next one is another.
                *hand = Hand::Empty;
                let unclear = self.draft(request).unclear(&error.why());
                return self.write(request, unclear, Go::Retry).await;
            }
        };
        let issued = self.draft(request).issued(&minted);
        let (attempt, period) = (intent.attempt, intent.grant.ttl);
        let wrapped = Wrapped { attempt, period, minted, receipt, ordered, expires: None };
        match self.world.write(request, issued).await {
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

    /// Rule 8. A token that Vault does not know any more is not renewed for ever.
    async fn renew(&self, request: &VaultTokenRequest, accessor: &str) -> Result<Progress, cluster::Error> {
        match self.world.renew(accessor).await {
            Ok(Some(expires_at)) => self.write(request, self.draft(request).renewed(expires_at), Go::On).await,
            Ok(None) => self.write(request, self.draft(request).expired(), Go::On).await,
            // An outage concerns all requests, and is told elsewhere; a hundred thousand writes would not end it sooner.
            Err(error) if error.reason() == Reason::VaultUnavailable && !error.is_refusal() => {
                Ok((request.clone(), Go::Retry))
            }
            // Vault says so of a token that is gone and has left its accessor behind.
            Err(error)
                if error.says_token_not_found()
                    && surely_expired(request, self.world.now())
                    && self.is_gone(accessor).await =>
            {
                match self.world.revoke(accessor).await {
                    Ok(()) => self.write(request, self.draft(request).expired(), Go::On).await,
                    Err(error) => self.not_revoked(request, &error).await,
                }
            }
            Err(error) => {
                let not_renewed = self.draft(request).not_renewed(&error.why());
                self.write(request, not_renewed, Go::Retry).await
            }
        }
    }

    /// Whether Vault says of a token that has expired by what is known here that it has none of this accessor, or forbids to look at it,
    /// as it does where a token has left its accessor behind. No answer is no word of its death: it may have been renewed without one.
    async fn is_gone(&self, accessor: &str) -> bool {
        match self.world.look_up(accessor).await {
            Ok(found) => found.is_none(),
            Err(error) => error.is_forbidden(),
        }
    }

    /// A pod or a namespace has had the tokens of the last minute.
    async fn over_budget(&self, request: &VaultTokenRequest, until: Timestamp) -> Result<Progress, cluster::Error> {
        let message = format!(
            "the pod or its namespace has asked for more tokens than it may have in a minute; the next one can be made at {until:.0}"
        );
        let waiting = self.draft(request).waiting(&Why::new(Reason::MintBudgetExhausted, message));
        self.write(request, waiting, Go::Later(until)).await
    }

    /// Rule 6: Revoking is written before anything is revoked.
    pub(super) async fn abandon(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        message: &str,
    ) -> Result<Progress, cluster::Error> {
        let why = Why::new(Reason::AttemptAbandoned, message);
        let next = self.write(request, self.draft(request).abandoned(&why), Go::On).await?;
        *hand = Hand::Empty;
        Ok(next)
    }

    async fn not_revoked(&self, request: &VaultTokenRequest, error: &vault::Error) -> Result<Progress, cluster::Error> {
        self.write(request, self.draft(request).not_revoked(&error.why()), Go::Retry).await
    }

    pub(super) async fn wait(&self, request: &VaultTokenRequest, why: &Why) -> Result<Progress, cluster::Error> {
        self.write(request, self.draft(request).waiting(why), Go::Retry).await
    }

    /// Writes a status; `go` says what comes then.
    pub(super) async fn write(
        &self,
        request: &VaultTokenRequest,
        status: VaultTokenRequestStatus,
        go: Go,
    ) -> Result<Progress, cluster::Error> {
        let before = request.status.as_ref().and_then(|status| status.history.last());
        let ended = status.history.last().filter(|ended| before != Some(ended));
        let unrecorded = ended.is_some_and(|ended| ended.outcome == AttemptOutcome::Unrecorded && !is_forgotten(ended));
        let settled = |phase: Phase| phase == Phase::Delivered || phase.is_final();
        let settles = !settled(request.phase()) && settled(status.phase.unwrap_or_default());
        let told = settles && status.history.iter().any(is_forgotten);
        let written = self.world.write(request, status).await;
        // An attempt that ended without a record may have left a token: one that is kept until another is delivered (rule 10) goes then.
        // It may have been written although no answer says so.
        if unrecorded || told {
            self.world.sweep_soon();
        }
        Ok((written?, go))
    }

    pub(super) fn draft(&self, request: &VaultTokenRequest) -> Draft {
        Draft::new(request.status.as_ref(), request.metadata.generation, self.world.now())
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
            ("init_container", Some(request.spec.init_container.clone())),
            ("request_name", request.metadata.name.clone()),
            ("request_uid", request.uid()),
            ("request_sequence", Some(request.spec.sequence.to_string())),
            ("attempt", Some(intent.attempt.to_string())),
            ("attempt_started_at", Some(intent.started_at.to_string())),
        ];
        let mut policies = intent.grant.policies.clone();
        // Unless the pod names it itself.
        if !intent.grant.self_renewal && !policies.iter().any(|policy| policy == BASE_POLICY) {
            policies.push(BASE_POLICY.to_owned());
        }
        TokenOrder {
            role: intent.grant.token_role.clone(),
            display_name: request.spec.pod_name.clone(),
            policies,
            period: intent.grant.ttl,
            meta: meta.into_iter().map(|(k, v)| (k.to_owned(), v.unwrap_or_default())).collect::<HashMap<_, _>>(),
        }
    }
}
