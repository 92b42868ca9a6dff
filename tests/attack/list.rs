//! All attacks: who tries what, and what stops it.

use crate::arena::Arena;
use crate::stops::{self, Stop};
use crate::{delivery, grants, identity, vault};
use futures::future::LocalBoxFuture;

/// One attack.
pub struct Attack {
    /// Its name.
    pub name: &'static str,
    /// Who attacks.
    pub who: &'static str,
    /// What he tries.
    pub tries: &'static str,
    /// What stops it: any of these would alone.
    pub stops: &'static [&'static Stop],
    /// What is said where the product stops it, as far as that is said.
    pub words: &'static str,
    /// Settings of the operator that it needs.
    pub settings: &'static [(&'static str, &'static str)],
    /// Tries it; gives whether it succeeded.
    pub run: fn(&Arena) -> LocalBoxFuture<'_, bool>,
}

macro_rules! attacks {
    ($($module:ident::$name:ident: $who:literal, $tries:literal, [$($stop:ident),*] $(, $settings:expr)? $(=> $words:literal)?;)*) => {
        pub static ALL: &[Attack] = &[$(Attack {
            name: stringify!($name),
            who: $who,
            tries: $tries,
            stops: &[$(&stops::$stop),*],
            words: concat!("" $(, $words)?),
            settings: attacks!(@settings $($settings)?),
            run: |arena| Box::pin($module::$name(arena)),
        }),*];
    };
    (@settings) => { &[] };
    (@settings $settings:expr) => { &$settings };
}

attacks! {
    identity::a_request_in_another_pods_name: "a pod", "a request in another pod's name, with a key of its own",
        [ADMISSION_CREATE, ADMISSION_COMPARED, ADMISSION_TRIED] => "this is the token of the pod";
    identity::a_request_with_ones_own_uid_and_anothers_name: "a pod", "a request with its own UID and another pod's name",
        [ADMISSION_CREATE, ADMISSION_COMPARED, ADMISSION_TRIED, POD_UID] => "this is the token of the pod";
    identity::a_token_of_the_service_account_that_is_bound_to_no_pod: "whoever has a token of a service account that is bound to no pod",
        "a request in a pod's name", [ADMISSION_CREATE, ADMISSION_COMPARED, ADMISSION_TRIED] => "shows a token that is bound to no pod";
    identity::a_token_of_the_service_account_out_of_a_secret: "whoever has read a Secret with a token of a service account",
        "a request in a pod's name", [ADMISSION_CREATE, ADMISSION_COMPARED, ADMISSION_TRIED] => "shows a token that is bound to no pod";
    identity::a_pod_of_another_namespace_that_may_ask_here: "a pod of another namespace that may create requests here",
        "a request in a pod's name", [ADMISSION_CREATE, ADMISSION_COMPARED, ADMISSION_TRIED] => "this is the token of the pod";
    delivery::a_key_of_the_attackers_own_in_a_request_by_hand: "a pod that reads along on the network",
        "a request by hand in another pod's name, with a key of its own", [ADMISSION_CREATE, ADMISSION_COMPARED, ADMISSION_TRIED] => "this is the token of the pod";
    identity::a_request_without_a_finalizer: "a pod", "a request whose deletion revokes nothing", [ADMISSION_FINALIZER, ADMISSION_COMPARED, FINALIZER_REQUIRED] => "with the finalizer";
    identity::a_request_that_goes_with_somebody_elses_pod: "a pod", "a request that is deleted with another object", [ADMISSION_OWNERS] => "without owners";
    identity::a_forged_status_that_names_anothers_token: "a workload with every verb on requests", "a forged status, to have another's token revoked",
        [ADMISSION_UPDATE, STATUS_OWNED] => "changed by the operator alone";
    identity::a_status_forged_in_a_gap_of_the_admission_policy: "a workload with every verb on requests, while the policy was away",
        "a forged status, of which use is made once the policy is back", [STATUS_OWNED];
    identity::a_key_put_into_anothers_request: "a workload with every verb on requests", "to edit another's request after its creation",
        [ADMISSION_UPDATE, DEFINITION_IMMUTABLE, ADMISSION_COMPARED] => "spec is immutable";
    identity::a_finalizer_taken_off: "a workload with every verb on requests", "to take off a finalizer, and with it the record", [ADMISSION_UPDATE] => "changed by the operator alone";
    identity::anothers_request_deleted: "a workload with every verb on requests", "to delete another's request, and so its token", [ADMISSION_DELETE] => "takes the verb revoke";
    identity::an_identity_stolen_from_an_app: "whoever stole a pod's identity from its app", "a further token, from outside the pod", [INIT_RUNNING] => "InitContainerEnded";
    identity::an_identity_used_outside_its_pod: "whoever has a pod's identity while its init container runs", "to take the token from the status",
        [DELIVERY_GRANTED] => "the delivery Status is not granted";
    identity::a_pod_of_the_same_name_made_anew: "a pod that goes", "a request that lasts until another pod has its name", [POD_UID] => "PodUIDMismatch";
    identity::names_of_another_pods_requests: "a pod", "to squat the names of another pod's requests", [DEFINITION_NAME] => "metadata.name must be";
    identity::more_requests_than_a_pod_has_names_for: "a pod", "to flood etcd with requests", [DEFINITION_NAME] => "metadata.name must be";
    identity::requests_of_others_listed: "a pod", "to list what others of its namespace have asked for", [REQUESTER_ROLE] => "cannot list resource";
    identity::the_admission_policy_removed_while_the_operator_runs: "whoever takes the admission policy away while the operator runs",
        "a request that nothing checks", [ADMISSION_COMPARED, ADMISSION_TRIED] => "AdmissionLacking";
    identity::the_admission_policy_merely_audited_while_the_operator_runs: "whoever lets the admission policy only watch while the operator runs",
        "a request that nothing forbids", [ADMISSION_COMPARED, ADMISSION_TRIED] => "AdmissionLacking";
    identity::a_rule_taken_out_of_the_admission_policy_while_the_operator_runs: "whoever takes a rule out of the admission policy while the operator runs",
        "a request in a pod's name", [ADMISSION_COMPARED, ADMISSION_TRIED] => "AdmissionLacking";
    identity::the_admission_policy_broken_and_its_failures_ignored: "whoever breaks the admission policy while the operator runs, and has its failures ignored",
        "a request in a pod's name", [ADMISSION_COMPARED, ADMISSION_TRIED] => "AdmissionLacking";
    identity::a_request_from_before_the_admission_policy: "whoever was there before the admission policy", "a request that nothing has checked",
        [ADMISSION_SINCE] => "RequestUnverified";
    identity::annotations_edited_between_the_attempt_and_the_token: "whoever may edit pods",
        "to edit the annotations after the request, so that the record says something else than the token has", [GRANT_REVERIFIED];

    grants::an_annotation_that_asks_for_more_than_is_granted: "whoever may create pods", "policies beyond his", [BINDINGS, TOKEN_ROLE] => "\"kv-admin\" is not granted";
    grants::an_annotation_that_asks_for_the_operators_own_policy: "whoever may create pods where a binding grants everything",
        "the operator's own policy", [POLICY_NAMES, TOKEN_ROLE] => "the operator's own";
    grants::policies_of_several_bindings_added_up: "whoever may create pods", "what only two bindings together grant", [WHOLE_REQUEST] => "no one VaultPolicyBinding grants all of them";
    grants::what_another_service_account_is_granted: "a pod", "what another service account of its namespace is granted", [ACCOUNTS_MATCH] => "is not granted to the service account default";
    grants::a_longer_life_than_is_granted: "whoever may create pods", "a longer life than is granted", [TTL_BOUND] => "at most 30m is granted";
    grants::a_selector_that_selects_everything: "an administrator, by mistake", "a binding with an empty selector", [DEFINITION_EMPTY, SELECTOR_EMPTY] => "should have at least 1 properties";
    grants::a_selector_that_selects_nothing: "whoever may create pods", "what a selector grants that selects nothing", [LABELS_MATCH] => "is not granted";
    grants::a_label_that_a_binding_selects_by: "whoever may change namespaces", "a label that a binding selects by", [ADMISSION_LABELS, ADMISSION_COMPARED] => "takes the verb grant";
    grants::a_binding_that_goes_by_a_tenants_label: "whoever may change namespaces", "a label of his own that a binding goes by",
        [DEFINITION_LABELS, SELECTOR_LABELS] => "a tenant could set others itself";
    grants::a_binding_removed_by_mistake: "a mistake in GitOps", "a binding removed, and with it production's tokens", [GRACE, BREAKER],
        [("VTO_UNGRANTED_LIMIT", "2")];
    grants::a_token_that_was_taken_and_never_confirmed: "whoever may create pods, and whose init container answers nothing on purpose",
        "a token that outlives its grant", [TENURE], [("VTO_GRANT_GRACE", "1s")];
    grants::an_annotation_that_steers_terminals_and_forges_lines: "whoever may create pods", "newlines for logs and escapes for terminals", [QUOTED];
    grants::an_annotation_as_long_as_a_book: "whoever may create pods", "an oversized annotation, to have it repeated everywhere", [CUT];
    grants::a_pod_that_asks_again_and_again: "a crash-looping or hostile pod", "to flood Vault with tokens", [BUDGET],
        [("VTO_POD_MINTS_PER_MINUTE", "2")];
    grants::a_token_beside_the_pods_newest_one: "a crash-looping or hostile pod", "to keep a token for each time that its init container runs", [SUPERSEDED];
    grants::tokens_taken_by_every_name_and_never_confirmed: "a hostile pod", "to take a token by each of its names, and say nothing of them", [NEWEST_ALONE];

    delivery::a_push_read_on_its_way: "a neighbour on the network", "to read the push", [SEAL];
    delivery::a_status_read_by_others: "whoever may read requests", "to read the wrapping token in the status", [SEAL];
    delivery::a_token_of_the_attackers_own_planted: "whoever reaches the init port first", "to plant a token of his own",
        [CREATION_PATH, ACCESSOR, TOKEN_METADATA] => "not made by creating a token as the operator says";
    delivery::a_token_by_way_of_the_operators_own_role_planted: "whoever reaches the init port first, and may make tokens by the operator's role",
        "to plant a token that he knows, made out to the pod", [ACCESSOR] => "another token than the one that the request records";
    delivery::an_old_push_for_a_new_one: "a neighbour on the network", "to pass off an old push as a new one",
        [SEAL_SUBJECT, ACCESSOR, ABANDONED_REVOKED] => "403";
    delivery::an_answer_that_confirms_what_was_not_taken: "a second listener that is faster", "to confirm a delivery that was none", [RECEIPT];
    delivery::a_false_alarm: "a second listener that is faster", "to cry wolf", [RECEIPT, INTERCEPTION_CHECKED];
    delivery::a_wrapping_token_found_later: "whoever comes by a wrapping token later", "to use it", [WRAPPING_TTL], [("VTO_WRAPPING_TTL", "1s")];
    delivery::a_wrapping_token_used_first_and_unnoticed: "whoever got the wrapping token", "to use it first, unnoticed", [INTERCEPTION_HEARD];
    delivery::a_second_token_for_whoever_has_intercepted_one: "whoever has intercepted one wrapping token of a pod", "the next one", [COMPROMISED_HELD];
    delivery::the_next_owner_of_a_pods_address: "the next owner of a pod's address, between mint and push", "the push", [POD_READ_FRESH, SEAL];
    delivery::a_listener_on_the_node_of_a_pod: "whoever listens on the node of a pod with hostNetwork", "the push", [HOST_NETWORK, SEAL];
    delivery::an_address_of_something_else: "whoever may write the statuses of pods", "to have the operator call something else", [POD_NETWORK];
    delivery::a_redirect_to_somebody_else: "whoever answers at a pod's address", "a redirect to somebody else", [NO_REDIRECT] => "307";
    delivery::an_answer_without_end: "whoever answers at a pod's address", "an answer without end", [ANSWER_BOUND];
    delivery::an_answer_that_never_comes_to_its_end: "whoever answers at a pod's address", "an answer of one byte a second", [PUSH_TIMEOUT];
    delivery::idle_connections_in_every_place: "whoever reaches the init port", "idle connections in every place", [PER_PEER, RECEIVE];

    vault::a_vault_that_gives_other_policies_than_asked: "a Vault that makes another token than it was asked for", "to have another policy set in it", [TOKEN_CHECKED] => "TokenUnfit";
    vault::a_new_token_whose_answer_has_no_end: "a Vault, or whoever is between", "an answer without end to the making of a token", [VAULT_ANSWER_BOUND] => "it is too long";
    vault::a_look_up_whose_answer_has_no_end: "a Vault, or whoever is between", "an answer without end to a look at a token", [VAULT_ANSWER_BOUND] => "it is too long";
    vault::an_unwrapped_token_whose_answer_has_no_end: "a Vault, or whoever is between", "an answer without end to an init container that opens its token",
        [VAULT_ANSWER_BOUND] => "it is too long";
    vault::a_new_token_whose_answer_drips: "a Vault, or whoever is between", "an answer of one byte a second to the making of a token", [VAULT_DEADLINE] => "timed out";
    vault::a_look_up_whose_answer_drips: "a Vault, or whoever is between", "an answer of one byte a second to a look at a token", [VAULT_DEADLINE] => "timed out";
    vault::an_unwrapped_token_whose_answer_drips: "a Vault, or whoever is between", "an answer of one byte a second to an init container that opens its token",
        [VAULT_DEADLINE] => "timed out";
    vault::a_token_that_renews_itself: "a token whose request nobody knows", "to renew itself for ever", [BASE_POLICY];
    vault::tokens_beside_the_token_roles: "whoever has the operator's Vault token", "tokens beside the token roles", [OPERATOR_POLICY] => "403";
    vault::the_operators_own_rights_for_a_token_that_outlives_its_login: "whoever has the operator's Vault token", "a token with the operator's rights", [TOKEN_ROLE] => "400";
    vault::a_list_of_everybodys_accessors: "whoever has the operator's Vault token", "the accessors of everybody's tokens", [OPERATOR_POLICY] => "403";
    vault::a_vault_that_is_another_one: "a server that is taken for Vault", "the wrapping token", [VAULT_CA] => "invalid peer certificate";
    vault::a_wrapping_token_in_the_logs: "whoever reads the logs", "a wrapping token", [SECRET_TYPES, SECRETS_UNLOGGED];
}
