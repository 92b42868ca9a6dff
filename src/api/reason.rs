//! The one list of reasons: conditions, Events, logs and init's messages all take theirs from here.

use std::fmt;

/// The conditions of a request's status (Kubernetes API conventions, "typical status properties").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// The pod was verified and may have what it asks for.
    Authorized,
    /// Vault made a token, and its accessors are recorded in the status.
    Issued,
    /// The init container holds the token.
    Delivered,
    /// Vault confirmed that the token is dead.
    Revoked,
    /// Somebody else used the wrapping token before the init container did.
    Compromised,
}

impl ConditionType {
    /// The condition's `type` as it stands in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authorized => "Authorized",
            Self::Issued => "Issued",
            Self::Delivered => "Delivered",
            Self::Revoked => "Revoked",
            Self::Compromised => "Compromised",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Declares reasons with their meaning. Who must act on each, and how, is in docs/reasons.md.
macro_rules! reasons {
    ($(#[doc = $about:literal])+ $list:ident: $($(#[doc = $doc:literal])+ $name:ident,)+) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $list { $($(#[doc = $doc])+ $name,)+ }

        impl $list {
            /// Every one of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason as it stands in conditions and Events.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }
        }
    };
}

reasons! {
    /// Why a request is in the state that it is in: the `reason` of its status, its conditions and Events.
    Reason:
    /// The pod and its annotations were verified.
    PodVerified,
    /// The pod lacks the annotation `vaultproject.io/policies`.
    PoliciesMissing,
    /// The annotation `vaultproject.io/policies` names something that no token can have.
    PoliciesInvalid,
    /// The annotation `vaultproject.io/ttl` is no duration, or one out of bounds.
    TTLInvalid,
    /// Waiting: nothing checks who creates requests, so none is served.
    AdmissionLacking,
    /// The request is older than the admission policy: nothing checked who created it.
    RequestUnverified,
    /// No binding grants what the pod asks for. It is served as soon as one does.
    NotGranted,
    /// No binding grants the token's policies any more; it is revoked after a grace period.
    GrantLost,
    /// The grace period of a token that lost its grant is over; it is revoked.
    GrantEnded,
    /// A token that had lost its grant has it again.
    GrantRegained,
    /// So many tokens have lost their grants at once that a person has to look at it before they are revoked.
    RevocationHeld,
    /// No pod of that name is in the request's namespace.
    PodNotFound,
    /// The pod of that name is another one: it was deleted and made anew.
    PodUIDMismatch,
    /// The pod is being deleted.
    PodTerminating,
    /// The pod has come to its end (Succeeded or Failed).
    PodFinished,
    /// The pod shares its node's network, so a push to its address could reach another process.
    PodHostNetwork,
    /// The pod has no init container of the name that the request gives.
    InitContainerNotFound,
    /// The init container has ended already: only a pod that initializes is served.
    InitContainerEnded,
    /// The request was created without the finalizer that keeps it until its token is dead.
    FinalizerMissing,
    /// Nothing can be sealed to the request's public key.
    PublicKeyInvalid,
    /// The pod's address is none that a pod can have here.
    PodAddressForbidden,
    /// Waiting: the pod has no address yet.
    PodHasNoAddress,
    /// Waiting: the kubelet does not report the init container as running yet.
    InitContainerNotRunning,
    /// Waiting: Vault cannot be reached, is sealed, or is overloaded.
    VaultUnavailable,
    /// Waiting: Vault does not let the operator do what it must. Its policy or role needs mending.
    VaultForbids,
    /// Vault refused to make a token with these policies: the token role does not allow them.
    VaultRefused,
    /// The status names a token that is not the request's: somebody wrote it who is not the operator.
    StatusForged,
    /// Vault made another token than it was asked for; it was revoked.
    TokenUnfit,
    /// An attempt is under way.
    Minting,
    /// Vault made the token, and its accessors are recorded.
    TokenIssued,
    /// The token's attempt was given up before the token was delivered.
    AttemptAbandoned,
    /// The wrapping token could not be handed to the init container yet.
    PushFailed,
    /// The sealed wrapping token is in the request's status, for the init container to take.
    TokenOffered,
    /// Somebody else used the wrapping token before the init container did.
    WrappingTokenUsed,
    /// Waiting: somebody else used a wrapping token of this pod, and a person has to look at that first.
    PodCompromised,
    /// The init container has refused pushes that were not the operator's.
    ForeignPushes,
    /// The init container holds the token.
    TokenDelivered,
    /// Every attempt failed.
    AttemptsExhausted,
    /// The token was revoked because its pod was deleted.
    PodDeleted,
    /// The token was revoked because its request was deleted.
    RequestDeleted,
    /// The token was revoked because the same pod has a newer one.
    Superseded,
    /// Vault does not know the token any more, although its pod lives.
    TokenExpired,
    /// The token could not be renewed yet.
    RenewalFailed,
    /// Vault does not let the token live any longer, however often it is renewed: its pod has to be restarted before that.
    TokenEnding,
    /// The pod has had its token, and no request says so: the requests are older than they were.
    DeliveryForgotten,
    /// A token that no request records was revoked.
    OrphanRevoked,
    /// A token that no request records was kept: it may be in use.
    OrphanKept,
    /// Waiting: the pod or its namespace has asked for more tokens than it may have in a minute.
    MintBudgetExhausted,
}

impl Reason {
    /// The reason that stands there in these words.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

reasons! {
    /// Why a binding grants something or nothing: the `reason` of its condition `Ready`.
    BindingReason:
    /// It grants what it says.
    Accepted,
    /// Something in it is wrong, so it grants nothing.
    Invalid,
    /// None of its subjects matches a namespace.
    NoNamespaceMatches,
    /// Vault does not have the token role that it names.
    TokenRoleMissing,
    /// Vault does not let the operator read the token role that it names.
    TokenRoleUnreadable,
}
