//! The sweep: finds tokens that this cluster made and that no request records, and revokes them (rules 9 and 10).

use super::world::World;
use crate::api::{REQUESTS_PER_POD, Reason, VaultTokenRequest, request_name};
use crate::cluster;
use crate::domain::sweep::{Claim, Judgement, TokenFacts, judge, kept, pod_lives};
use crate::vault;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;

/// How many tokens of others are remembered, so as not to be looked at again; beyond it, all are looked at anew.
const MAX_FOREIGN: usize = 1_000_000;

/// How many of them are looked at again to see whether Vault lets it: some may have died since they were listed.
const PROBES: usize = 16;

/// How many tokens are looked at in a second at most, so that a Vault with many tokens of others has time for everybody else.
pub const LOOK_UPS_PER_SECOND: NonZeroU32 = NonZeroU32::new(500).unwrap();

/// How many of too many orphans are named.
const EXAMPLES: usize = 20;

/// What a person can do about a token that is kept.
const RESTORED: &str =
    "were the requests restored from a backup? Restart the pod to give it a new token; the old one is revoked then";

/// Finds and revokes orphans.
pub struct Sweeper {
    cluster: String,
    token_role: String,
    /// More orphans than this are no orphans: something is wrong with what the API server says.
    limit: usize,
    /// Hashes of the accessors of tokens that are not ours, and never will be.
    foreign: HashSet<u64>,
}

/// What one sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Live tokens in Vault.
    pub listed: usize,
    /// How many of them were looked at.
    pub examined: usize,
    /// Tokens that no request records.
    pub orphans: usize,
    /// Those of them that were revoked.
    pub revoked: Vec<Claim>,
    /// Those that are kept, each with what a person can do about it; of many, some.
    pub kept: Vec<(Claim, String)>,
    /// Why nothing at all was revoked, if that is so.
    pub stopped: Option<String>,
    /// What kept it from going on with the orphans that it had found, if anything did.
    pub broken_off: Option<String>,
}

/// Why a sweep broke off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Vault does not let the operator list tokens, or look at them.
    #[error(transparent)]
    NotPermitted(vault::Error),
    /// Vault could not be asked.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The API server could not be asked.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
}

impl Sweeper {
    /// For the tokens of `cluster` that were made through `token_role`; it revokes `limit` of them at a time at most.
    pub fn new(cluster: String, token_role: String, limit: usize) -> Self {
        Self { cluster, token_role, limit, foreign: HashSet::new() }
    }

    /// Sweeps once. `recorded` says of an accessor that a request was seen to record it: such a token is not looked at.
    ///
    /// # Errors
    /// What kept it from finding any; nothing was revoked then.
    pub async fn sweep(&mut self, world: &impl World, recorded: impl Fn(&str) -> bool) -> Result<Report, Error> {
        // Vault first: a request that is read later knows of every token that was made by then.
        let listed = world.list().await.map_err(|error| match error.reason() {
            Reason::VaultForbids => Error::NotPermitted(error),
            _ => Error::Vault(error),
        })?;
        let mut report = Report { listed: listed.len(), ..Report::default() };
        let mut orphans = Vec::new();
        let (mut read, mut forbidden) = (0, None);
        // Where the request itself says that the attempt is over, nothing was lost: an outage of Vault leaves as many as it likes.
        let (mut closed, mut unexplained) = (0, 0);
        for accessor in listed.iter().filter(|accessor| !recorded(accessor)) {
            if self.foreign.contains(&hash(accessor)) {
                continue;
            }
            report.examined += 1;
            world.pace().await;
            let info = match world.look_up(accessor).await {
                Ok(Some(info)) => info,
                Ok(None) => continue,
                // Vault says the same of an accessor that a token has left behind as of a right that is not there.
                Err(error) if error.is_forbidden() => {
                    forbidden = Some(error);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            read += 1;
            let facts = TokenFacts { accessor: accessor.clone(), path: info.path, meta: info.meta.unwrap_or_default() };
            let Some(claim) = Claim::read(&facts, &self.cluster, &self.token_role) else {
                self.remember(accessor);
                continue;
            };
            let request = match world.read(&claim.namespace, &claim.request_name).await {
                // It may record the token; and one request must not keep the sweep from all others' tokens.
                Err(error) if error.is_unreadable() => {
                    tracing::error!(namespace = claim.namespace, request = claim.request_name, %error,
                        "a token is kept whose request cannot be read");
                    continue;
                }
                request => request?,
            };
            let judgement = judge(&claim, request.as_ref());
            match judgement {
                Judgement::Keep => continue,
                _ if judgement.is_explained() => closed += 1,
                _ => unexplained += 1,
            }
            // Where there are too many, some examples will do; they are counted on.
            if judgement.is_explained() || unexplained <= self.limit.max(EXAMPLES) {
                orphans.push((claim, judgement));
            }
        }
        if let (0, Some(error)) = (read, forbidden)
            && !self.may_look(world, &listed).await?
        {
            return Err(Error::NotPermitted(error));
        }
        report.orphans = closed + unexplained;
        if unexplained > self.limit {
            report.stopped = Some(format!(
                "{} tokens have no request that knows of them, more than can be left by accident ({}): were the requests restored from a \
                 backup, or deleted with their finalizers removed? Nothing was revoked. If they are to be revoked, start the \
                 operator with --sweep-limit {0}",
                unexplained, self.limit
            ));
            let some = orphans.into_iter().filter(|(_, judgement)| !judgement.is_explained()).take(EXAMPLES);
            let why = "has no request that knows of it, as too many others have none";
            report.kept = some.map(|(claim, _)| (claim, why.to_owned())).collect();
            return Ok(report);
        }
        for (claim, judgement) in orphans {
            world.pace().await;
            match self.end(world, &claim, judgement).await {
                Ok(None) => audit(&claim, true),
                Ok(Some(why)) => {
                    report.kept.push((claim, why));
                    continue;
                }
                Err(error) => {
                    report.broken_off = Some(error.to_string());
                    break;
                }
            }
            report.revoked.push(claim);
        }
        Ok(report)
    }

    /// Revokes a token that no request records, unless it is kept; gives why.
    async fn end(&self, world: &impl World, claim: &Claim, judgement: Judgement) -> Result<Option<String>, Error> {
        let kept = self.kept(world, claim, judgement).await?;
        if kept.is_none()
            && let Err(error) = world.revoke(&claim.accessor).await
        {
            if !error.had_no_effect() {
                audit(claim, false);
            }
            return Err(error.into());
        }
        Ok(kept)
    }

    /// Why a token is kept for now that no request records, and what a person can do about it (rule 10).
    async fn kept(&self, world: &impl World, claim: &Claim, judgement: Judgement) -> Result<Option<String>, Error> {
        let pod = world.pod(&claim.namespace, &claim.pod_name, &claim.init_container).await?;
        // Where the pod is gone, its requests need not be read: they are ten.
        let requests = if pod_lives(claim, &pod) { requests_of(world, claim).await? } else { Vec::new() };
        let why = kept(claim, judgement, &pod, &requests);
        Ok(why.map(|why| format!("{why}; {RESTORED}")))
    }

    /// Whether Vault lets it look at tokens that it has looked at before. Its own login is among them at the least.
    async fn may_look(&self, world: &impl World, listed: &[String]) -> Result<bool, Error> {
        for accessor in listed.iter().filter(|accessor| self.foreign.contains(&hash(accessor))).take(PROBES) {
            world.pace().await;
            match world.look_up(accessor).await {
                Ok(Some(_)) => return Ok(true),
                Ok(None) => {}
                Err(error) if error.is_forbidden() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    fn remember(&mut self, accessor: &str) {
        if self.foreign.len() >= MAX_FOREIGN {
            self.foreign.clear();
        }
        self.foreign.insert(hash(accessor));
    }
}

/// The audit line of a token that was revoked, or perhaps was where no answer came.
fn audit(claim: &Claim, answered: bool) {
    tracing::warn!(target: "audit", step = "OrphanRevoked", answered, namespace = claim.namespace, pod = claim.pod_name,
        pod_uid = claim.pod_uid, request = claim.request_name, request_uid = claim.request_uid,
        attempt = claim.attempt, token_accessor = claim.accessor, "a token that no request records was revoked");
}

/// All requests of the token's pod.
async fn requests_of(world: &impl World, claim: &Claim) -> Result<Vec<VaultTokenRequest>, Error> {
    let mut requests = Vec::new();
    for digit in 0..REQUESTS_PER_POD {
        let name = request_name(&claim.pod_name, &claim.pod_uid, digit);
        match world.read(&claim.namespace, &name).await {
            Err(error) if error.is_unreadable() => {}
            found => requests.extend(found?),
        }
    }
    Ok(requests)
}

fn hash(accessor: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    accessor.hash(&mut hasher);
    hasher.finish()
}
