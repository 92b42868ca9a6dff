//! The way of a recorded token to its init container: checked, sealed, handed over, and what is said of it (rules 4 and 5).

use super::execute::{Executor, Go, Progress};
use super::world::{Alarm, World};
use crate::api::{Reason, VaultTokenRequest};
use crate::cluster;
use crate::domain::grant::Why;
use crate::domain::plan::{MAX_ATTEMPTS, subject};
use crate::domain::token::{Expiry, Hand, Wrapped};
use crate::text::one_line;
use crate::wire::{Answer, Outcome, Parcel, Push};
use kube::ResourceExt;
use std::net::IpAddr;

impl<W: World> Executor<W> {
    /// Rules 4 and 5: hand the wrapping token over, and note that only when the init container said so.
    pub(super) async fn push(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        addresses: &[IpAddr],
    ) -> Result<Progress, cluster::Error> {
        let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
        let slot = self.slots.take(namespace, &request.spec.pod_uid);
        let (Hand::Wrapped(wrapped) | Hand::Unconfirmed(wrapped), Some(_slot)) = (&*hand, slot) else {
            return Ok((request.clone(), Go::Retry));
        };
        let (request_uid, attempt) = (request.uid().unwrap_or_default(), wrapped.attempt);
        let push = match self.seal(request, wrapped) {
            Ok(sealed) => Push { request_uid, attempt, sealed },
            Err(message) => return self.abandon(request, hand, &message).await,
        };
        let port = request.spec.port.and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
        match self.world.push(addresses, port, &push).await {
            Ok(answer) if wrapped.receipt.confirms(subject(request, attempt), &answer) => {
                self.hear(request, hand, &answer).await
            }
            Ok(_) => {
                self.world.alarm(request, Alarm::AnswerUnconfirmed);
                let message = "what answers at the pod's address cannot open the seal: it is not the init container";
                self.wait(request, &Why::new(Reason::PushFailed, message)).await
            }
            Err(seen) => self.wait(request, &push_failed("does not have the token yet", &seen)).await,
        }
    }

    /// Rule 4, where pods cannot be reached: the seal is what makes this no worse a place than any other.
    pub(super) async fn offer(&self, request: &VaultTokenRequest, hand: &mut Hand) -> Result<Progress, cluster::Error> {
        let (Hand::Wrapped(wrapped) | Hand::Unconfirmed(wrapped)) = &*hand else {
            return Ok((request.clone(), Go::Retry));
        };
        match self.seal(request, wrapped) {
            Ok(sealed) => self.write(request, self.draft(request).offered(sealed), Go::On).await,
            Err(message) => self.abandon(request, hand, &message).await,
        }
    }

    fn seal(&self, request: &VaultTokenRequest, wrapped: &Wrapped) -> Result<String, String> {
        let parcel = Parcel {
            wrapping_token: wrapped.minted.wrapping_token.clone(),
            creation_path: wrapped.minted.creation_path.clone(),
            receipt: wrapped.receipt.encoded().into(),
        };
        self.world.seal(&request.spec.public_key, subject(request, wrapped.attempt), &parcel)
    }

    /// Takes the offer back that somebody answered who had not opened it; it is made again a little later.
    pub(super) async fn disbelieve(&self, request: &VaultTokenRequest) -> Result<Progress, cluster::Error> {
        self.world.alarm(request, Alarm::AnswerUnconfirmed);
        let message = "the answer in the status is not of who opened the seal";
        self.not_taken(request, &Why::new(Reason::PushFailed, message)).await
    }

    /// Writes down that the wrapping token was handed over, and is unused all the same: another try follows.
    async fn not_taken(&self, request: &VaultTokenRequest, why: &Why) -> Result<Progress, cluster::Error> {
        self.write(request, self.draft(request).not_taken(why), Go::Retry).await
    }

    /// Goes by what the init container said under its receipt.
    pub(super) async fn hear(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        answer: &Answer,
    ) -> Result<Progress, cluster::Error> {
        let said = one_line(&answer.message);
        match answer.outcome {
            Outcome::Stored => self.delivered(request, hand, answer.refused).await,
            Outcome::Unused => {
                let why = push_failed("has not used its wrapping token, and says", &said);
                self.not_taken(request, &why).await
            }
            Outcome::Lost => {
                let next = self.abandon(request, hand, &format!("the wrapping token is used up: {said}")).await?;
                if answer.attempt >= MAX_ATTEMPTS {
                    self.tell_refused(request, answer.refused);
                }
                Ok(next)
            }
            Outcome::Intercepted => self.intercepted(request, hand, answer.refused).await,
        }
    }

    /// Tells how many pushes an init container has refused, with its last word: it counts on from one attempt to the next.
    fn tell_refused(&self, request: &VaultTokenRequest, refused: u32) {
        if refused > 0 {
            self.world.alarm(request, Alarm::ForeignPushes(refused));
        }
    }

    /// The init container found its wrapping token used before its own first try. If it had not expired by then, and the token in it
    /// lives, somebody else has that token now.
    async fn intercepted(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        refused: u32,
    ) -> Result<Progress, cluster::Error> {
        let in_time = matches!(&*hand, Hand::Wrapped(wrapped) | Hand::Unconfirmed(wrapped)
            if self.world.now() < wrapped.minted.wrapping_expires_at);
        if !in_time {
            return self.abandon(request, hand, "the wrapping token expired before the init container used it").await;
        }
        let status = request.status.as_ref();
        let recorded = |accessor: Option<&String>| accessor.cloned().unwrap_or_default();
        let wrapping = recorded(status.and_then(|status| status.wrapping_accessor.as_ref()));
        match self.world.look_up(&wrapping).await {
            Ok(Some(_)) => {
                let why = push_failed(
                    "asks a Vault that does not know the wrapping token",
                    "it is unused; are its VAULT_ADDR and VAULT_NAMESPACE those of the operator?",
                );
                return self.not_taken(request, &why).await;
            }
            Ok(None) => {}
            Err(error) => return self.not_taken(request, &error.why()).await,
        }
        let accessor = recorded(status.and_then(|status| status.token_accessor.as_ref()));
        match self.world.look_up(&accessor).await {
            Ok(Some(_)) => {}
            // Whoever used it may have done what he wanted by now; or all of Vault's tokens were taken away.
            Ok(None) => {
                self.world.alarm(request, Alarm::TokenGone);
                return self
                    .abandon(request, hand, "the wrapping token was used by somebody else, and its token is gone")
                    .await;
            }
            Err(error) => return self.not_taken(request, &error.why()).await,
        }
        self.world.alarm(request, Alarm::Compromised);
        let message = format!(
            "somebody else used the wrapping token before the init container did; the token with the accessor {accessor} is \
             revoked. Find out who reads what the operator sends to its pods, or what Vault's clients do; then delete this \
             request, or the pod, to let it ask again"
        );
        let why = Why::new(Reason::WrappingTokenUsed, message);
        let next = self.write(request, self.draft(request).compromised(&why), Go::On).await?;
        self.tell_refused(request, refused);
        *hand = Hand::Empty;
        Ok(next)
    }

    /// Vault's answer is checked, not believed: the token is what was asked for, or nobody gets it.
    pub(super) async fn check(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        accessor: &str,
    ) -> Result<Progress, cluster::Error> {
        let (Hand::Wrapped(wrapped) | Hand::Unconfirmed(wrapped)) = &mut *hand else {
            return Ok((request.clone(), Go::Retry));
        };
        match self.world.look_up(accessor).await {
            Ok(Some(token)) => match token.qualities().fault(&wrapped.ordered) {
                None => {
                    wrapped.expires = Some(Expiry(token.expire_time));
                    Ok((request.clone(), Go::On))
                }
                Some(fault) => {
                    let next = self.write(request, self.draft(request).unfit(&fault), Go::On).await?;
                    *hand = Hand::Empty;
                    Ok(next)
                }
            },
            Ok(None) => self.abandon(request, hand, "Vault does not know the token any more").await,
            Err(error) => self.wait(request, &error.why()).await,
        }
    }

    /// Rule 5.
    async fn delivered(
        &self,
        request: &VaultTokenRequest,
        hand: &mut Hand,
        refused: u32,
    ) -> Result<Progress, cluster::Error> {
        let (Hand::Wrapped(Wrapped { expires: Some(expires), .. })
        | Hand::Unconfirmed(Wrapped { expires: Some(expires), .. })) = &*hand
        else {
            return Ok((request.clone(), Go::Retry));
        };
        let next = self.write(request, self.draft(request).delivered(expires.0), Go::On).await?;
        self.tell_refused(request, refused);
        *hand = Hand::Empty;
        Ok(next)
    }
}

fn push_failed(said: &str, message: &str) -> Why {
    Why::new(Reason::PushFailed, format!("the init container {said}: {}", one_line(message)))
}
