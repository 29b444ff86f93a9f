//! The fabric between the devices of a lead's ranks: made for each new set of ranks, kept while they are the same, left alone
//! for a while where it does not work (`trial` decides).
//!
//! Invariants
//! - **V1** a fabric is used by the ranks that it was made for, over the connections on which they were told of it.
//! - **V2** ranks without one work as well: sums then travel on the lines.
use super::team::Member;
use super::trial::Trial;
use crate::collective::{CollectiveError, Line, SharedFabric};
use cohort_engine::fabric::Fabrics;
use cohort_protocol::messages::ranks::{BetweenRanks, RankFabric};
use cohort_protocol::version::RANK_FABRIC;
use std::sync::{Arc, Weak};
use tracing::{info, warn};

const WEAVING: &str = "the making of a fabric";

/// The lead's fabric.
#[derive(Debug)]
pub(super) struct Weave {
    fabrics: Option<Arc<dyn Fabrics>>,
    /// The ranks that were told of the last one, and its end, where every rank has its own.
    told: Vec<Weak<Line>>,
    end: Option<SharedFabric>,
    trial: Trial,
}

impl Weave {
    pub(super) fn new(fabrics: Option<Arc<dyn Fabrics>>) -> Self {
        Self { fabrics, told: Vec::new(), end: None, trial: Trial::default() }
    }

    /// The fabric of these ranks, in their order; `None` where there is none.
    ///
    /// # Errors
    /// A rank was lost meanwhile.
    pub(super) async fn of(&mut self, members: &[Arc<Member>]) -> Result<Option<SharedFabric>, CollectiveError> {
        let Some(fabrics) = self.fabrics.clone() else { return Ok(None) };
        let same = self.told.len() == members.len()
            && self.told.iter().zip(members).all(|(told, member)| std::ptr::eq(told.as_ptr(), Arc::as_ptr(&member.line)));
        if same {
            return Ok(self.end.clone());
        }
        self.forget();
        if members.is_empty() || members.iter().any(|member| member.protocol < RANK_FABRIC) {
            return Ok(None);
        }
        let world = members.len() + 1;
        let invite = || fabrics.invite().and_then(|invitation| Ok((fabrics.join(&invitation, 0, world)?, invitation)));
        let made = self.trial.is_due().then(invite).transpose().unwrap_or_else(|why| {
            self.failed(fabrics.kind(), &why);
            None
        });
        let invitation = made.as_ref().map(|(_, invitation)| invitation.clone()).unwrap_or_default();
        let joined = tell(members, fabrics.kind(), &invitation).await?;
        self.told = members.iter().map(|member| Arc::downgrade(&member.line)).collect();
        self.end = made.filter(|_| joined).map(|(end, _)| SharedFabric::new(fabrics.kind(), end));
        if !joined && !invitation.is_empty() {
            self.failed(fabrics.kind(), "a rank has none");
            tell(members, fabrics.kind(), &[]).await?;
        }
        info!(target: "cohort::learner", kind = fabrics.kind(), world, used = self.end.is_some(), "fabric_made");
        Ok(self.end.clone())
    }

    /// A step succeeded.
    pub(super) fn worked(&mut self) {
        if self.end.is_some() {
            self.trial.worked();
        } else if self.trial.went_without() {
            self.forget();
        }
    }

    /// A step was abandoned: whatever was made is of no more use. A follower's end may have failed, which the lead hears of as
    /// of any other loss.
    pub(super) fn abandoned(&mut self, why: &CollectiveError) {
        if let (Some(_), Some(fabrics)) = (&self.end, self.fabrics.clone()) {
            self.failed(fabrics.kind(), &why.to_string());
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.told.clear();
        self.end = None;
    }

    fn failed(&mut self, kind: &str, why: &str) {
        let steps_on_lines = self.trial.failed();
        warn!(target: "cohort::learner", kind, why, steps_on_lines, "fabric_failed");
    }
}

/// Tells every rank its place; whether all of them have taken it.
async fn tell(members: &[Arc<Member>], kind: &str, invitation: &[u8]) -> Result<bool, CollectiveError> {
    let world = members.len() as u32 + 1;
    for (rank, member) in (1..).zip(members) {
        let (kind, invitation) = (kind.to_owned(), invitation.to_vec());
        member.line.send(&BetweenRanks::Fabric(RankFabric { kind, invitation, rank, world }), WEAVING).await?;
    }
    let mut all = true;
    for member in members {
        match member.line.recv(WEAVING).await? {
            BetweenRanks::Opened(opened) => all &= opened,
            other => return Err(member.line.out_of_step(WEAVING, &other)),
        }
    }
    Ok(all)
}
