//! Two operators on one cluster, taken through a schedule step by step. What runs in them is the product's own code.

use crate::model::{CLUSTER, Init, Model, NAMESPACE, Pod, TOKEN_ROLE, Token, accessor_of};
use crate::world::{Fate, Looked, SimWorld, limits};
use futures::task::noop_waker;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use vault_token_operator::api::{Attempt, Phase, VaultTokenRequest};
use vault_token_operator::cluster;
use vault_token_operator::domain::plan::{MAX_ATTEMPTS, Siblings};
use vault_token_operator::domain::status::is_forgotten;
use vault_token_operator::domain::token::Hand;
use vault_token_operator::operator::{Executor, Look, Next, Report, Seen, Sweeper};

/// How many orphans a sweep revokes at most: more than any schedule makes.
const SWEEP_LIMIT: usize = 100;

/// One step of a schedule. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// An operator begins a look at a request that its watch shows.
    Look { operator: u8, request: u8 },
    /// An operator's calls go on, one after another, and each of them well.
    Go { operator: u8, task: u8, calls: u8 },
    /// An operator looks at a request as it is now, and some of its calls go otherwise: a bit for each.
    Turn { operator: u8, request: u8, bits: u16, fate: Fate },
    /// An operator's next call goes otherwise.
    Fail { operator: u8, task: u8, fate: Fate },
    /// An operator's watch of requests catches up.
    Watch { operator: u8 },
    /// An operator's watch of pods catches up.
    WatchPods { operator: u8 },
    /// An operator begins a sweep.
    Sweep { operator: u8 },
    /// An operator revokes a token from the side.
    Reap { operator: u8, fate: Fate },
    /// An operator is killed, and starts again.
    Crash { operator: u8 },
    /// A pod's init container starts.
    StartInit { pod: u8 },
    /// A pod's init container looks at its request.
    LookInit { pod: u8 },
    /// A pod's init container takes the token that its request offers, and its answer is lost.
    TakeSilently { pod: u8 },
    /// Somebody who should not uses a wrapping token.
    Steal { token: u8 },
    /// A pod's init container is killed.
    CrashInit { pod: u8 },
    /// A pod loses its sandbox: its volume is empty, and its init container runs again.
    LoseSandbox { pod: u8 },
    /// A pod is deleted, and one of the same name takes its place.
    ReplacePod { pod: u8 },
    /// A pod comes to its end.
    FinishPod { pod: u8 },
    /// Somebody deletes a request.
    DeleteRequest { request: u8 },
    /// A message whose sender has given up on it arrives.
    Land { message: u8 },
    /// The create that a killed init container had sent arrives, after its successor's.
    LateRequest { pod: u8 },
    /// etcd is backed up.
    Backup,
    /// etcd is restored, and the operators start again.
    Restore,
    /// A pod's kubelet says again what state the pod is in.
    Report { pod: u8 },
    /// Vault goes away, or comes back.
    Vault { away: bool },
    /// The pods' policies are granted no longer, or again.
    Grant { granted: bool },
    /// Time goes by.
    Wait { seconds: u16 },
}

type LookTask = Pin<Box<dyn Future<Output = (Hand, Result<Look, cluster::Error>)>>>;
type SweepTask = Pin<Box<dyn Future<Output = (Sweeper, Result<Report, String>)>>>;

/// What an operator is in the midst of.
enum Task {
    Look { name: String, uid: String, task: LookTask },
    Sweep { looked: Looked, task: SweepTask },
}

struct Operator {
    world: Arc<SimWorld>,
    executor: Arc<Executor<SimWorld>>,
    /// `None` while it sweeps.
    sweeper: Option<Sweeper>,
    hands: HashMap<String, Hand>,
    tasks: Vec<Task>,
    /// What its watches show.
    requests: BTreeMap<String, VaultTokenRequest>,
    pods: HashSet<String>,
}

impl Operator {
    fn new(model: Arc<Mutex<Model>>) -> Self {
        let world = SimWorld { model, fate: Mutex::new(Fate::Fine), reaper: Mutex::default(), sweep: Mutex::default() };
        let world = Arc::new(world);
        let executor = Executor::new(CLUSTER.to_owned(), limits(), world.clone());
        let sweeper = Some(Sweeper::new(CLUSTER.to_owned(), TOKEN_ROLE.to_owned(), SWEEP_LIMIT));
        let mut operator = Self {
            world,
            executor: Arc::new(executor),
            sweeper,
            hands: HashMap::new(),
            tasks: Vec::new(),
            requests: BTreeMap::new(),
            pods: HashSet::new(),
        };
        operator.watch();
        operator.watch_pods();
        operator
    }

    fn watch(&mut self) {
        self.requests.clone_from(&self.world.model().requests);
    }

    fn watch_pods(&mut self) {
        let model = self.world.model();
        self.pods = model.pods.iter().filter(|pod| pod.alive()).map(|pod| pod.uid.clone()).collect();
    }

    fn begin_look(&mut self, name: &str) {
        let Some(request) = self.requests.get(name).cloned() else { return };
        let uid = request.metadata.uid.clone().expect("a UID");
        let busy = |task: &Task| matches!(task, Task::Look { name: other, .. } if other == name);
        if self.tasks.iter().any(busy) {
            return;
        }
        let own = self.requests.values().filter(|other| other.spec.pod_uid == request.spec.pod_uid);
        let siblings = Siblings::of(&request, own.filter(|other| other.metadata.name != request.metadata.name));
        let pod_lives = self.pods.contains(&request.spec.pod_uid);
        let executor = self.executor.clone();
        let mut hand = self.hands.remove(&uid).unwrap_or_default();
        let task = Box::pin(async move {
            let seen = Seen { request: &request, pod_lives, siblings };
            let look = executor.advance(&seen, &mut hand).await;
            (hand, look)
        });
        self.tasks.push(Task::Look { name: name.to_owned(), uid, task });
        // Up to its first call.
        let last = self.tasks.len() - 1;
        self.poll(last, Fate::Fine);
    }

    fn begin_sweep(&mut self) {
        let Some(mut sweeper) = self.sweeper.take() else { return };
        let world = self.world.clone();
        let live = self.requests.values().filter(|request| !request.is_over());
        let recorded: HashSet<String> = live.filter_map(|request| accessor_of(request).map(str::to_owned)).collect();
        let task = Box::pin(async move {
            let report = sweeper.sweep(&*world, |accessor| recorded.contains(accessor)).await;
            (sweeper, report.map_err(|error| error.to_string()))
        });
        self.tasks.push(Task::Sweep { looked: Looked::default(), task });
        let last = self.tasks.len() - 1;
        self.poll(last, Fate::Fine);
    }

    /// Lets a task's call go on; gives what a look came to, if it is over.
    fn poll(&mut self, number: usize, fate: Fate) -> Option<Result<Look, cluster::Error>> {
        *self.world.fate.lock().expect("no panic") = fate;
        let waker = noop_waker();
        let mut context = Context::from_waker(&waker);
        match &mut self.tasks[number] {
            Task::Look { uid, task, .. } => {
                let Poll::Ready((hand, look)) = task.as_mut().poll(&mut context) else { return None };
                // As the controller does: only what waits for another look is remembered.
                if !matches!(&look, Ok(Look { next: Next::Rest, .. })) {
                    self.hands.insert(uid.clone(), hand);
                }
                self.tasks.remove(number);
                Some(look)
            }
            Task::Sweep { looked, task } => {
                let watched =
                    |world: &SimWorld, looked| std::mem::replace(&mut *world.sweep.lock().expect("no panic"), looked);
                watched(&self.world, Some(std::mem::take(looked)));
                let polled = task.as_mut().poll(&mut context);
                *looked = watched(&self.world, None).expect("it is of this sweep");
                if let Poll::Ready((sweeper, report)) = polled {
                    // It lacks no right here: Vault forbids what was left behind, and nothing else.
                    assert!(!report.is_err_and(|error| error.contains("permission denied")), "the sweep gave up");
                    self.sweeper = Some(sweeper);
                    self.tasks.remove(number);
                }
                None
            }
        }
    }

    fn reap(&mut self, fate: Fate) {
        let Some(accessor) = self.world.reaper.lock().expect("no panic").pop() else { return };
        let mut model = self.world.model();
        if !model.away && matches!(fate, Fate::Fine | Fate::Lost) {
            model.revoke(&accessor);
        }
        drop(model);
        if fate != Fate::Fine {
            self.world.reaper.lock().expect("no panic").push(accessor);
        }
    }
}

/// The whole system.
pub struct Machine {
    model: Arc<Mutex<Model>>,
    operators: [Operator; 2],
}

impl Machine {
    pub fn new(pods: usize) -> Self {
        let model = Arc::new(Mutex::new(Model::new()));
        let machine = Self { operators: [Operator::new(model.clone()), Operator::new(model.clone())], model };
        for number in 0..pods {
            machine.add_pod(&format!("web-{number}"));
        }
        machine
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().expect("no panic")
    }

    fn add_pod(&self, name: &str) {
        let mut model = self.model();
        let uid = format!("{:08x}-0000-4000-8000-000000000000", model.pods.len());
        model.pods.push(Pod {
            name: name.to_owned(),
            uid,
            gone: false,
            finished: false,
            init: Init::Off,
            file: None,
            said: None,
        });
    }

    /// Takes one step; gives the invariant that does not hold any more, if any.
    pub fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Look { operator, request } => {
                let operator = self.operator(operator);
                let count = operator.requests.len();
                if let Some(name) = operator.requests.keys().nth(usize::from(request) % count.max(1)).cloned() {
                    operator.begin_look(&name);
                }
            }
            Action::Go { operator, task, calls } => {
                let operator = self.operator(operator);
                if !operator.tasks.is_empty() {
                    let number = usize::from(task) % operator.tasks.len();
                    let count = operator.tasks.len();
                    for _ in 0..calls {
                        operator.poll(number, Fate::Fine);
                        if operator.tasks.len() < count {
                            break;
                        }
                    }
                }
            }
            Action::Turn { operator, request, bits, fate } => {
                let operator = self.operator(operator);
                operator.watch();
                operator.watch_pods();
                let count = operator.requests.len();
                let Some(name) = operator.requests.keys().nth(usize::from(request) % count.max(1)).cloned() else {
                    return Ok(());
                };
                // A new look is the last of the tasks; one that is over, or was there already, is not among them.
                let number = operator.tasks.len();
                operator.begin_look(&name);
                for call in 0..u16::BITS {
                    if operator.tasks.len() > number {
                        operator.poll(number, if bits >> call & 1 == 1 { fate } else { Fate::Fine });
                    }
                }
            }
            Action::Fail { operator, task, fate } => {
                let operator = self.operator(operator);
                if !operator.tasks.is_empty() {
                    operator.poll(usize::from(task) % operator.tasks.len(), fate);
                }
            }
            Action::Watch { operator } => self.operator(operator).watch(),
            Action::WatchPods { operator } => self.operator(operator).watch_pods(),
            Action::Sweep { operator } => self.operator(operator).begin_sweep(),
            Action::Reap { operator, fate } => self.operator(operator).reap(fate),
            Action::Crash { operator } => {
                let model = self.model.clone();
                *self.operator(operator) = Operator::new(model);
            }
            Action::StartInit { pod } => self.with_pod(pod, Model::start_init),
            Action::LookInit { pod } => self.with_pod(pod, Model::look),
            Action::TakeSilently { pod } => self.with_pod(pod, |model, number| model.take_offered(number, false)),
            Action::Steal { token } => self.model().steal(token.into()),
            Action::CrashInit { pod } => self.with_pod(pod, |model, number| {
                if let Init::Waiting { .. } = model.pods[number].init {
                    model.pods[number].init = Init::Off;
                }
            }),
            Action::LoseSandbox { pod } => self.with_pod(pod, |model, number| {
                let pod = &mut model.pods[number];
                (pod.init, pod.file) = (Init::Off, None);
            }),
            Action::ReplacePod { pod } => {
                let mut name = None;
                self.with_pod(pod, |model, number| {
                    let few = model.pods.len() < 5;
                    if few && !model.pods[number].gone {
                        model.pods[number].gone = true;
                        name = Some(model.pods[number].name.clone());
                    }
                });
                if let Some(name) = name {
                    self.add_pod(&name);
                }
            }
            Action::FinishPod { pod } => self.with_pod(pod, |model, number| {
                if let Init::Done(_) = model.pods[number].init {
                    model.pods[number].finished = true;
                }
            }),
            Action::DeleteRequest { request } => {
                let mut model = self.model();
                let count = model.requests.len();
                if let Some(name) = model.requests.keys().nth(usize::from(request) % count.max(1)).cloned() {
                    model.delete(&name);
                }
            }
            Action::Land { message } => self.model().land(message.into()),
            Action::LateRequest { pod } => self.with_pod(pod, |model, number| {
                model.create(number, true);
            }),
            Action::Backup => self.model().back_up(),
            Action::Restore => {
                self.model().restore();
                self.operators = [Operator::new(self.model.clone()), Operator::new(self.model.clone())];
            }
            Action::Report { pod } => self.with_pod(pod, |model, number| model.pods[number].said = None),
            Action::Vault { away } => self.model().away = away,
            Action::Grant { granted } => self.model().granted = granted,
            Action::Wait { seconds } => self.model().advance(Duration::from_secs(seconds.into())),
        }
        self.check()
    }

    /// Whether a token lives longer than its request says.
    pub fn lives_longer_than_recorded(&self) -> bool {
        let model = self.model();
        let recorded = |accessor: &str| {
            let request = model.requests.values().find(|request| accessor_of(request) == Some(accessor))?;
            Some(request.status.as_ref()?.expires_at.as_ref()?.0)
        };
        model.tokens.iter().any(|token| recorded(&token.accessor).is_some_and(|expires| token.expires > expires))
    }

    /// Whether a request has no finalizer any more.
    pub fn is_let_go(&self, request: usize) -> bool {
        self.model().requests.values().nth(request).is_none_or(|request| request.metadata.finalizers.is_none())
    }

    fn operator(&mut self, number: u8) -> &mut Operator {
        &mut self.operators[usize::from(number) % 2]
    }

    fn with_pod(&self, pod: u8, act: impl FnOnce(&mut Model, usize)) {
        let mut model = self.model();
        let number = usize::from(pod) % model.pods.len();
        act(&mut model, number);
    }

    /// What must hold at any time.
    fn check(&self) -> Result<(), String> {
        let model = self.model();
        if let Some(violation) = &model.violation {
            return Err(violation.clone());
        }
        for request in model.requests.values() {
            let attempts = request.status.as_ref().map_or(0, |status| status.attempts);
            if attempts > MAX_ATTEMPTS {
                return Err(format!("{:?} has had {attempts} attempts", request.metadata.name));
            }
        }
        // I1: no token is recorded twice.
        let mut seen = HashSet::new();
        for accessor in model.requests.values().filter_map(accessor_of) {
            if !seen.insert(accessor) {
                return Err(format!("I1: the token {accessor} is recorded in two requests"));
            }
        }
        Ok(())
    }

    /// Faults stop: what is under way arrives, one operator does not come back, the other one works until nothing moves.
    /// Then every invariant holds to the letter, and nobody waits.
    pub fn settle(&mut self) -> Result<(), String> {
        {
            let mut model = self.model();
            (model.away, model.granted) = (false, true);
        }
        while !self.model().late.is_empty() {
            self.act(Action::Land { message: 0 })?;
        }
        self.operators[1] = Operator::new(self.model.clone());
        // Whatever a restored etcd says of pods, all is done by that once.
        self.round()?;
        for pod in &mut self.model().pods {
            pod.said = None;
        }
        let mut calm = 0;
        for _ in 0..400 {
            let before = self.fingerprint();
            self.round()?;
            calm = if before == self.fingerprint() { calm + 1 } else { 0 };
            if calm == 3 {
                return self.check_settled();
            }
            // Long enough for the next attempt, and for a wrapping token to expire.
            self.model().advance(Duration::from_secs(61));
        }
        Err("it does not come to rest".to_owned())
    }

    /// Everybody does what there is to do.
    fn round(&mut self) -> Result<(), String> {
        self.work_off()?;
        self.model().clear_alarms();
        let pods = self.model().pods.len();
        for number in 0..pods {
            let mut model = self.model();
            model.start_init(number);
            model.look(number);
        }
        self.operators[0].watch();
        self.operators[0].watch_pods();
        let names: Vec<String> = self.operators[0].requests.keys().cloned().collect();
        for name in names {
            self.operators[0].begin_look(&name);
            self.work_off()?;
            for number in 0..pods {
                self.model().look(number);
            }
        }
        self.operators[0].watch();
        self.operators[0].begin_sweep();
        self.work_off()
    }

    fn work_off(&mut self) -> Result<(), String> {
        for _ in 0..1000 {
            self.check()?;
            let operator = &mut self.operators[0];
            while !operator.world.reaper.lock().expect("no panic").is_empty() {
                operator.reap(Fate::Fine);
            }
            if operator.tasks.is_empty() {
                return self.check();
            }
            operator.poll(0, Fate::Fine);
        }
        Err("a look goes on for ever".to_owned())
    }

    /// What the world looks like, but for the time.
    fn fingerprint(&self) -> Vec<String> {
        let model = self.model();
        let requests = model.requests.values().map(|request| {
            // Renewals go on for ever.
            let version = (request.phase() != Phase::Delivered).then_some(&request.metadata.resource_version);
            format!("{:?} {} {version:?}", request.metadata.name, request.phase())
        });
        let pods = model.pods.iter().map(|pod| format!("{:?}", pod.init));
        let tokens =
            model.tokens.iter().filter(|token| model.alive(&token.accessor)).map(|token| token.accessor.clone());
        requests.chain(pods).chain(tokens).collect()
    }

    fn check_settled(&self) -> Result<(), String> {
        let model = self.model();
        let records = |accessor: &str| {
            let live = model.requests.values().filter(|request| !request.is_over());
            live.filter(|request| accessor_of(request) == Some(accessor)).count()
        };
        // Whether a request that is as new as the token's is Delivered.
        let explained = |pod: &Pod, token: &Token| {
            let mut own = model.requests.values().filter(|request| request.spec.pod_uid == pod.uid);
            let sequence: i64 = token.meta["request_sequence"].parse().expect("a number");
            own.any(|request| request.phase() == Phase::Delivered && request.spec.sequence >= sequence)
        };
        let unclaimed = |token: &Token| {
            let mut all = model.requests.values();
            !all.any(|request| request.metadata.uid.as_ref() == token.meta.get("request_uid"))
        };
        let unknown = |token: &Token| {
            let ended = |ended: &Attempt| {
                is_forgotten(ended)
                    && ended.number.to_string() == token.meta["attempt"]
                    && ended.started_at.as_ref().is_some_and(|at| at.0.to_string() == token.meta["attempt_started_at"])
            };
            let mut all = model.requests.values().filter_map(|request| request.status.as_ref());
            all.any(|status| status.history.iter().any(ended))
        };
        // What was lost with the requests is not found again; that nobody lost a token to it was looked at all the time.
        let accounted = |accessor: &str| !model.restored && model.alive(accessor);
        for token in model.tokens.iter().filter(|token| accounted(&token.accessor)) {
            let accessor = &token.accessor;
            let pod = model.pods.iter().find(|pod| pod.alive() && Some(&pod.uid) == token.meta.get("pod_uid"));
            match (records(accessor), pod) {
                (1, Some(pod)) if pod.init == Init::Done(accessor.clone()) => {}
                // Rule 10 once more: its request waits, and nobody renews it.
                (1, Some(pod)) if matches!(pod.init, Init::Done(_)) && !explained(pod, token) => {}
                (1, Some(pod)) => return Err(format!("I1: {accessor} is recorded, and {} does not use it", pod.name)),
                // Rule 10: the pod has had a token, or the token's request is not there or does not know what became of it, and no
                // request says so; a restored etcd looks the same. It ends with the pod.
                (0, Some(pod))
                    if (matches!(pod.init, Init::Done(_)) || unclaimed(token) || unknown(token))
                        && !explained(pod, token) => {}
                (0, _) => return Err(format!("I2: {accessor} is an orphan")),
                (1, None) => return Err(format!("I3: {accessor} outlived its pod")),
                (count, _) => return Err(format!("I1: {accessor} is recorded {count} times")),
            }
        }
        for pod in model.pods.iter().filter(|pod| pod.alive()) {
            let own = || model.requests.values().filter(|request| request.spec.pod_uid == pod.uid);
            match &pod.init {
                Init::Done(accessor) if model.alive(accessor) && records(accessor) == 1 => {}
                // Somebody deleted its request, or everybody was away for longer than its token lives.
                Init::Done(accessor) if records(accessor) == 0 && !model.alive(accessor) => {}
                Init::Done(_) if model.restored => {}
                Init::Done(accessor) => return Err(format!("{} has the dead token {accessor}", pod.name)),
                _ if own().count() >= 10 => {}
                init => return Err(format!("{} waits for its token: {init:?}", pod.name)),
            }
        }
        for (name, request) in &model.requests {
            if request.is_over() && request.metadata.finalizers.is_some() {
                return Err(format!("I8: {name} has come to its end and keeps its finalizer"));
            }
            if request.metadata.deletion_timestamp.is_some() {
                return Err(format!("{name} is stuck in its deletion"));
            }
            let pod = model.pods.iter().find(|pod| pod.uid == request.spec.pod_uid);
            if request.phase() == Phase::Delivered && !pod.is_some_and(Pod::alive) {
                return Err(format!("{name} is Delivered to a pod that is gone"));
            }
            if request.metadata.namespace.as_deref() != Some(NAMESPACE) {
                return Err(format!("{name} is elsewhere"));
            }
        }
        Ok(())
    }
}
