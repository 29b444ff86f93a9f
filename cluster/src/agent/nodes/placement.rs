//! Which worker runs on which host. Pure.
//!
//! Hosts offer places by role. Unless somebody asked for another number ([`Placement::scale`]), every place that is offered
//! by a host that is there has its worker. Asked for a number, that many run, on the hosts with the most room for their
//! offer. Followers of the learner's lead are as many as the run has, where there is a place for each.
//!
//! Invariants
//! - **P1** a worker's place has one host at a time; it moves only when its host has gone or has too many.
//! - **P2** a worker that has come takes the smallest free name, so that names stay few over any number of comings and goings.
//! - **P3** no host has more learner ranks than it offers: each needs the memory of a whole learner.
use crate::agent::weights::spread::Host;
use cohort_protocol::{Role, WorkerId};
use std::collections::BTreeMap;

/// The head node.
pub(crate) const HEAD: Host = 0;
/// Roles whose workers can be on any host; of the learner all ranks but the lead.
pub(crate) const MOVABLE: [Role; 3] = [Role::Rollout, Role::Reward, Role::Learner];
/// Roles whose number can change.
pub(crate) const SCALABLE: [Role; 2] = [Role::Rollout, Role::Reward];
/// Workers of a role, all hosts together.
pub(crate) const MOST: u16 = 10_000;

/// Hosts, wishes and who runs where.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placement {
    offers: BTreeMap<Host, BTreeMap<Role, u16>>,
    wanted: BTreeMap<Role, u16>,
    followers: u16,
    placed: BTreeMap<WorkerId, Host>,
}

impl Placement {
    /// The learner has so many ranks besides the lead.
    pub(crate) fn follow(&mut self, followers: u16) {
        self.followers = followers;
        self.settle();
    }

    /// A host is there, or offers something else now.
    pub(crate) fn join(&mut self, host: Host, offers: impl IntoIterator<Item = (Role, u16)>) {
        let offers = offers.into_iter().filter(|(role, _)| MOVABLE.contains(role)).map(|(role, n)| (role, n.min(MOST)));
        self.offers.insert(host, offers.collect());
        self.settle();
    }

    /// A host is gone.
    pub(crate) fn leave(&mut self, host: Host) {
        self.offers.remove(&host);
        self.placed.retain(|_, on| *on != host);
        self.settle();
    }

    /// So many workers of a role from now on, whatever is offered.
    ///
    /// # Errors
    /// A sentence for the user: a role that does not scale, none at all, or more than there can be.
    pub(crate) fn scale(&mut self, role: Role, count: u16) -> Result<(), String> {
        if !SCALABLE.contains(&role) {
            return Err(format!("{role} workers cannot be scaled while the run goes on; rollout and reward workers can"));
        }
        if count == 0 {
            return Err(format!("{role}=0: a run without {role} workers would stand still; `cluster pause` says that openly"));
        }
        if count > MOST {
            return Err(format!("{role}={count}: at most {MOST}"));
        }
        self.wanted.insert(role, count);
        self.settle();
        Ok(())
    }

    /// Workers of a host.
    pub(crate) fn on(&self, host: Host) -> Vec<WorkerId> {
        self.placed.iter().filter(|(_, on)| **on == host).map(|(worker, _)| *worker).collect()
    }

    /// Where a worker is.
    pub(crate) fn of(&self, worker: WorkerId) -> Option<Host> {
        self.placed.get(&worker).copied()
    }

    /// How many workers of a role there are to be.
    pub(crate) fn count(&self, role: Role) -> u16 {
        u16::try_from(self.shares(role).values().sum::<u32>()).unwrap_or(u16::MAX)
    }

    /// Roles for want of whose workers the run stands still. The lead alone learns as well as with followers.
    pub(crate) fn lacking(&self) -> Vec<Role> {
        SCALABLE.into_iter().filter(|&role| self.count(role) == 0).collect()
    }

    /// Brings every host to what it is to run: surplus workers go, the highest names first; new ones take the smallest free
    /// names.
    fn settle(&mut self) {
        for role in MOVABLE {
            let shares = self.shares(role);
            let mut kept: BTreeMap<Host, u32> = BTreeMap::new();
            self.placed.retain(|worker, host| {
                if worker.role != role {
                    return true;
                }
                let kept = kept.entry(*host).or_default();
                let keeps = *kept < shares.get(host).copied().unwrap_or(0);
                *kept += u32::from(keeps);
                keeps
            });
            for (host, share) in shares {
                for _ in kept.get(&host).copied().unwrap_or(0)..share {
                    // The lead has the first name.
                    let first = u16::from(role == Role::Learner);
                    let free = (first..=u16::MAX).find(|&index| !self.placed.contains_key(&WorkerId { role, index }));
                    if let Some(index) = free {
                        self.placed.insert(WorkerId { role, index }, host);
                    }
                }
            }
        }
    }

    /// How many workers of a role each host is to run: what it offers, or its part of what is wanted, each next one going to
    /// the host with the least for its offer.
    fn shares(&self, role: Role) -> BTreeMap<Host, u32> {
        let offers: BTreeMap<Host, u32> =
            self.offers.iter().map(|(&host, offer)| (host, offer.get(&role).copied().unwrap_or(0).into())).collect();
        if role == Role::Learner {
            return self.ranks(offers);
        }
        let Some(&wanted) = self.wanted.get(&role) else { return offers };
        let mut shares: BTreeMap<Host, u32> = offers.keys().map(|&host| (host, 0)).collect();
        for _ in 0..wanted {
            let next = shares.iter().filter(|(host, _)| offers[host] > 0).min_by(|(a, n), (b, m)| {
                // (n + 1) / offer(a) against (m + 1) / offer(b); the lower name where they are equal.
                let (left, right) = (u64::from(**n + 1) * u64::from(offers[b]), u64::from(**m + 1) * u64::from(offers[a]));
                left.cmp(&right).then(a.cmp(b))
            });
            let Some(host) = next.map(|(&host, _)| host) else { break };
            *shares.entry(host).or_default() += 1;
        }
        shares
    }

    /// How many followers each host is to run: those that it has, then one after the other where there is a place, hosts in
    /// their order.
    fn ranks(&self, offers: BTreeMap<Host, u32>) -> BTreeMap<Host, u32> {
        let has = |host| self.placed.iter().filter(|(worker, on)| worker.role == Role::Learner && **on == host).count();
        let mut left = u32::from(self.followers);
        let mut take = |most: u32| {
            let taken = most.min(left);
            left -= taken;
            taken
        };
        let mut shares: BTreeMap<Host, u32> =
            offers.iter().map(|(&host, &offer)| (host, take(offer.min(has(host) as u32)))).collect();
        for (host, share) in &mut shares {
            *share += take(offers[host] - *share);
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(index: u16) -> WorkerId {
        WorkerId { role: Role::Rollout, index }
    }

    fn head() -> Placement {
        let mut placement = Placement::default();
        placement.join(HEAD, [(Role::Rollout, 2), (Role::Reward, 1)]);
        placement
    }

    #[test]
    fn every_offered_place_has_its_worker_and_a_host_takes_its_own_along() {
        let mut placement = head();
        assert_eq!(placement.on(HEAD).len(), 3);
        assert_eq!(placement.lacking(), []);
        placement.join(1, [(Role::Rollout, 4)]);
        assert_eq!(placement.on(1), (2..6).map(rollout).collect::<Vec<_>>());
        placement.join(2, [(Role::Rollout, 1), (Role::Coordinator, 3)]);
        assert_eq!(placement.on(2), [rollout(6)], "a coordinator's place is not its to offer");
        placement.leave(1);
        assert_eq!(placement.count(Role::Rollout), 3);
        assert_eq!((placement.on(HEAD).len(), placement.on(2).len()), (3, 1));
    }

    #[test]
    fn a_wish_is_kept_whatever_hosts_come_and_go() {
        let mut placement = head();
        placement.join(1, [(Role::Rollout, 4)]);
        placement.scale(Role::Rollout, 3).unwrap();
        let split = (placement.on(HEAD).len(), placement.on(1).len());
        assert_eq!(split, (2, 2), "1 of 2 and 2 of 4; the head node has the reward worker too");
        placement.scale(Role::Rollout, 9).unwrap();
        assert_eq!((placement.on(HEAD).len() - 1, placement.on(1).len()), (3, 6));
        placement.leave(1);
        assert_eq!(placement.on(HEAD).len(), 10);
        assert_eq!(placement.of(rollout(8)), Some(HEAD));
        placement.join(3, [(Role::Rollout, 2)]);
        assert!(placement.on(3).len() == 4 || placement.on(3).len() == 5, "{placement:?}");
    }

    #[test]
    fn followers_go_where_there_is_a_place_and_stay() {
        let rank = |index| WorkerId { role: Role::Learner, index };
        let mut placement = head();
        placement.follow(3);
        placement.join(HEAD, [(Role::Learner, 1)]);
        assert_eq!(placement.on(HEAD), [rank(1)], "P3: two wait for a host");
        placement.join(HEAD, [(Role::Reward, 1), (Role::Learner, 1)]);
        assert_eq!(placement.lacking(), [Role::Rollout], "the lead needs no followers");
        placement.join(HEAD, [(Role::Learner, 1)]);
        placement.join(1, [(Role::Learner, 1)]);
        placement.join(2, [(Role::Learner, 4)]);
        assert_eq!((placement.on(1), placement.on(2)), (vec![rank(2)], vec![rank(3)]));
        placement.leave(1);
        assert_eq!((placement.on(HEAD), placement.on(2)), (vec![rank(1)], vec![rank(2), rank(3)]));
        placement.join(1, [(Role::Learner, 4)]);
        assert_eq!(placement.on(1), [], "P1: whoever has a place stays");
        placement.leave(2);
        assert_eq!(placement.on(1), [rank(2), rank(3)]);
    }

    #[test]
    fn wishes_that_are_none_are_refused() {
        let mut placement = head();
        for (role, count, named) in
            [(Role::Learner, 2, "cannot be scaled"), (Role::Rollout, 0, "stand still"), (Role::Reward, 20_000, "at most")]
        {
            let why = placement.scale(role, count).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
        assert_eq!(placement.on(HEAD).len(), 3);
    }

    /// P1 and P2 over random comings and goings.
    #[test]
    fn nobody_moves_without_need_and_names_stay_few() {
        for seed in 0..50 {
            let mut draw = fastrand::Rng::with_seed(seed);
            let mut placement = head();
            placement.follow(4);
            let mut most = 0;
            for _ in 0..200 {
                let (before, host) = (placement.clone(), draw.u16(1..6));
                match draw.u8(..5) {
                    0 => placement.leave(host),
                    1 if seed % 2 == 0 => placement.scale(Role::Rollout, draw.u16(1..20)).unwrap(),
                    _ => placement.join(
                        host,
                        [(Role::Rollout, draw.u16(..5)), (Role::Reward, draw.u16(..2)), (Role::Learner, draw.u16(..3))],
                    ),
                }
                for role in MOVABLE {
                    let running = placement.placed.keys().filter(|w| w.role == role);
                    assert_eq!(running.clone().count(), usize::from(placement.count(role)));
                    most = most.max(placement.count(role));
                    let names = if role == Role::Learner { 4 + 1 } else { most };
                    assert!(running.map(|w| w.index).max() < Some(names), "P2, seed {seed}: {placement:?}");
                }
                assert!(placement.placed.values().all(|host| placement.offers.contains_key(host)));
                for host in 0..6 {
                    let ranks = placement.on(host).iter().filter(|w| w.role == Role::Learner).count();
                    let offered = placement.offers.get(&host).and_then(|offer| offer.get(&Role::Learner));
                    assert!(ranks <= usize::from(offered.copied().unwrap_or(0)), "P3, seed {seed}: {placement:?}");
                    // What a host has before and after it keeps under the same name.
                    let (had, has) = (before.on(host), placement.on(host));
                    let same = had.iter().filter(|w| has.contains(w)).count();
                    let rollouts = |all: &[WorkerId], role| all.iter().filter(|w| w.role == role).count();
                    let least: usize = MOVABLE.iter().map(|&r| rollouts(&had, r).min(rollouts(&has, r))).sum();
                    assert!(same >= least || !placement.offers.contains_key(&host), "seed {seed}, host {host}: {had:?} {has:?}");
                }
            }
        }
    }
}
