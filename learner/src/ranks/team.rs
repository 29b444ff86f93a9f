//! The lead's side: who is there, who needs state, who takes which part of a step.
use super::weave::Weave;
use crate::batching::Plan;
use crate::collective::{Collective, CollectiveError, Exchange, Line, Peer, Pulse, Stream};
use crate::shards;
use cohort_actors::transport::{Connection, Listener};
use cohort_actors::{AcceptTerms, accept_worker};
use cohort_engine::fabric::Fabrics;
use cohort_engine::{EngineError, EngineHandle};
use cohort_model::WeightSet;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::learner::StepRequest;
use cohort_protocol::messages::ranks::{BetweenRanks, Holding, RankPart, RankState, RankStep};
use cohort_protocol::version::RANK_PARTS;
use cohort_protocol::{PolicyVersion, Role};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// How long a step waits for a rank that is missing before the others take it: a restart and a small model's load.
const GRACE: Duration = Duration::from_secs(10);

const JOINING: &str = "its joining";
const STATE: &str = "the hand-over of state";
const STEP: &str = "the hand-over of a step";
const END: &str = "the end of the step";

/// A follower that is connected.
#[derive(Debug)]
pub(crate) struct Member {
    index: u16,
    pub(super) line: Arc<Line>,
    /// The newest version that it speaks.
    pub(super) protocol: u16,
    /// What it holds; `None`: it has not said so yet.
    holds: Mutex<Option<Option<Holding>>>,
    /// Which part of the optimizer's state it keeps; `None`: it has not been asked yet.
    keeps: Mutex<Option<Option<RankPart>>>,
    /// Memory shared with it, where it is on this host; set when it has said what it holds.
    memory: OnceLock<Option<Arc<Exchange>>>,
}

impl Member {
    pub(super) fn holds(&self) -> Option<Option<Holding>> {
        *self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keeps(&self) -> Option<Option<RankPart>> {
        *self.keeps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now_keeps(&self, part: Option<RankPart>) {
        *self.keeps.lock().unwrap_or_else(PoisonError::into_inner) = Some(part);
    }

    /// Hears what it holds and shares memory with it, once.
    pub(super) async fn join(&self) -> Result<(), CollectiveError> {
        if self.holds().is_none() {
            self.now_holds(held(&self.line, JOINING).await?);
            self.share_memory().await?;
        }
        Ok(())
    }

    /// Offers memory for its values; where it is elsewhere, or there is none, they travel over the line.
    async fn share_memory(&self) -> Result<(), CollectiveError> {
        let made = Exchange::create().and_then(|memory| Ok((memory.offer()?, memory)));
        let opened = match made {
            Ok((offer, memory)) => {
                self.line.send(&BetweenRanks::Memory(offer), JOINING).await?;
                match self.line.recv(JOINING).await? {
                    BetweenRanks::Opened(opened) => opened.then_some(memory),
                    other => return Err(self.line.out_of_step(JOINING, &other)),
                }
            }
            Err(error) => {
                warn!(target: "cohort::learner", %error, "no_shared_memory");
                None
            }
        };
        info!(target: "cohort::learner", rank = self.line.peer(), shared = opened.is_some(), "memory_shared");
        // Once a membership: it has just joined.
        let _ = self.memory.set(opened.map(Arc::new));
        Ok(())
    }

    fn peer(&self) -> Peer {
        Peer { line: self.line.clone(), memory: self.memory.get().cloned().flatten() }
    }

    fn now_holds(&self, holding: Option<Holding>) {
        *self.holds.lock().unwrap_or_else(PoisonError::into_inner) = Some(holding);
    }
}

/// What a team is made with.
#[derive(Debug)]
pub(crate) struct TeamArgs {
    /// Where followers come to.
    pub(crate) terms: AcceptTerms,
    /// Ranks, the lead included.
    pub(crate) count: u16,
    /// Logical shards of a step.
    pub(crate) shards: usize,
    /// Whether each rank keeps a part of the optimizer's state.
    pub(crate) partitioned: bool,
    /// What the lead does.
    pub(crate) pulse: Pulse,
    /// How long a rank may stand still.
    pub(crate) patience: Duration,
    /// The network between the ranks' devices.
    pub(crate) fabrics: Option<Arc<dyn Fabrics>>,
}

/// The followers of this lead.
#[derive(Debug)]
pub struct Team {
    args: TeamArgs,
    members: Mutex<BTreeMap<u16, Arc<Member>>>,
    joined: Notify,
    /// Somebody was waited for in vain and has not come since.
    incomplete: AtomicBool,
    weave: tokio::sync::Mutex<Weave>,
    _accepting: JoinSet<()>,
}

impl Team {
    /// Takes followers in from now on. Call it within a tokio runtime.
    pub(crate) fn open(listener: Arc<dyn Listener>, args: TeamArgs) -> Arc<Self> {
        Arc::new_cyclic(|team| {
            let mut accepting = JoinSet::new();
            let team: std::sync::Weak<Self> = team.clone();
            accepting.spawn(async move {
                let mut handshakes = JoinSet::new();
                while let Ok(connection) = listener.accept().await {
                    while handshakes.try_join_next().is_some() {}
                    let Some(team) = team.upgrade() else { return };
                    handshakes.spawn(async move { team.admit(connection).await });
                }
            });
            Self {
                weave: tokio::sync::Mutex::new(Weave::new(args.fabrics.clone())),
                args,
                members: Mutex::default(),
                joined: Notify::new(),
                incomplete: AtomicBool::new(false),
                _accepting: accepting,
            }
        })
    }

    /// A newer connection of a follower ends its older one.
    async fn admit(&self, connection: Arc<dyn Connection>) {
        let TeamArgs { count, partitioned, .. } = self.args;
        let known = move |hello: &Hello| match (hello.worker.role, hello.worker.index) {
            (Role::Learner, 1..) if partitioned && hello.protocol_max < RANK_PARTS => Err(format!(
                "{} speaks versions up to {}, training.shard_optimizer needs {RANK_PARTS}: run the same build on every rank",
                hello.worker, hello.protocol_max
            )),
            (Role::Learner, 1..) if hello.worker.index < count => Ok(()),
            _ => Err(format!("{} is no follower of this run's {count} learner ranks", hello.worker)),
        };
        match accept_worker(connection, &self.args.terms, known).await {
            Ok(admitted) => {
                let who = admitted.worker();
                let line = Line::open(who.to_string(), admitted.connection, &self.args.pulse, self.args.patience, true);
                let (line, protocol) = (Arc::new(line), admitted.hello.protocol_max);
                let (holds, keeps) = (Mutex::new(None), Mutex::new(None));
                let member = Member { index: who.index, line, protocol, holds, keeps, memory: OnceLock::new() };
                let older = self.lock().insert(who.index, Arc::new(member));
                if let Some(older) = older {
                    older.line.close("it connected again");
                }
                info!(target: "cohort::learner", rank = %who, incarnation = admitted.hello.incarnation, "rank_joined");
                self.joined.notify_waiters();
            }
            Err(error) => warn!(target: "cohort::learner", %error, "rank_refused"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u16, Arc<Member>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those whose connection stands.
    fn standing(&self) -> Vec<Arc<Member>> {
        let mut members = self.lock();
        members.retain(|_, member| member.line.check(JOINING).is_ok());
        members.values().cloned().collect()
    }

    /// Waits for whoever is missing, once for each loss.
    pub(super) async fn assembled(&self) -> Vec<Arc<Member>> {
        let wanted = usize::from(self.args.count) - 1;
        let complete = async {
            loop {
                let joined = self.joined.notified();
                let standing = self.standing();
                if standing.len() == wanted {
                    return standing;
                }
                joined.await;
            }
        };
        let patience = if self.incomplete.load(Ordering::Relaxed) { Duration::ZERO } else { GRACE };
        match tokio::time::timeout(patience, complete).await {
            Ok(standing) => {
                self.incomplete.store(false, Ordering::Relaxed);
                standing
            }
            Err(_) => {
                let standing = self.standing();
                if !self.incomplete.swap(true, Ordering::Relaxed) {
                    warn!(target: "cohort::learner", present = standing.len() + 1, of = self.args.count, "ranks_missing");
                }
                standing
            }
        }
    }

    /// The followers that take the next step with the lead, all holding what the engine holds, in the order of their ranks
    /// from 1. As many as can share the shards.
    ///
    /// Errors: [`TeamError::Ranks`] when one was lost meanwhile, and is gone: form again. [`TeamError::PartLost`].
    pub(crate) async fn form(&self, engine: &EngineHandle, version: PolicyVersion) -> Result<Vec<Arc<Member>>, TeamError> {
        let standing = self.assembled().await;
        let members = standing[..shards::most(self.args.shards, standing.len() + 1) - 1].to_vec();
        let holding = holding_of(engine, version).await?;
        let partitioned = self.args.partitioned;
        for member in if partitioned { &standing } else { &members } {
            member.join().await?;
        }
        let settled = !partitioned || self.settled(engine, holding, &members, &standing).await?;
        let lacks = |member: &&Arc<Member>| member.holds() != Some(Some(holding));
        let lacking: Vec<_> = members.iter().filter(lacks).cloned().collect();
        if !lacking.is_empty() {
            hand_over(engine, holding, &lacking, !partitioned).await?;
        }
        if !settled {
            self.divide(engine, &members).await?;
        }
        Ok(members)
    }

    /// Gives each of them its part of a step; gives the group that takes it.
    pub(crate) async fn begin(
        &self,
        members: &[Arc<Member>],
        request: &StepRequest,
        plan: &Plan,
    ) -> Result<Stream, CollectiveError> {
        let world = members.len() + 1;
        let fabric = self.weave.lock().await.of(members).await?;
        for (rank, member) in (1..).zip(members) {
            let own = shards::of_rank(self.args.shards, rank, world);
            let groups = shards::groups(request.groups.len(), self.args.shards, &own);
            let step = RankStep {
                intent: request.intent.clone(),
                shards: (narrow(own.start), narrow(own.end)),
                groups: request.groups[groups].to_vec(),
                sequences: plan.totals.sequences,
                tokens: plan.totals.tokens,
                rank: narrow(rank),
                world: narrow(world),
            };
            member.line.send_bulk(&BetweenRanks::Step(step), STEP).await?;
        }
        Ok(group(members).on(fabric))
    }

    /// The step is done: what each of them now holds. One that is lost meanwhile joins again later; its loss takes nothing
    /// away, since the lead has the whole sum.
    ///
    /// Errors: the name of a rank that holds something else, and its digest.
    pub(crate) async fn end(&self, members: &[Arc<Member>], made: Holding) -> Result<(), (String, u64)> {
        for member in members {
            match member.line.recv(END).await {
                Ok(BetweenRanks::Stepped(holding)) if holding == made => member.now_holds(Some(holding)),
                Ok(BetweenRanks::Stepped(holding)) => return Err((member.line.peer().to_owned(), holding.digest)),
                Ok(other) => self.dismiss(member, &member.line.out_of_step(END, &other)),
                Err(error) => self.dismiss(member, &error),
            }
        }
        self.weave.lock().await.worked();
        Ok(())
    }

    /// After an error: every follower joins anew, or is replaced.
    pub(crate) async fn disband(&self, why: &CollectiveError) {
        self.weave.lock().await.abandoned(why);
        warn!(target: "cohort::learner", %why, "step_abandoned");
        for member in std::mem::take(&mut *self.lock()).into_values() {
            member.line.close(&format!("the step is abandoned: {why}"));
        }
    }

    fn dismiss(&self, member: &Arc<Member>, why: &CollectiveError) {
        warn!(target: "cohort::learner", rank = member.line.peer(), %why, "rank_lost");
        member.line.close(&why.to_string());
        let mut members = self.lock();
        if members.get(&member.index).is_some_and(|known| Arc::ptr_eq(known, member)) {
            members.remove(&member.index);
        }
    }
}

/// The group of the lead and these followers, whose sums travel on the lines.
fn group(members: &[Arc<Member>]) -> Stream {
    Stream::lead(members.iter().map(|member| member.peer()).collect())
}

/// Why no group came about.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TeamError {
    /// A follower.
    #[error(transparent)]
    Ranks(#[from] CollectiveError),
    /// The lead's own engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The optimizer's state is not whole any more.
    #[error(
        "part {rank} of {world} of the optimizer's state of version {version} went with its rank; a checkpoint is loaded and what followed is replayed"
    )]
    PartLost {
        /// Whose it was.
        rank: u32,
        /// Of how many.
        world: u32,
        /// Of which version.
        version: PolicyVersion,
    },
}

/// What the lead's engine holds, which must be this version.
pub(super) async fn holding_of(engine: &EngineHandle, version: PolicyVersion) -> Result<Holding, EngineError> {
    let label = engine.label().await?.filter(|label| label.version == version.0);
    let label = label.ok_or_else(|| EngineError::Input(format!("the engine does not hold version {version}")))?;
    Ok(Holding { version, digest: label.digest })
}

/// The lead and one other rank.
pub(super) fn pair(member: &Member) -> Stream {
    Stream::lead(vec![member.peer()])
}

async fn held(line: &Line, during: &'static str) -> Result<Option<Holding>, CollectiveError> {
    match line.recv(during).await? {
        BetweenRanks::Holds(holding) => Ok(holding),
        other => Err(line.out_of_step(during, &other)),
    }
}

/// F1: gives them weights, version and, unless they are given parts of it, the optimizer's state.
async fn hand_over(engine: &EngineHandle, holding: Holding, to: &[Arc<Member>], whole: bool) -> Result<(), TeamError> {
    let exported = engine.with_backend(move |engine| {
        let weights = engine.export()?;
        Ok::<_, EngineError>((weights, if whole { engine.optimizer_export()? } else { Default::default() }))
    });
    let (weights, (first, second, updates)) = exported.await??;
    for member in to {
        info!(target: "cohort::learner", rank = member.line.peer(), version = holding.version.0, updates, "state_sent");
        member.line.send(&BetweenRanks::State(RankState { holding, updates }), STATE).await?;
    }
    let mut group = group(to);
    let sets = if updates > 0 { vec![weights, first, second] } else { vec![weights] };
    let sent = tokio::task::spawn_blocking(move || {
        let mut tensors = sets.into_iter().flat_map(|WeightSet(tensors)| tensors.into_values());
        tensors.try_for_each(|mut tensor| group.broadcast(&mut tensor.data))
    });
    sent.await.map_err(|e| EngineError::Device(format!("handing over state: {e}")))??;
    for member in to {
        match held(&member.line, STATE).await? {
            Some(taken) if taken == holding => {
                member.now_holds(Some(taken));
                member.now_keeps(None);
            }
            taken => {
                let why = format!("it was given {holding:?} and holds {taken:?}");
                return Err(CollectiveError::OutOfStep { rank: member.line.peer().to_owned(), during: STATE, why }.into());
            }
        }
    }
    Ok(())
}

/// Counts of shards and ranks, which a configuration keeps far below 2^32.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
