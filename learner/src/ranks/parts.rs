//! The lead's side of an optimizer's state that ranks keep in parts ([`Partition`]): who keeps which, and what becomes of it
//! when other ranks take the next step or a checkpoint wants the whole.
//!
//! Invariants
//! - **P1** a part counts where its keeper holds the lead's version and digest and says that it keeps it: what led to a version is one history.
//! - **P2** a state is divided anew only from the whole, which is the lead's after a load, or gathered from all keepers. A part
//!   that nobody keeps is lost ([`TeamError::PartLost`]), and with it the state of its version.
//! - **P3** the lead frees what others are to keep when all of them have said that they do.
use super::team::{Member, Team, TeamError, holding_of, pair};
use super::{named, part_of};
use crate::collective::{Collective, CollectiveError, Stream};
use cohort_engine::{EngineHandle, Partition};
use cohort_model::WeightSet;
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::ranks::{BetweenRanks, Holding, RankPart};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use tracing::info;

const ASKING: &str = "the search for the optimizer's state";
const DIVIDING: &str = "the division of the optimizer's state";
const GATHERING: &str = "the gathering of the optimizer's state";

/// First and second moments and the number of updates.
pub(crate) type Moments = (WeightSet, WeightSet, u64);

impl Team {
    /// Whether `members` keep the parts of the lead's state; where they do not, the lead has the whole of it then. `standing` are
    /// all from whom a part may be had.
    pub(super) async fn settled(
        &self,
        engine: &EngineHandle,
        holding: Holding,
        members: &[Arc<Member>],
        standing: &[Arc<Member>],
    ) -> Result<bool, TeamError> {
        let Some(own) = engine.with_backend(part_of).await? else { return Ok(members.is_empty()) };
        let keepers = keepers(own, holding, standing).await?;
        if keepers.len() == members.len() && keepers.iter().zip(members).all(|(keeper, member)| Arc::ptr_eq(keeper, member)) {
            return Ok(true);
        }
        let (first, second, updates) = gather(engine, own, &keepers).await?;
        engine.with_backend(move |engine| engine.optimizer_import(&first, &second, updates)).await??;
        Ok(members.is_empty())
    }

    /// Gives each of them its part of the whole that the lead has (P3).
    pub(super) async fn divide(&self, engine: &EngineHandle, members: &[Arc<Member>]) -> Result<(), TeamError> {
        let world = members.len() + 1;
        let updates = engine.with_backend(|engine| engine.updates()).await?;
        for (part, member) in Partition::all(world).skip(1).zip(members) {
            let name = named(part, updates);
            member.line.send(&BetweenRanks::Keep(name), DIVIDING).await?;
            let mut group = pair(member);
            let given = engine.with_backend(move |engine| {
                let mut failed = None;
                let shown = engine.each_moment(part, &mut |bucket| {
                    let parts = [0..bucket.len(), 0..0];
                    unless_failed(group.all_gather(bucket, &parts), &mut failed)
                });
                ended(shown, failed)
            });
            given.await??;
            expect(member, name, DIVIDING).await?;
            member.now_keeps(Some(name));
        }
        if let Some(own) = Partition::new(0, world) {
            engine.with_backend(move |engine| engine.keep_partition(own)).await??;
        }
        info!(target: "cohort::learner", world, updates, "optimizer_divided");
        Ok(())
    }

    /// The whole of what the lead and others keep of a version, which stays with them.
    pub(crate) async fn moments(&self, engine: &EngineHandle, version: PolicyVersion) -> Result<Moments, TeamError> {
        let Some(own) = engine.with_backend(part_of).await? else {
            return Ok(engine.with_backend(|engine| engine.optimizer_export()).await??);
        };
        let holding = holding_of(engine, version).await?;
        let standing = self.assembled().await;
        for member in &standing {
            member.join().await?;
        }
        gather(engine, own, &keepers(own, holding, &standing).await?).await
    }
}

/// Those who keep the other parts of a state of which `own` is the lead's, in the order of the parts (P1).
async fn keepers(own: RankPart, holding: Holding, standing: &[Arc<Member>]) -> Result<Vec<Arc<Member>>, TeamError> {
    let mut keepers = Vec::new();
    for rank in 1..own.world {
        let mut found = None;
        for member in standing.iter().filter(|member| member.holds() == Some(Some(holding))) {
            if kept(member).await?.is_some_and(|kept| (kept.rank, kept.world) == (rank, own.world)) {
                found = Some(member.clone());
                break;
            }
        }
        keepers.push(found.ok_or(TeamError::PartLost { rank, world: own.world, version: holding.version })?);
    }
    Ok(keepers)
}

/// What a member keeps; asked once.
async fn kept(member: &Member) -> Result<Option<RankPart>, CollectiveError> {
    if let Some(known) = member.keeps() {
        return Ok(known);
    }
    member.line.send(&BetweenRanks::Keeps(None), ASKING).await?;
    let keeps = match member.line.recv(ASKING).await? {
        BetweenRanks::Keeps(keeps) => keeps,
        other => return Err(member.line.out_of_step(ASKING, &other)),
    };
    member.now_keeps(keeps);
    Ok(keeps)
}

/// The whole of what the lead (`own`) and the keepers of the other parts have, in the canonical layout.
async fn gather(engine: &EngineHandle, own: RankPart, keepers: &[Arc<Member>]) -> Result<Moments, TeamError> {
    for (rank, keeper) in (1..).zip(keepers) {
        keeper.line.send(&BetweenRanks::HandIn(RankPart { rank, ..own }), GATHERING).await?;
    }
    let mut groups: Vec<Stream> = keepers.iter().map(|keeper| pair(keeper)).collect();
    let gathered = engine.with_backend(move |engine| {
        let mut failed = None;
        let gathered = engine.optimizer_gather(&mut |bucket| {
            let parts = Partition::all(groups.len() + 1).skip(1);
            parts.zip(&mut groups).try_for_each(|(part, group)| {
                let own = part.range(bucket.len());
                let values = &mut bucket[own];
                let parts: [Range<usize>; 2] = [0..0, 0..values.len()];
                unless_failed(group.all_gather(values, &parts), &mut failed)
            })
        });
        ended(gathered, failed)
    });
    let moments = gathered.await??;
    for (rank, keeper) in (1..).zip(keepers) {
        expect(keeper, RankPart { rank, ..own }, GATHERING).await?;
    }
    info!(target: "cohort::learner", world = own.world, updates = own.updates, "optimizer_gathered");
    Ok(moments)
}

async fn expect(member: &Member, part: RankPart, during: &'static str) -> Result<(), CollectiveError> {
    match member.line.recv(during).await? {
        BetweenRanks::Keeps(Some(kept)) if kept == part => Ok(()),
        other => Err(member.line.out_of_step(during, &other)),
    }
}

/// Breaks off at the first failure.
fn unless_failed(done: Result<(), CollectiveError>, failed: &mut Option<CollectiveError>) -> ControlFlow<()> {
    match done {
        Ok(()) => ControlFlow::Continue(()),
        Err(why) => {
            *failed = Some(why);
            ControlFlow::Break(())
        }
    }
}

fn ended<T>(done: Result<T, cohort_engine::EngineError>, failed: Option<CollectiveError>) -> Result<T, TeamError> {
    match failed {
        Some(why) => Err(why.into()),
        None => Ok(done?),
    }
}
