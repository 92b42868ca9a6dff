//! What is outside of the operator: an API server, a Vault, a kubelet and init containers, as far as the operator can tell.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use secrecy::ExposeSecret;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use vault_token_operator::api::{
    Delivery, FINALIZER, Phase, REQUESTS_PER_POD, VaultTokenRequest, VaultTokenRequestSpec, VaultTokenRequestStatus,
    request_name,
};
use vault_token_operator::cluster;
use vault_token_operator::domain::custody::{self, Held, Verdict};
use vault_token_operator::domain::pod::{InitState, Observation, PodFacts};
use vault_token_operator::domain::tenure::lost_grant;
use vault_token_operator::domain::token::Minted;
use vault_token_operator::seal::{Receipt, Subject};
use vault_token_operator::vault::{TokenInfo, TokenOrder};
use vault_token_operator::wire::{Answer, Outcome, Parcel, Push};

pub const NAMESPACE: &str = "shop";
pub const CLUSTER: &str = "main";
pub const TOKEN_ROLE: &str = "role";
pub const TTL: &str = "10m";

/// How long a wrapping token lives.
const WRAPPING: SignedDuration = SignedDuration::from_secs(90);
/// How long a restore from a backup takes at least, with all that comes before it.
const RESTORE: SignedDuration = SignedDuration::from_secs(120);
/// How long after it was sent a renewal can take effect (rule 8).
pub const DEADLINE: SignedDuration = SignedDuration::from_secs(60);

/// An init container's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// None runs.
    Off,
    /// It waits for the answer to its request.
    Waiting {
        /// The request's name and UID.
        request: (String, String),
        /// The token in the files.
        held: Option<Held>,
    },
    /// It ended well: the app runs with the token of this accessor.
    Done(String),
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub gone: bool,
    pub finished: bool,
    pub init: Init,
    /// The accessor of the token in the files.
    pub file: Option<String>,
    /// What a restored etcd says of its init container, and what was so when it was restored: its kubelet says nothing until that changes.
    pub said: Option<(InitState, InitState)>,
}

impl Pod {
    pub fn alive(&self) -> bool {
        !self.gone && !self.finished
    }

    /// What is so of its init container.
    fn state(&self) -> InitState {
        match self.init {
            Init::Off => InitState::Waiting,
            Init::Waiting { .. } => InitState::Running,
            Init::Done(_) => InitState::Ended,
        }
    }

    /// What its status says of its init container.
    fn reported(&self) -> InitState {
        match self.said {
            Some((said, then)) if then == self.state() => said,
            _ => self.state(),
        }
    }
}

/// What a backup of etcd has.
#[derive(Clone, Debug)]
struct Backup {
    time: Timestamp,
    requests: BTreeMap<String, VaultTokenRequest>,
    /// The states of init containers, by their pods' UIDs.
    states: HashMap<String, InitState>,
}

/// A token in Vault.
#[derive(Clone, Debug)]
pub struct Token {
    pub accessor: String,
    pub path: String,
    pub meta: HashMap<String, String>,
    pub policies: Vec<String>,
    pub period: SignedDuration,
    pub expires: Timestamp,
    pub revoked: bool,
    pub wrapping_expires: Timestamp,
    pub unwrapped: bool,
    /// Whether somebody has unwrapped it who should not have.
    pub stolen: bool,
}

/// A message whose sender has given up on it, and that may still arrive.
#[derive(Clone, Debug)]
pub enum Late {
    Mint(TokenOrder),
    Write(Box<VaultTokenRequest>, Box<VaultTokenRequestStatus>),
    Release(Box<VaultTokenRequest>),
    Renew(String, Timestamp),
    Revoke(String),
    Push(Vec<IpAddr>, Push),
}

/// All of it.
#[derive(Debug)]
pub struct Model {
    pub now: Timestamp,
    pub requests: BTreeMap<String, VaultTokenRequest>,
    pub pods: Vec<Pod>,
    pub tokens: Vec<Token>,
    pub late: Vec<Late>,
    /// Whether the operators know that Vault is away.
    pub away: bool,
    /// Whether the pods' policies are granted to them.
    pub granted: bool,
    /// The first invariant that did not hold.
    pub violation: Option<String>,
    pub restored: bool,
    backup: Option<Backup>,
    /// Accessors that a request has recorded at any time.
    recorded: HashSet<String>,
    /// The UIDs of the pods of all requests that there have been, by the requests' own.
    asked: HashMap<String, String>,
    version: u64,
    serial: u64,
}

impl Model {
    pub fn new() -> Self {
        Self {
            now: Timestamp::from_second(1_800_000_000).expect("a time"),
            requests: BTreeMap::new(),
            pods: Vec::new(),
            tokens: Vec::new(),
            late: Vec::new(),
            away: false,
            granted: true,
            violation: None,
            restored: false,
            backup: None,
            recorded: HashSet::new(),
            asked: HashMap::new(),
            version: 0,
            serial: 0,
        }
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn version(&mut self) -> Option<String> {
        self.version += 1;
        Some(self.version.to_string())
    }

    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    // --- the API server

    /// The request, if it is at the version that was seen.
    fn guarded(&self, seen: &VaultTokenRequest) -> Result<String, cluster::Error> {
        let name = seen.metadata.name.clone().expect("a name");
        match self.requests.get(&name) {
            None => Err(status(404)),
            Some(found) if found.metadata.uid != seen.metadata.uid => Err(status(409)),
            Some(found) if found.metadata.resource_version != seen.metadata.resource_version => Err(status(409)),
            Some(_) => Ok(name),
        }
    }

    pub fn write(
        &mut self,
        seen: &VaultTokenRequest,
        next: VaultTokenRequestStatus,
    ) -> Result<VaultTokenRequest, cluster::Error> {
        if seen.status.as_ref() == Some(&next) {
            return Ok(seen.clone());
        }
        let name = self.guarded(seen)?;
        self.recorded.extend(next.token_accessor.clone());
        let version = self.version();
        let request = self.requests.get_mut(&name).expect("it was there");
        request.status = Some(next);
        request.metadata.resource_version = version;
        Ok(request.clone())
    }

    /// I8: the finalizer goes when the token is dead.
    pub fn release(&mut self, seen: &VaultTokenRequest) -> Result<(), cluster::Error> {
        let Ok(name) = self.guarded(seen) else {
            return if self.requests.contains_key(seen.metadata.name.as_deref().unwrap_or_default()) {
                Err(status(409))
            } else {
                Ok(())
            };
        };
        let accessor = self.requests[&name].status.as_ref().and_then(|status| status.token_accessor.clone());
        if let Some(accessor) = accessor.filter(|accessor| self.alive(accessor)) {
            self.violate(format!("I8: the finalizer of {name} went while its token {accessor} was alive"));
        }
        let version = self.version();
        let request = self.requests.get_mut(&name).expect("it was there");
        request.metadata.finalizers = None;
        request.metadata.resource_version = version;
        if request.metadata.deletion_timestamp.is_some() {
            self.requests.remove(&name);
        }
        Ok(())
    }

    /// By whoever may: the operator at the end of the retention, a person, a namespace's end.
    pub fn delete(&mut self, name: &str) {
        let (now, version) = (self.now, self.version());
        if let Some(request) = self.requests.get_mut(name) {
            if request.metadata.finalizers.is_none() {
                self.requests.remove(name);
            } else if request.metadata.deletion_timestamp.is_none() {
                request.metadata.deletion_timestamp = Some(Time(now));
                request.metadata.resource_version = version;
            }
        }
    }

    pub fn delete_guarded(&mut self, seen: &VaultTokenRequest) -> Result<(), cluster::Error> {
        let name = self.guarded(seen)?;
        if seen.status.as_ref().is_none_or(|status| !status.phase.unwrap_or_default().is_final()) {
            self.violate(format!("the operator deleted {name}, which has not come to its end"));
        }
        self.delete(&name);
        Ok(())
    }

    pub fn observe(&self, name: &str) -> Observation {
        let found = self.pods.iter().enumerate().find(|(_, pod)| pod.name == name && !pod.gone);
        let Some((number, pod)) = found else { return Observation::Absent };
        Observation::Present(PodFacts {
            uid: pod.uid.clone(),
            terminating: false,
            finished: pod.finished,
            host_network: false,
            addresses: vec![address(number)],
            host_ip: None,
            node_name: None,
            service_account: "web".to_owned(),
            policies: Some("shop-read".to_owned()),
            ttl: Some(TTL.to_owned()),
            init: pod.reported(),
        })
    }

    // --- Vault

    pub fn token(&self, accessor: &str) -> Option<&Token> {
        self.tokens.iter().find(|token| token.accessor == accessor && !token.revoked && token.expires > self.now)
    }

    pub fn alive(&self, accessor: &str) -> bool {
        self.token(accessor).is_some()
    }

    pub fn mint(&mut self, order: &TokenOrder) -> Minted {
        let accessor = format!("a{}", self.serial());
        let period = SignedDuration::try_from(order.period).expect("a period");
        let wrapping_expires = self.now + WRAPPING;
        self.tokens.push(Token {
            accessor: accessor.clone(),
            path: format!("auth/token/create/{}", order.role),
            meta: order.meta.clone(),
            policies: order.policies.clone(),
            period,
            expires: self.now + period,
            revoked: false,
            wrapping_expires,
            unwrapped: false,
            stolen: false,
        });
        Minted {
            wrapping_token: format!("w{accessor}").into(),
            wrapping_accessor: format!("w{accessor}"),
            creation_path: String::new(),
            token_accessor: accessor,
            wrapping_expires_at: wrapping_expires,
        }
    }

    pub fn look_up(&self, accessor: &str) -> Option<TokenInfo> {
        if accessor == "own" {
            return Some(info(None, "auth/kubernetes/login"));
        }
        if let Some(accessor) = accessor.strip_prefix('w') {
            let unused = |token: &&Token| !token.unwrapped && token.wrapping_expires > self.now;
            let wrapping = self.token(accessor.trim_start_matches('w')).filter(unused);
            return wrapping.map(|token| info(Some(token.wrapping_expires), ""));
        }
        self.token(accessor).map(|token| TokenInfo {
            meta: Some(token.meta.clone()),
            policies: token.policies.clone(),
            period: token.period.as_secs().unsigned_abs(),
            creation_ttl: token.period.as_secs().unsigned_abs(),
            orphan: true,
            kind: "service".to_owned(),
            ..info(Some(token.expires), &token.path)
        })
    }

    /// I3: nothing is kept alive that no request has ever recorded.
    pub fn renew(&mut self, accessor: &str) -> Option<Timestamp> {
        if !self.recorded.contains(accessor) {
            self.violate(format!("I3: the token {accessor} was renewed, and no request has recorded it"));
        }
        let (now, known) = (self.now, self.alive(accessor));
        let token = self.tokens.iter_mut().find(|token| known && token.accessor == accessor)?;
        token.expires = now + token.period;
        Some(token.expires)
    }

    /// I7: only an end by rule 7 ever kills the token of a running pod.
    pub fn revoke(&mut self, accessor: &str) {
        if self.alive(accessor)
            && let Some(pod) = self.running(accessor)
            && !self.may_end(accessor, &pod.uid)
        {
            let name = pod.name.clone();
            self.violate(format!("I7: the token {accessor} was revoked while the pod {name} used it"));
        }
        for token in self.tokens.iter_mut().filter(|token| token.accessor == accessor) {
            token.revoked = true;
        }
    }

    /// The living pod whose app has this token.
    fn running(&self, accessor: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.alive() && pod.init == Init::Done(accessor.to_owned()))
    }

    /// Whether the request of this token is being deleted, superseded, or has been without a grant for long enough.
    fn may_end(&self, accessor: &str, pod_uid: &str) -> bool {
        let mut records = self.requests.values().filter(|request| accessor_of(request) == Some(accessor));
        let Some(request) = records.next() else { return false };
        let newer = |other: &VaultTokenRequest| {
            other.spec.pod_uid == pod_uid
                && other.spec.sequence > request.spec.sequence
                && other.phase() == Phase::Delivered
        };
        let ungranted = request.status.as_ref().and_then(lost_grant).is_some_and(|lost| lost.reason == "GrantEnded");
        request.metadata.deletion_timestamp.is_some() || ungranted || self.requests.values().any(newer)
    }

    // --- init containers

    /// An init container starts: it ends at once with a token that a request records, or asks for one.
    pub fn start_init(&mut self, number: usize) {
        let pod = &self.pods[number];
        if !pod.alive() || pod.init != Init::Off {
            return;
        }
        let uid = pod.uid.clone();
        if let Some(file) = self.pods[number].file.clone() {
            let fine = |request: &VaultTokenRequest| request.spec.pod_uid == uid && custody::vouches(request, &file);
            if self.requests.values().any(fine) {
                self.end_init(number, file);
                return;
            }
            self.pods[number].file = None;
        }
        let Some(request) = self.create(number, false) else { return };
        self.pods[number].init = Init::Waiting { request, held: None };
    }

    /// A request of a pod, as its init container creates it; gives its name and UID. A `late` one was numbered before the newest that is
    /// there: whoever asks takes a higher number than all that he finds.
    pub fn create(&mut self, number: usize, late: bool) -> Option<(String, String)> {
        let pod = self.pods.get(number).filter(|pod| pod.alive())?;
        let (pod_name, pod_uid) = (pod.name.clone(), pod.uid.clone());
        let mut names = (0..REQUESTS_PER_POD).map(|digit| request_name(&pod_name, &pod_uid, digit));
        let name = names.find(|name| !self.requests.contains_key(name))?;
        let serial = self.serial();
        let status_delivery = serial.is_multiple_of(3);
        let sequence = i64::try_from(serial * 2).expect("a number");
        let own = self.requests.values().filter(|request| request.spec.pod_uid == pod_uid);
        let newest = own.map(|request| request.spec.sequence).max().filter(|_| late);
        let spec = VaultTokenRequestSpec {
            pod_name,
            pod_uid,
            sequence: newest.map_or(sequence, |newest| newest - 1),
            init_container: "vault-init".to_owned(),
            public_key: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(),
            delivery: if status_delivery { Delivery::Status } else { Delivery::Push },
            port: (!status_delivery).then_some(8245),
        };
        let uid = format!("r{serial}");
        let mut request = VaultTokenRequest::new(&name, spec);
        request.metadata.namespace = Some(NAMESPACE.to_owned());
        request.metadata.uid = Some(uid.clone());
        request.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        request.metadata.creation_timestamp = Some(Time(self.now));
        request.metadata.resource_version = self.version();
        self.asked.insert(uid.clone(), request.spec.pod_uid.clone());
        self.requests.insert(name.clone(), request);
        Some((name, uid))
    }

    pub fn back_up(&mut self) {
        let states = self.pods.iter().map(|pod| (pod.uid.clone(), pod.reported())).collect();
        self.backup = Some(Backup { time: self.now, requests: self.requests.clone(), states });
    }

    /// The requests are what they were, and so is what is said of pods; pods, processes and tokens are what they are.
    pub fn restore(&mut self) {
        if let Some(backup) = self.backup.take() {
            // No backup is restored that soon, nor in no time.
            self.now = (self.now + SignedDuration::from_secs(1)).max(backup.time + RESTORE);
            // It takes longer than any call: what was to be revoked by what etcd said before is dead by then, and no write to an API
            // server outlives its etcd.
            for late in std::mem::take(&mut self.late) {
                match late {
                    Late::Revoke(accessor) => self.revoke(&accessor),
                    Late::Write(..) | Late::Release(_) => {}
                    late => self.late.push(late),
                }
            }
            self.requests = backup.requests;
            for pod in &mut self.pods {
                pod.said = backup.states.get(&pod.uid).map(|said| (*said, pod.state()));
            }
            self.restored = true;
        }
    }

    /// Somebody who should not uses a wrapping token that is on its way.
    pub fn steal(&mut self, number: usize) {
        let now = self.now;
        let unused = |token: &&mut Token| !token.unwrapped && !token.revoked && token.wrapping_expires > now;
        let mut unused: Vec<_> = self.tokens.iter_mut().filter(unused).collect();
        let count = unused.len();
        if count > 0 {
            (unused[number % count].unwrapped, unused[number % count].stolen) = (true, true);
        }
    }

    pub fn push(&mut self, addresses: &[IpAddr], push: &Push) -> Result<Answer, String> {
        let to =
            self.pods.iter().enumerate().position(|(number, pod)| pod.alive() && addresses.contains(&address(number)));
        let Some(number) = to else { return Err("connection refused".to_owned()) };
        let Init::Waiting { request: (_, uid), .. } = self.pods[number].init.clone() else {
            return Err("connection refused".to_owned());
        };
        if uid != push.request_uid {
            return Err("another request".to_owned());
        }
        Ok(self.take(number, push.attempt, &opened(&push.sealed)))
    }

    /// I5: a push is on its way. Who is at the address when it lands is not its sender's to know.
    pub fn aimed(&mut self, addresses: &[IpAddr], push: &Push) {
        self.sent(&opened(&push.sealed));
        let asked = self.asked.get(&push.request_uid);
        let mut to = self.pods.iter().enumerate().filter(|(number, _)| addresses.contains(&address(*number)));
        if let Some((_, pod)) = to.find(|(_, pod)| Some(&pod.uid) != asked) {
            let (name, uid) = (&pod.name, &push.request_uid);
            self.violate(format!(
                "I5: what the request {uid} asked for was pushed to the pod {name}, which did not ask"
            ));
        }
    }

    /// I5: whatever is sent was recorded before.
    fn sent(&mut self, parcel: &Parcel) {
        let accessor = wrapped_in(parcel);
        if !self.recorded.contains(&accessor) {
            self.violate(format!("I5: the wrapping token of {accessor} was sent before its record"));
        }
    }

    /// I6: what a waiting init container makes of a parcel.
    fn take(&mut self, number: usize, attempt: u32, parcel: &Parcel) -> Answer {
        let Init::Waiting { request: (name, uid), held } = self.pods[number].init.clone() else {
            unreachable!("it waits");
        };
        let pod_uid = self.pods[number].uid.clone();
        let receipt = Receipt::decode(parcel.receipt.expose_secret()).expect("a receipt");
        let answer = |outcome| {
            let subject = Subject { request_uid: &uid, pod_uid: &pod_uid, attempt };
            let plain = Answer { attempt, outcome, message: String::new(), refused: 0, mac: String::new() };
            receipt.sign(subject, plain)
        };
        let accessor = wrapped_in(parcel);
        let request = self.requests.get(&name).filter(|request| request.metadata.uid.as_deref() == Some(&uid));
        if request.and_then(|request| custody::expected(request, attempt)) != Some(&accessor) {
            return answer(Outcome::Unused);
        }
        let expected = Held { attempt, accessor: accessor.clone(), whole: true };
        if held.as_ref() == Some(&expected) {
            return answer(Outcome::Stored);
        }
        let now = self.now;
        let token = self.tokens.iter_mut().find(|token| token.accessor == accessor);
        match token {
            Some(token) if token.unwrapped && !token.stolen => return answer(Outcome::Lost),
            Some(token) if !token.revoked && !token.unwrapped && token.wrapping_expires > now => token.unwrapped = true,
            _ => return answer(Outcome::Intercepted),
        }
        self.pods[number].file = Some(accessor);
        self.pods[number].init = Init::Waiting { request: (name.clone(), uid.clone()), held: Some(expected) };
        answer(Outcome::Stored)
    }

    /// The init container takes what is in its request's status, and answers there, if it comes to that.
    pub fn take_offered(&mut self, number: usize, answers: bool) {
        let Init::Waiting { request: (name, uid), .. } = self.pods[number].init.clone() else { return };
        let request = self.requests.get(&name).filter(|request| request.metadata.uid.as_deref() == Some(&uid));
        let Some(status) = request.filter(|request| request.phase() == Phase::Issued).and_then(|it| it.status.clone())
        else {
            return;
        };
        let Some(sealed) = status.sealed_token.filter(|_| status.answer.is_none()) else { return };
        let parcel = opened(&sealed);
        self.sent(&parcel);
        let answer = self.take(number, status.attempts, &parcel);
        if answers {
            let version = self.version();
            let request = self.requests.get_mut(&name).expect("it was there");
            request.status.as_mut().expect("it has one").answer = Some(answer);
            request.metadata.resource_version = version;
        }
    }

    /// A person deletes what says that a pod is compromised.
    pub fn clear_alarms(&mut self) {
        let alarming = |request: &&VaultTokenRequest| request.is_compromised() && request.phase().is_final();
        let names: Vec<_> = self.requests.values().filter(alarming).filter_map(|it| it.metadata.name.clone()).collect();
        for name in names {
            self.delete(&name);
        }
    }

    /// The init container looks at its request.
    pub fn look(&mut self, number: usize) {
        self.take_offered(number, true);
        let Init::Waiting { request: (name, uid), held } = self.pods[number].init.clone() else { return };
        let request = self.requests.get(&name).filter(|request| request.metadata.uid.as_deref() == Some(&uid));
        let verdict = custody::judge(request, held.as_ref());
        let keeps = custody::keeps(&verdict, request, held.as_ref());
        let pod = &mut self.pods[number];
        match (verdict, held) {
            (Verdict::Done, held) => self.end_init(number, held.expect("it holds what is delivered").accessor),
            (Verdict::Over(_) | Verdict::Anew(_), _) => (pod.init, pod.file) = (Init::Off, None),
            (Verdict::Waiting(_), Some(_)) if !keeps => {
                pod.file = None;
                pod.init = Init::Waiting { request: (name, uid), held: None };
            }
            (Verdict::Waiting(_), _) => {}
        }
    }

    /// The init container ends well, and its pod's app has the token from now on.
    fn end_init(&mut self, number: usize, accessor: String) {
        let name = &self.pods[number].name;
        let delivered = |request: &VaultTokenRequest| {
            request.phase() == Phase::Delivered
                && request.spec.pod_uid == self.pods[number].uid
                && request.metadata.deletion_timestamp.is_none()
                && accessor_of(request) == Some(&accessor)
        };
        if !self.requests.values().any(delivered) {
            self.violate(format!(
                "I6: the init container of {name} ended with {accessor}, which no request says it has"
            ));
        }
        self.pods[number].init = Init::Done(accessor);
    }

    // --- messages that come late

    pub fn land(&mut self, number: usize) {
        if self.late.is_empty() {
            return;
        }
        match self.late.remove(number % self.late.len()) {
            Late::Mint(order) => drop(self.mint(&order)),
            Late::Write(seen, next) => drop(self.write(&seen, *next)),
            Late::Release(seen) => drop(self.release(&seen)),
            Late::Renew(accessor, sent) if self.now.duration_since(sent) <= DEADLINE => drop(self.renew(&accessor)),
            Late::Renew(..) => {}
            Late::Revoke(accessor) => self.revoke(&accessor),
            Late::Push(addresses, push) => drop(self.push(&addresses, &push)),
        }
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
    }
}

fn info(expire_time: Option<Timestamp>, path: &str) -> TokenInfo {
    let (policies, period, creation_ttl, orphan, kind) = (Vec::new(), 0, 0, false, String::new());
    TokenInfo { expire_time, path: path.to_owned(), meta: None, policies, period, creation_ttl, orphan, kind }
}

/// In the simulation a seal is as good as none.
fn opened(sealed: &str) -> Parcel {
    serde_json::from_str(sealed).expect("a parcel")
}

fn wrapped_in(parcel: &Parcel) -> String {
    parcel.wrapping_token.expose_secret().trim_start_matches('w').to_owned()
}

pub fn accessor_of(request: &VaultTokenRequest) -> Option<&str> {
    request.status.as_ref()?.token_accessor.as_deref()
}

fn address(number: usize) -> IpAddr {
    let number = u8::try_from(number).expect("few pods");
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number + 1))
}

fn status(code: u16) -> cluster::Error {
    let status = kube::core::Status { code, ..kube::core::Status::default() };
    cluster::Error::Api(kube::Error::Api(Box::new(status)))
}
